//! In real network namespaces, with a guest that only remembers what it was told.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use bulkhead_protocol::agent::client as api;
use bulkhead_protocol::vm::FdIndex;
use rustix::event::{PollFd, PollFlags, poll};

use super::*;
use crate::eventually::eventually;
use crate::failure::Failure;
use crate::plan::{NetLimits, NetworkPlan};
use crate::process::ProcessId;

/// Remembers slots and the last configuration.
#[derive(Default)]
struct FakeGuest {
    slots: Vec<(u32, OpenNet)>,
    network: api::Network,
    calls: Vec<String>,
    refuses: bool,
}

impl Guest for FakeGuest {
    fn attach(&mut self, slot: u32, net: &OpenNet) -> Result<(), Failure> {
        if self.refuses {
            return Err(Failure::new("attaching", "no", ""));
        }
        self.calls.push(format!("attach {slot}"));
        let taps = net.taps.iter().map(|tap| tap.try_clone().unwrap()).collect();
        self.slots.push((slot, OpenNet { taps, ..*net }));
        Ok(())
    }

    fn detach(&mut self, slot: u32) -> Result<(), Failure> {
        self.calls.push(format!("detach {slot}"));
        self.slots.retain(|(taken, _)| *taken != slot);
        Ok(())
    }

    fn configure(&mut self, network: &api::Network) -> Result<(), Failure> {
        let names: Vec<&str> = network.interfaces.iter().map(|i| &*i.name).collect();
        self.calls.push(format!("configure {}", names.join(" ")));
        self.network = network.clone();
        Ok(())
    }
}

/// Runs `test` in a thread with a network namespace of its own; not where that cannot be made.
pub(super) fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| match enter(&NetworkPlan::New) {
            Ok(_) => test(),
            Err(e) => println!("skipped: {e}"),
        });
        thread.join().unwrap();
    });
}

/// iproute2 in this thread's namespace.
pub(super) fn ip(arguments: &str) -> String {
    let (program, arguments) = match arguments.strip_prefix("tc ") {
        Some(rest) => ("tc", rest),
        None => ("ip", arguments),
    };
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn network() -> Network {
    Network::open(ProcessId::own().unwrap(), 1, NetLimits::default()).unwrap()
}

fn populate() {
    ip("link add far type veth peer name eth0 mtu 9000");
    ip("link set eth0 address 02:00:00:00:00:05");
    ip("link set far address 02:00:00:00:00:06");
    ip("addr add 10.1.0.2/24 brd 10.1.0.255 dev eth0");
    ip("addr add 10.1.0.3/24 dev eth0");
    ip("addr add fd00::2/64 nodad dev eth0");
    ip("link set eth0 up");
    ip("link set far up");
    await_carriers(2);
    ip("addr flush dev far");
    ip("route add default via 10.1.0.1 metric 50");
    ip("route add 10.9.0.0/16 dev eth0 scope link mtu 1400");
    ip("route add 10.8.0.0/16 via 172.16.0.1 dev eth0 onlink");
    ip("route add unreachable 10.7.0.0/16");
    ip("route add default via fd00::1 dev eth0");
    ip("neigh add 10.1.0.1 lladdr 02:00:00:00:00:09 nud permanent dev eth0");
}

#[test]
fn everything_of_an_interface_is_read() {
    in_namespace(|| {
        populate();
        let mut network = network();
        let nets = network.connect().unwrap().nets;
        assert_eq!(nets.len(), 2, "both ends of the pair are here");
        assert_eq!((nets[0].mtu, nets[0].taps.len()), (9000, 1));
        let mut guest = FakeGuest::default();
        network.introduce(&mut guest).unwrap();
        let told = &guest.network;
        let eth0 = told.interfaces.iter().find(|i| i.name == "eth0").unwrap();
        assert_eq!((eth0.mac.as_slice(), eth0.mtu, eth0.up), (&[2, 0, 0, 0, 0, 5][..], 9000, true));
        let ips: Vec<IpAddr> = eth0.addresses.iter().map(|a| to_ip(&a.ip)).collect();
        assert_eq!(ips[0], Ipv4Addr::new(10, 1, 0, 2));
        assert_eq!(ips[1], Ipv4Addr::new(10, 1, 0, 3));
        assert!(ips.contains(&"fd00::2".parse().unwrap()), "{ips:?}");
        assert_eq!(eth0.addresses[0].broadcast, [10, 1, 0, 255]);
        let route = |destination: &[u8], family: i32| {
            let mut found = told.routes.iter().filter(|r| r.family == family as u32);
            found.find(|r| r.destination == destination).unwrap().clone()
        };
        let default = route(&[], libc::AF_INET);
        assert_eq!((default.gateway.as_slice(), default.metric), (&[10, 1, 0, 1][..], 50));
        assert_eq!(default.device, "eth0");
        assert_eq!(to_ip(&route(&[], libc::AF_INET6).gateway).to_string(), "fd00::1");
        let link = route(&[10, 9, 0, 0], libc::AF_INET);
        assert_eq!((link.scope, link.mtu), (libc::RT_SCOPE_LINK.into(), 1400));
        assert!(route(&[10, 8, 0, 0], libc::AF_INET).onlink);
        let nowhere = route(&[10, 7, 0, 0], libc::AF_INET);
        assert_eq!((nowhere.kind, nowhere.device.as_str()), (libc::RTN_UNREACHABLE.into(), ""));
        let connected = route(&[10, 1, 0, 0], libc::AF_INET);
        assert_eq!(connected.source, [10, 1, 0, 2]);
        assert_eq!(told.neighbors.len(), 1);
        assert_eq!(told.neighbors[0].mac, [2, 0, 0, 0, 0, 9]);
    });
}

fn to_ip(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).unwrap().into(),
    }
}

