//! Real interfaces in a network namespace of the test's own.

use std::{net::IpAddr, process::Command};

use bulkhead_protocol::agent::server as api;
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capabilities, set_capabilities, unshare_unsafe,
};

use super::{Network, NetworkError};

/// Runs `test` in a thread with a network namespace of its own; not where that cannot be made.
pub(super) fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the network namespace is nothing that memory or descriptors depend on.
            match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
                Ok(()) => test(),
                Err(e) => println!("skipped: no network namespace: {e}"),
            }
        });
        thread.join().unwrap();
    });
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Two devices that are connected with one another, as the kernel names them.
fn devices() {
    ip("link add dev0 type veth peer name dev1");
    ip("link set dev0 address 02:00:00:00:00:01");
    ip("link set dev1 address 02:00:00:00:00:02");
}

fn bytes(ip: &str) -> Vec<u8> {
    match ip.parse().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn interface(name: &str, last: u8, addresses: &[&str]) -> api::Interface {
    let addresses = addresses.iter().map(|text| {
        let (ip, prefix) = text.split_once('/').unwrap();
        let prefix = prefix.parse().unwrap();
        api::Address { ip: bytes(ip), prefix, ..Default::default() }
    });
    api::Interface {
        name: name.into(),
        mac: vec![2, 0, 0, 0, 0, last],
        mtu: 1400,
        up: true,
        addresses: addresses.collect(),
        ..Default::default()
    }
}

fn route(to: &str, gateway: &str, device: &str) -> api::Route {
    let (destination, prefix) = match to.split_once('/') {
        Some((ip, prefix)) => (bytes(ip), prefix.parse().unwrap()),
        None => (vec![], 0),
    };
    let gateway = if gateway.is_empty() { vec![] } else { bytes(gateway) };
    let ipv6 = to.contains(':') || gateway.len() == 16;
    let link = gateway.is_empty() && !ipv6;
    api::Route {
        family: if ipv6 { libc::AF_INET6 } else { libc::AF_INET } as u32,
        destination,
        prefix,
        gateway,
        device: device.into(),
        scope: if link { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE }.into(),
        kind: libc::RTN_UNICAST.into(),
        protocol: libc::RTPROT_BOOT.into(),
        table: libc::RT_TABLE_MAIN.into(),
        ..Default::default()
    }
}

fn example() -> api::Network {
    api::Network {
        interfaces: vec![
            interface("eth0", 1, &["10.1.0.2/24", "10.1.0.3/24", "fd00::2/64"]),
            interface("dev0", 2, &[]),
        ],
        // The one over a gateway comes first; it needs the other.
        routes: vec![
            route("default", "10.1.0.1", "eth0"),
            route("10.1.0.0/24", "", "eth0"),
            route("default", "fd00::1", "eth0"),
            route("fd00::/64", "", "eth0"),
        ],
        neighbors: vec![api::Neighbor {
            device: "eth0".into(),
            ip: bytes("10.1.0.1"),
            mac: vec![2, 0, 0, 0, 0, 9],
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn network_becomes_what_is_wanted() {
    in_namespace(|| {
        devices();
        Network::default().configure(&example()).unwrap();
        // The device dev0 is eth0 now, and dev1 has its name.
        let links = ip("-br link");
        assert!(links.contains("eth0@dev0") && links.contains("dev0@eth0"), "{links}");
        assert!(ip("link show eth0").contains("mtu 1400"));
        let addresses = ip("addr show dev eth0");
        for address in ["inet 10.1.0.2/24", "inet 10.1.0.3/24", "inet6 fd00::2/64"] {
            assert!(addresses.contains(address), "{addresses}");
        }
        assert!(!addresses.contains("tentative") && !addresses.contains("fe80"), "{addresses}");
        let routes = ip("route");
        assert!(routes.contains("default via 10.1.0.1 dev eth0"), "{routes}");
        assert!(ip("-6 route").contains("default via fd00::1 dev eth0"));
        assert!(ip("neigh").contains("10.1.0.1 dev eth0 lladdr 02:00:00:00:00:09 PERMANENT"));
    });
}

#[test]
fn names_are_swapped() {
    in_namespace(|| {
        devices();
        let mut wanted = api::Network::new();
        wanted.interfaces = vec![interface("dev1", 1, &[]), interface("dev0", 2, &[])];
        let mut network = Network::default();
        network.configure(&wanted).unwrap();
        assert!(ip("link show dev1").contains("02:00:00:00:00:01"));
        assert!(ip("link show dev0").contains("02:00:00:00:00:02"));
        // Once more changes nothing.
        network.configure(&wanted).unwrap();
        assert!(ip("link show dev1").contains("02:00:00:00:00:01"));
    });
}

#[test]
fn what_is_no_longer_wanted_goes_and_what_the_container_made_stays() {
    in_namespace(|| {
        devices();
        let mut network = Network::default();
        let mut wanted = example();
        network.configure(&wanted).unwrap();
        ip("addr add 192.0.2.1/32 dev eth0");
        ip("route add 198.51.100.0/24 dev eth0");
        wanted.interfaces[0].name = "net0".into();
        wanted.interfaces[0].mtu = 1300;
        wanted.interfaces[0].addresses.remove(0);
        wanted.routes =
            vec![route("10.1.0.0/24", "", "net0"), route("default", "10.1.0.9", "net0")];
        wanted.neighbors.clear();
        network.configure(&wanted).unwrap();
        let addresses = ip("addr show dev net0");
        assert!(!addresses.contains("10.1.0.2/24") && addresses.contains("10.1.0.3/24"));
        assert!(addresses.contains("192.0.2.1/32") && addresses.contains("mtu 1300"));
        let routes = ip("route");
        assert!(
            routes.contains("default via 10.1.0.9") && !routes.contains("10.1.0.1 "),
            "{routes}"
        );
        assert!(routes.contains("198.51.100.0/24"), "{routes}");
        assert!(!ip("-6 route").contains("default"));
        assert!(!ip("neigh").contains("PERMANENT"));

        wanted.interfaces[0].up = false;
        wanted.routes.clear();
        network.configure(&wanted).unwrap();
        assert!(ip("link show net0").contains("state DOWN"));
        network.configure(&api::Network::new()).unwrap();
        assert!(!ip("addr show dev net0").contains("10.1.0.3"));
    });
}

#[test]
fn failure_of_one_part_does_not_keep_the_rest_away() {
    in_namespace(|| {
        devices();
        let mut wanted = example();
        wanted.routes.insert(0, route("10.9.0.0/16", "172.16.0.1", "eth0"));
        let failed = Network::default().configure(&wanted).unwrap_err();
        assert!(failed.to_string().starts_with("route 10.9.0.0/16 via 172.16.0.1 dev eth0: "));
        assert!(ip("route").contains("default via 10.1.0.1 dev eth0"));
    });
}

#[test]
fn part_that_was_never_made_is_not_taken_away() {
    in_namespace(|| {
        devices();
        let (mut network, mut wanted) = (Network::default(), example());
        let mut impossible = route("10.9.0.0/16", "", "eth0");
        impossible.kind = u8::MAX.into();
        wanted.routes.push(impossible);
        network.configure(&wanted).unwrap_err();
        // The kernel would refuse to delete it, too.
        network.configure(&example()).unwrap();
    });
}

#[test]
fn part_that_could_not_be_taken_away_is_taken_with_the_next_call() {
    in_namespace(|| {
        devices();
        let mut network = Network::default();
        network.configure(&example()).unwrap();
        let mut wanted = example();
        wanted.routes.clear();
        wanted.neighbors.clear();
        wanted.interfaces[0].addresses.remove(0);
        let all = capabilities(None).unwrap();
        let none = CapabilitySets { effective: CapabilitySet::empty(), ..all };
        set_capabilities(None, none).unwrap();
        network.configure(&wanted).unwrap_err();
        set_capabilities(None, all).unwrap();
        assert!(ip("addr show dev eth0").contains("10.1.0.2/24"));
        network.configure(&wanted).unwrap();
        assert!(!ip("addr show dev eth0").contains("10.1.0.2/24"));
        assert!(!ip("route").contains("10.1.0") && !ip("neigh").contains("PERMANENT"));
    });
}

#[test]
fn device_that_is_not_there_is_named() {
    in_namespace(|| {
        let mut wanted = api::Network::new();
        wanted.interfaces = vec![interface("eth0", 7, &[])];
        let failed = Network::default().configure(&wanted).unwrap_err();
        assert!(matches!(&failed, NetworkError::NoDevice(mac) if mac[5] == 7), "{failed}");
    });
}
