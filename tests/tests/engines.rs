//! Networks as engines make them, by the engines' own programs: CNI plugins, Docker's order of
//! steps. What they set up works from both ends, and nothing of ours is left there.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Once;

use bulkhead_tests::bundle::busybox_root;
use bulkhead_tests::cni::{Network, Published};
use bulkhead_tests::netns::{self, Namespace};
use bulkhead_tests::podman::Podman;
use bulkhead_tests::{Bundle, Created, Leftovers, Outcome, peer, run, unique_id};
use serde_json::json;

/// Bytes of a large stream in the short form; the long form has a GiB.
const STREAM_MIB: u64 = 128;
/// Bytes of a stream that is not about its size.
const SOME: u64 = 4 << 20;
/// An MTU of jumbo frames, and that of Ethernet.
const JUMBO: u32 = 9000;
const ETHERNET: u32 = 1500;

/// A container that serves.
struct Container(Created);

impl Container {
    fn create(mut bundle: Bundle) -> Self {
        peer::install(env!("CARGO_BIN_EXE_peer"), &bundle.path().join("rootfs"));
        netns::allow_ping(&mut bundle);
        Self(Created::new(unique_id("engines"), bundle))
    }

    /// Starts one in `namespace`.
    #[track_caller]
    fn start_in(namespace: &Namespace) -> Self {
        let mut bundle = Bundle::new(&[peer::PROGRAM, "serve"]);
        netns::join(&mut bundle, &namespace.path());
        let container = Self::create(bundle);
        container.0.start();
        container
    }

    /// Runs a command in the guest.
    fn exec(&self, command: &str) -> Outcome {
        let words: Vec<&str> = command.split(' ').collect();
        self.0.command(&["exec"], &words)
    }

    /// Has the guest ask `to`, as `peer` would here; what it prints.
    #[track_caller]
    fn ask(&self, what: &str, to: SocketAddr, bytes: &str) -> String {
        let command = format!("{} {what} {to} {bytes}", peer::PROGRAM);
        self.exec(command.trim_end()).expect(0).text()
    }
}

/// The servers of this host, in the network namespace of the tests.
fn serve_on_host() {
    static SERVE: Once = Once::new();
    SERVE.call_once(|| peer::serve().expect("the host's ports are free"));
}

/// Bytes of data of the largest datagram in a packet of `mtu` bytes.
fn datagram(mtu: u32, to: IpAddr) -> usize {
    let headers = if to.is_ipv6() { 40 + 8 } else { 20 + 8 };
    mtu as usize - headers
}