#[test]
fn namespace_with_loopback_only_gives_nothing_and_leaves_spares() {
    in_namespace(|| {
        let mut network = network();
        let devices = network.connect().unwrap();
        assert_eq!((devices.nets.len(), devices.spares), (0, 4));
        let mut guest = FakeGuest::default();
        assert!(network.sync(&mut guest).is_empty());
        assert!(guest.calls.is_empty(), "{:?}", guest.calls);
    });
}

#[test]
fn device_has_the_limits_of_its_interface() {
    in_namespace(|| {
        pair();
        let mut limits = NetLimits::default();
        limits.take("io.bulkhead.net", "rx-pps=7").unwrap();
        limits.take("io.bulkhead.net.eth0", "tx-bps=1m").unwrap();
        let owner = ProcessId::own().unwrap();
        let nets = Network::open(owner, 1, limits).unwrap().connect().unwrap().nets;
        let raw: Vec<_> = nets.iter().map(|net| net.raw(|_| FdIndex(0))).collect();
        let eth0 = raw.iter().find(|net| net.tx_rate.is_some()).unwrap();
        assert_eq!(eth0.tx_rate.unwrap().bytes.unwrap().size, 1 << 20);
        assert_eq!(eth0.rx_rate, None, "its own limits are in place of the common ones");
        let far = raw.iter().find(|net| net.rx_rate.is_some()).unwrap();
        assert_eq!(far.rx_rate.unwrap().ops.unwrap().size, 7);
        assert_eq!(far.tx_rate, None);
    });
}

#[test]
fn frames_pass_between_interface_and_tap_both_ways() {
    in_namespace(|| {
        pair();
        let mut network = network();
        let nets = network.connect().unwrap().nets;
        let frame = |from: u8, to: u8| {
            let mut frame = vec![0u8; 10 + 60];
            frame[10..16].copy_from_slice(&[2, 0, 0, 0, 0, to]);
            frame[16..22].copy_from_slice(&[2, 0, 0, 0, 0, from]);
            frame[22..24].copy_from_slice(&[0x88, 0xb5]);
            frame
        };
        // The two ends of the pair stand for two guests: what one sends, the other receives.
        for (sender, receiver) in [(0, 1), (1, 0)] {
            let sent = frame(sender as u8 + 5, receiver as u8 + 5);
            rustix::io::write(&nets[sender].taps[0], &sent).unwrap();
            let mut received = [0u8; 2048];
            loop {
                let fds = &mut [PollFd::new(&nets[receiver].taps[0], PollFlags::IN)];
                poll(fds, None).unwrap();
                let n = rustix::io::read(&nets[receiver].taps[0], &mut received).unwrap();
                // The kernel may say something of its own on a link that has just come up.
                if received[22..24] == [0x88, 0xb5] {
                    assert_eq!(&received[10..n], &sent[10..]);
                    break;
                }
            }
        }
    });
}

/// Two connected interfaces without addresses.
fn pair() {
    // The peer is made first.
    ip("link add eth1 type veth peer name eth0");
    ip("link set eth0 address 02:00:00:00:00:05 up");
    ip("link set eth1 address 02:00:00:00:00:06 up");
    await_carriers(2);
}

/// Waits until there are so many interfaces, loopback included. A tap goes with its last
/// descriptor, of which a child that is about to become its program has a copy.
fn await_links(count: usize) {
    eventually(|| (ip("-br link").lines().count() == count).then_some(()));
}

/// Waits until so many interfaces are up with a carrier, which the kernel sees to a moment later;
/// it gives them addresses of IPv6 then.
fn await_carriers(count: usize) {
    let up = |line: &&str| line.split_whitespace().nth(1) == Some("UP");
    eventually(|| (ip("-br link").lines().filter(up).count() == count).then_some(()));
}

#[test]
fn interface_that_vanishes_while_it_is_connected_is_named_and_leaves_nothing() {
    in_namespace(|| {
        pair();
        let mut network = network();
        let interfaces = network.read().unwrap().snapshot.interfaces;
        assert_eq!(interfaces.len(), 2);
        ip("link del eth0");
        let before = (ip("tc qdisc"), ip("-br link"));
        for interface in &interfaces {
            let failure = Failure::from(network.plug(interface).unwrap_err()).to_string();
            let wanted = format!("interface {} has vanished", interface.name);
            assert!(failure.contains(&wanted), "{failure}");
        }
        assert_eq!((ip("tc qdisc"), ip("-br link")), before);
    });
}

#[test]
fn nothing_is_left_at_the_end() {
    in_namespace(|| {
        pair();
        ip("tc qdisc add dev eth1 clsact");
        let before = (ip("tc qdisc"), ip("-br link"));
        let mut network = network();
        let nets = network.connect().unwrap().nets;
        assert!(ip("tc filter show dev eth0 ingress").contains("mirred"));
        assert!(ip("tc filter show dev eth1 ingress").contains("mirred"));
        drop(nets);
        drop(network);
        await_links(3);
        assert_eq!((ip("tc qdisc"), ip("-br link")), before);
        assert!(!ip("tc filter show dev eth1 ingress").contains("mirred"));
    });
}

#[test]
fn what_a_killed_supervisor_left_is_replaced_or_cleaned_up() {
    in_namespace(|| {
        pair();
        let before = ip("tc qdisc");
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let other = ProcessId::of(child.id()).unwrap();
        let mut killed = Network::open(other, 1, NetLimits::default()).unwrap();
        drop(killed.connect().unwrap());
        await_links(3);
        let taken = network().connect().unwrap_err();
        assert!(
            matches!(&taken, NetworkError::Taken(name, pid) if name == "eth0" && *pid == other.pid)
        );
        assert!(ip("tc filter show dev eth0 ingress").contains("mirred"), "it is the other's");
        std::mem::forget(killed);
        child.kill().unwrap();
        child.wait().unwrap();
        await_links(3);

        let mut next = network();
        let nets = next.connect().unwrap().nets;
        assert_eq!(nets.len(), 2);
        // Whoever cleans up after the killed one leaves alone what is another's now.
        let here = record();
        clean_up(&here, other).unwrap();
        assert!(ip("tc filter show dev eth0 ingress").contains("mirred"));
        std::mem::forget(next);
        drop(nets);
        await_links(3);
        clean_up(&here, ProcessId::own().unwrap()).unwrap();
        assert_eq!(ip("tc qdisc"), before);
    });
}

/// A record of this thread's namespace, by a path that other threads understand.
fn record() -> NamespaceRecord {
    let thread = std::fs::read_link("/proc/thread-self").unwrap();
    NamespaceRecord::of(&Path::new("/proc").join(thread).join("ns/net")).unwrap()
}