#[track_caller]
fn ping(to: IpAddr, bytes: usize) {
    let command = format!("ping -c 2 -A -w 120 -s {bytes} {to}");
    run(Command::new("/bin/busybox").args(command.split(' '))).expect(0);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Both protocols, echo requests and the largest packets, to the guest and from it.
#[track_caller]
fn both_ways(container: &Container, guest: IpAddr, host: IpAddr, mtu: u32) {
    let largest = datagram(mtu, guest);
    let (to_guest, to_host) =
        (SocketAddr::new(guest, peer::ECHO), SocketAddr::new(host, peer::ECHO));
    peer::tcp(to_guest).expect("TCP to the guest");
    peer::udp(to_guest, largest).expect("the largest datagram to the guest");
    assert_eq!(peer::path_mtu(to_guest, largest + 1).expect("an MTU"), mtu);
    ping(guest, largest);
    container.ask("tcp", to_host, "");
    container.ask("udp", to_host, &largest.to_string());
    assert_eq!(container.ask("path-mtu", to_host, &(largest + 1).to_string()), mtu.to_string());
    container.exec(&format!("ping -c 2 -A -w 120 -s {largest} {host}")).expect(0);
}

#[test]
fn bridge_portmap_and_tuning_of_cni_serve_the_guest() {
    // The first namespace with a name brings a mount.
    drop(Namespace::new());
    serve_on_host();
    let before = Leftovers::now();
    {
        let mac = "02:11:22:33:44:55";
        let tuning = json!({"mac": mac, "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}});
        let network = Network::bridge(81, JUMBO as u16).tuned(tuning);
        let namespace = Namespace::new();
        let empty = namespace.inventory();
        let published = ["tcp", "udp"].map(|protocol| Published {
            host: 8007,
            container: peer::ECHO,
            protocol,
        });
        let attachment = network.attach(&namespace, "eth0", &published);
        let inventory = namespace.inventory();
        let container = Container::start_in(&namespace);
        let link = container.exec("ip link show eth0").expect(0).text();
        assert!(link.contains(mac) && link.contains("mtu 9000"), "{link}");
        for ipv6 in [false, true] {
            let (guest, host) = (attachment.address(ipv6), attachment.gateway(ipv6));
            both_ways(&container, guest, host, JUMBO);
            let port = SocketAddr::new(host, 8007);
            peer::tcp(port).expect("TCP to a published port");
            peer::udp(port, 1000).expect("UDP to a published port");
        }
        let port = SocketAddr::from(([127, 0, 0, 1], 8007));
        peer::tcp(port).expect("TCP to a port published on the loopback");
        peer::udp(port, 1000).expect("UDP to a port published on the loopback");
        drop(container);
        assert_eq!(namespace.inventory(), inventory);
        drop(attachment);
        assert_eq!(namespace.inventory(), empty);
    }
    before.assert_none();
}

#[test]
fn microvms_reach_each_other_over_a_bridge_and_through_a_narrower_link() {
    // The first namespace with a name brings a mount.
    drop(Namespace::new());
    serve_on_host();
    let before = Leftovers::now();
    {
        let wide = Network::bridge(82, JUMBO as u16);
        let narrow = Network::point_to_point(83, ETHERNET as u16);
        let (near, far) = (Namespace::new(), Namespace::new());
        let published = [Published { host: 8082, container: peer::ECHO, protocol: "tcp" }];
        let near_wide = wide.attach(&near, "eth0", &[]);
        let far_wide = wide.attach(&far, "eth0", &published);
        let far_narrow = narrow.attach(&far, "net1", &[]);
        let inventories = [near.inventory(), far.inventory()];
        let (client, server) = (Container::start_in(&near), Container::start_in(&far));
        for ipv6 in [false, true] {
            let bridged = far_wide.address(ipv6);
            let to = |port| SocketAddr::new(bridged, port);
            let largest = datagram(JUMBO, bridged);
            client.ask("tcp", to(peer::ECHO), "");
            client.ask("udp", to(peer::ECHO), &largest.to_string());
            client.ask("upload", to(peer::SINK), &SOME.to_string());
            client.ask("download", to(peer::SOURCE), &SOME.to_string());
            client.exec(&format!("ping -c 2 -A -w 120 -s {largest} {bridged}")).expect(0);
            server.ask("tcp", SocketAddr::new(near_wide.address(ipv6), peer::ECHO), "");
            // By way of the host, which leads a port of its own there.
            client.ask("tcp", SocketAddr::new(near_wide.gateway(ipv6), 8082), "");

            let routed = far_narrow.address(ipv6);
            both_ways(&server, routed, far_narrow.gateway(ipv6), ETHERNET);
            // The host in between finds the packets too large, and says so.
            let to = |port| SocketAddr::new(routed, port);
            client.ask("upload", to(peer::SINK), &SOME.to_string());
            client.ask("download", to(peer::SOURCE), &SOME.to_string());
            let found = client.ask("path-mtu", to(peer::ECHO), &largest.to_string());
            assert_eq!(found, ETHERNET.to_string());
        }
        drop((client, server));
        assert_eq!([near.inventory(), far.inventory()], inventories);
    }
    before.assert_none();
}

#[test]
fn large_streams_arrive_whole_in_both_directions() {
    let bytes = number("BULKHEAD_NET_MIB").unwrap_or(STREAM_MIB) << 20;
    let network = Network::bridge(84, ETHERNET as u16);
    let namespace = Namespace::new();
    let attachment = network.attach(&namespace, "eth0", &[]);
    let inventory = namespace.inventory();
    let container = Container::start_in(&namespace);
    let to = |port| SocketAddr::new(attachment.address(false), port);
    let started = std::time::Instant::now();
    peer::upload(to(peer::SINK), bytes).expect("all of it arrives in the guest");
    println!("{bytes} bytes to the guest: {:.1} s", started.elapsed().as_secs_f64());
    let started = std::time::Instant::now();
    peer::download(to(peer::SOURCE), bytes).expect("all of it arrives on the host");
    println!("{bytes} bytes from the guest: {:.1} s", started.elapsed().as_secs_f64());
    drop(container);
    assert_eq!(namespace.inventory(), inventory);
}

/// A hook that gives the namespace of the process of the state on its input an interface, in
/// Docker's steps.
const HOOK: &str = r#"#!/bin/sh
set -e
pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
ip link add dockv0 type veth peer name dockv1
ip addr add 10.85.0.1/24 dev dockv0
ip link set dockv0 up
ip link set dockv1 netns "$pid"
inside() { nsenter --target "$pid" --net "$@"; }
inside ip link set dockv1 name eth0
inside ip link set eth0 address 02:42:0a:55:00:02
inside ip addr add 10.85.0.2/24 broadcast 10.85.0.255 dev eth0
inside ip link set eth0 up
inside ip route add default via 10.85.0.1
"#;

#[test]
fn prestart_hook_gives_the_guest_its_network_as_docker_does() {
    use std::os::unix::fs::PermissionsExt;
    serve_on_host();
    let before = Leftovers::now();
    {
        let mut bundle = Bundle::new(&[peer::PROGRAM, "serve"]);
        let hook = bundle.path().join("hook");
        fs::write(&hook, HOOK).expect("the hook");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("mode");
        let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
        bundle.edit(|config| {
            config["hooks"] =
                json!({"prestart": [{"path": hook, "args": ["hook"], "env": [path]}]});
        });
        let container = Container::create(bundle);
        container.0.start();
        let link = container.exec("ip link show eth0").expect(0).text();
        assert!(link.contains("02:42:0a:55:00:02"), "{link}");
        let (guest, host) = (IpAddr::from([10, 85, 0, 2]), IpAddr::from([10, 85, 0, 1]));
        both_ways(&container, guest, host, ETHERNET);
    }
    before.assert_none();
}

#[test]
fn interface_that_vanishes_before_the_start_is_not_the_guests() {
    // The first namespace with a name brings a mount.
    drop(Namespace::new());
    let before = Leftovers::now();
    {
        let network = Network::bridge(86, ETHERNET as u16);
        let namespace = Namespace::new();
        let stays = network.attach(&namespace, "eth0", &[]);
        let inventory = namespace.inventory();
        let goes = network.attach(&namespace, "eth1", &[]);
        let mut bundle = Bundle::new(&[peer::PROGRAM, "serve"]);
        netns::join(&mut bundle, &namespace.path());
        let container = Container::create(bundle);
        drop(goes);
        container.0.start();
        assert_eq!(container.exec("ls /sys/class/net").expect(0).text(), "eth0\nlo");
        peer::tcp(SocketAddr::new(stays.address(false), peer::ECHO)).expect("TCP to the guest");
        drop(container);
        assert_eq!(namespace.inventory(), inventory);
    }
    before.assert_none();
}

#[test]
fn podman_connects_and_publishes() {
    let root = tempfile::tempdir().expect("temp dir");
    busybox_root(root.path());
    peer::install(env!("CARGO_BIN_EXE_peer"), root.path());
    let root = root.path().to_str().expect("UTF-8");
    serve_on_host();
    let podman = Podman::new();
    // The first one makes what stays: directories, mounts.
    let words = ["run", "--rm", "--network", "none", "--rootfs", root, "/bin/sh", "-c", "exit 7"];
    podman.run(&words).expect(7);
    let before = Leftovers::now();
    let (tcp, udp) = (format!("8087:{}", peer::ECHO), format!("8087:{}/udp", peer::ECHO));
    let words = ["run", "-d", "--name", "server", "-p", &tcp, "-p", &udp];
    podman.run(&[&words[..], &["--rootfs", root, peer::PROGRAM, "serve"]].concat()).expect(0);
    let format = "{{.NetworkSettings.IPAddress}} {{.NetworkSettings.Gateway}}";
    let found = podman.run(&["inspect", "--format", format, "server"]).expect(0).text();
    let (guest, host) = found.split_once(' ').expect("two addresses");
    let port = |address: &str, port: u16| -> SocketAddr {
        SocketAddr::new(address.parse().expect("an address"), port)
    };
    for to in [port(guest, peer::ECHO), port("127.0.0.1", 8087), port(host, 8087)] {
        peer::tcp(to).expect("TCP to the guest");
        peer::udp(to, 1000).expect("UDP to the guest");
    }
    let to = port(host, peer::ECHO).to_string();
    podman.run(&["exec", "server", peer::PROGRAM, "tcp", &to]).expect(0);
    podman.run(&["rm", "--force", "--time", "0", "server"]).expect(0);
    netns::ip("link del cni-podman0");
    before.assert_none();
}