#[test]
fn changes_are_noticed_and_carried_out() {
    in_namespace(|| {
        let mut network = network();
        network.connect().unwrap();
        let mut guest = FakeGuest::default();
        pair();
        ip("addr add 10.1.0.2/24 dev eth0");
        await_notice(&mut network);
        assert!(network.sync(&mut guest).is_empty());
        assert_eq!(guest.calls, ["attach 0", "attach 1", "configure eth0 eth1"]);
        guest.calls.clear();

        // Its own changes bring notices as well, which change nothing.
        await_notice(&mut network);
        assert!(network.sync(&mut guest).is_empty());
        assert!(guest.calls.is_empty(), "{:?}", guest.calls);

        ip("link set eth0 name net0");
        ip("route add 10.2.0.0/24 via 10.1.0.1");
        ip("link set net0 mtu 1400");
        await_notice(&mut network);
        assert!(network.sync(&mut guest).is_empty());
        assert_eq!(guest.calls, ["configure net0 eth1"]);
        assert_eq!(guest.network.interfaces[0].mtu, 1400);
        assert!(guest.network.routes.iter().any(|r| r.destination == [10, 2, 0, 0]));
        guest.calls.clear();

        // More than the device was made for, or another address: it is made anew.
        ip("link set net0 mtu 4000");
        await_notice(&mut network);
        assert!(network.sync(&mut guest).is_empty());
        assert_eq!(guest.calls, ["configure eth1", "detach 0", "attach 0", "configure net0 eth1"]);
        assert_eq!(guest.slots.iter().find(|(slot, _)| *slot == 0).unwrap().1.mtu, 4000);
        guest.calls.clear();
        await_links(5);

        ip("link del net0");
        await_notice(&mut network);
        assert!(network.sync(&mut guest).is_empty());
        assert_eq!(guest.calls, ["configure ", "detach 0", "detach 1"]);
        await_links(1);
    });
}

fn await_notice(network: &mut Network) {
    let fds = &mut [PollFd::new(network, PollFlags::IN)];
    poll(fds, None).unwrap();
    assert!(network.notice());
    assert!(network.due().unwrap() > Instant::now() - std::time::Duration::from_secs(60));
}

#[test]
fn guest_that_refuses_gets_nothing_and_leaves_nothing() {
    in_namespace(|| {
        let mut network = network();
        network.connect().unwrap();
        pair();
        let before = (ip("tc qdisc"), ip("-br link"));
        let mut guest = FakeGuest { refuses: true, ..Default::default() };
        assert_eq!(network.sync(&mut guest).len(), 2);
        await_links(3);
        assert_eq!((ip("tc qdisc"), ip("-br link")), before);
        guest.refuses = false;
        assert!(network.sync(&mut guest).is_empty());
        assert_eq!(guest.slots.len(), 2);
    });
}

#[test]
fn interfaces_beyond_the_slots_are_refused_by_name() {
    in_namespace(|| {
        let mut network = network();
        network.connect().unwrap();
        for i in 0..5 {
            ip(&format!("link add e{i} type veth peer name f{i}"));
            ip(&format!("link set e{i} up"));
        }
        let failures = network.sync(&mut FakeGuest::default());
        assert_eq!(failures.len(), 1);
        assert!(failures[0].to_string().contains("interface e4 is one too many"), "{failures:?}");
    });
}

#[test]
fn path_that_is_no_network_namespace_is_refused() {
    let refused = |path: &str| {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| enter(&NetworkPlan::Path(path.into())).unwrap_err());
            thread.join().unwrap()
        })
    };
    assert!(matches!(refused("/nowhere"), NetworkError::Open(..)));
    assert!(matches!(refused("/proc/self/ns/net"), NetworkError::Host(_)));
    assert!(matches!(refused("/proc/self/ns/mnt"), NetworkError::NotANamespace(_)));
    assert!(matches!(refused("/etc/passwd"), NetworkError::NotANamespace(_)));
    assert!(matches!(refused("/tmp"), NetworkError::NotANamespace(_)));
}

#[test]
fn namespace_that_is_gone_is_clean() {
    let mut made = None;
    in_namespace(|| made = Some(record()));
    // Its thread has ended, and the path leads nowhere.
    let Some(made) = made else { return };
    clean_up(&made, ProcessId::own().unwrap()).unwrap();
}
