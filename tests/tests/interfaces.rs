//! Network interfaces of `bulkhead-vmm` under a real kernel's driver: packets and streams both
//! ways, queue pairs, slots that fill and empty while the guest runs, rate limits, and taps that
//! vanish.
//!
//! The guest is the kernel with busybox and a script as its first process. The host's side is in
//! a network namespace of each test's own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use bulkhead_protocol::control::{ExitReason, VmState, VmStats};
use bulkhead_tests::LIMIT;
use bulkhead_tests::bundle::busybox_root;
use bulkhead_tests::interfaces::{Frames, Interface, in_namespace, tap};
use bulkhead_tests::run;
use bulkhead_tests::vmm::{Machine, Vmm};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const MEMORY_MIB: u32 = 128;
const COMMAND_LINE: &str = "quiet loglevel=3 printk.devkmsg=on earlyprintk=ttyS0,keep panic=-1 \
                            reboot=k,panic_warm acpi=off random.trust_cpu=on tsc=reliable \
                            rdinit=/init";
/// Start of every script. `say` puts a line on the console; `bind` waits until platform device
/// `$1` has a network interface, `setup` gives the interface `$1` the address `$2`.
const PRELUDE: &str = r#"#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
say() { echo "<2>said: $*" > /dev/kmsg; }
sum() { sha256sum | cut -c 1-64; }
driver=/sys/bus/platform/drivers/virtio-mmio
bind() { while ! echo $1 > $driver/bind; do usleep 50000; done 2>/dev/null; }
setup() { ip addr add $2 dev $1; ip link set $1 up; }
ip link set lo up
"#;
/// Bytes of a stream.
const STREAM_BYTES: usize = 8 << 20;

fn kernel() -> PathBuf {
    let guest = std::env::var_os("BULKHEAD_GUEST_DIR").map(PathBuf::from);
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    guest.unwrap_or_else(built).join("vmlinux")
}

/// A machine whose first process is `script`.
fn machine(scratch: &TempDir, script: &str) -> Machine {
    let root = scratch.path().join("root");
    busybox_root(&root);
    fs::write(root.join("init"), format!("{PRELUDE}{script}\nreboot -f\n")).expect("init");
    run(Command::new("chmod").arg("755").arg(root.join("init"))).expect(0);
    let path = scratch.path().join("initrd");
    let mut make = Command::new("sh");
    make.args(["-c", "find . | busybox cpio -o -H newc"]).current_dir(&root);
    make.stdout(File::create(&path).expect("initrd")).stderr(Stdio::null());
    assert!(make.status().expect("sh").success());
    let machine = Machine::new(&kernel(), MEMORY_MIB).expect("kernel and KVM");
    machine.initrd(File::open(path).expect("initrd"), COMMAND_LINE)
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("interfaces-").tempdir_in("/var/tmp").expect("a directory")
}

fn start(machine: Machine) -> Vmm {
    let vmm = machine.spawn().expect("the machine is built");
    vmm.start().expect("the guest starts");
    vmm
}

/// Runs the guest to its end; what it said, line by line.
#[track_caller]
fn finish(mut vmm: Vmm) -> Vec<String> {
    let ended = vmm.finish();
    let console = vmm.console.seen();
    let reason = ended.unwrap_or_else(|error| panic!("{error:#}: {console}"));
    assert_eq!(reason, ExitReason::PowerOff, "{console}");
    let lines = console.lines().filter_map(|line| line.split_once("said: "));
    lines.map(|(_, text)| text.trim_end().to_owned()).collect()
}

fn stream() -> Vec<u8> {
    (0..STREAM_BYTES as u32 / 4)
        .flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A connection to the guest, which may not listen yet.
fn connect(address: &str) -> TcpStream {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT)).expect("a limit");
                stream.set_write_timeout(Some(LIMIT)).expect("a limit");
                return stream;
            }
            Err(error)
                if error.kind() == std::io::ErrorKind::ConnectionRefused
                    && begun.elapsed() < LIMIT => {}
            Err(error) => panic!("connecting to {address}: {error}"),
        }
    }
}

/// `cat` gives the socket much at once, so that the size of a packet does not depend on how fast it
/// is acknowledged. The last connection tells that everything has come.
const STREAMS: &str = r#"
sys=/sys/class/net/eth0
setup eth0 10.9.0.2/24
say $(cat $sys/address) $(cat $sys/mtu) $(cat $sys/carrier) $(ls -d $sys/queues/tx-* | wc -l)
ping -c 3 -W 120 10.9.0.1 > /dev/null; say ping $?
say ready
nc -l -p 5000 > /in; say in $(sum < /in)
nc -l -p 5001 -e cat /in; say out $?
nc -l -p 5002 > /dev/null
"#;

#[test]
fn streams_pass_both_ways_in_large_packets_over_two_pairs() {
    in_namespace(|| {
        let scratch = scratch();
        let taps = tap("tap0", 2, "10.9.0.1/24", 1500);
        let mut vmm = start(machine(&scratch, STREAMS).vcpus(2).interface(Interface::new(7, taps)));
        vmm.console.wait_for("ready").expect("the guest answers");
        let frames = Frames::watch();
        let bytes = stream();
        let mut to = connect("10.9.0.2:5000");
        to.write_all(&bytes).expect("sending");
        to.shutdown(Shutdown::Write).expect("ending the stream");
        let mut from = connect("10.9.0.2:5001");
        let mut back = Vec::with_capacity(bytes.len());
        from.read_to_end(&mut back).expect("receiving");
        assert!(back == bytes, "{} bytes came back", back.len());
        let largest = frames.largest();
        let stats = vmm.net_stats().expect("counters")[0];
        drop(connect("10.9.0.2:5002"));
        let said = finish(vmm);
        let expected = [
            "02:00:00:00:00:07 1500 1 2",
            "ping 0",
            "ready",
            &format!("in {}", sum(&bytes)),
            "out 0",
        ];
        assert_eq!(said, expected);
        assert_eq!((stats.slot, stats.rx_dropped, stats.tx_dropped), (0, 0, 0));
        assert!(stats.rx_bytes > STREAM_BYTES as u64 && stats.tx_bytes > STREAM_BYTES as u64);
        // Segmentation is left to the other side.
        let large = largest.values().filter(|bytes| **bytes > 1500);
        assert_eq!(large.count(), 2, "{largest:?} of the guest and of the host");
    });
}

const SLOTS: &str = r#"
say none $(ls -d /sys/class/net/eth* 2>/dev/null | wc -l)
bind virtio-mmio.1; say first $(cat /sys/class/net/eth0/address)
setup eth0 10.9.1.2/24; ping -c 2 -W 120 10.9.1.1 > /dev/null; say ping $?
bind virtio-mmio.2; say second $(cat /sys/class/net/eth1/address)
setup eth1 10.9.2.2/24; ping -c 2 -W 120 10.9.2.1 > /dev/null; say ping $?
echo virtio-mmio.1 > $driver/unbind; say unbound $(ls -d /sys/class/net/eth* | wc -l)
ping -c 2 -W 120 10.9.2.1 > /dev/null; say ping $?
bind virtio-mmio.1; say third $(cat /sys/class/net/eth0/address)
setup eth0 10.9.3.2/24; ping -s 8900 -c 2 -W 120 10.9.3.1 > /dev/null; say ping $(cat /sys/class/net/eth0/mtu) $?
"#;

#[test]
fn slots_are_filled_and_emptied_under_a_running_guest() {
    in_namespace(|| {
        let scratch = scratch();
        let mut vmm = start(machine(&scratch, SLOTS).spare_interfaces(2));
        let new = |number: u8, mtu| {
            let taps = tap(&format!("tap{number}"), 1, &format!("10.9.{number}.1/24"), mtu);
            Interface::new(number, taps).mtu(mtu)
        };
        let running = VmState::Running;
        let (first, second, third) = (new(1, 1500), new(2, 1500), new(3, 9000));
        let refused = |result: anyhow::Result<()>, words: &str| {
            let error = result.expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(vmm.detach_net(0, running), "network slot 0 is empty");
        refused(vmm.attach_net(2, &first, running), "there is no network slot 2");
        vmm.console.wait_for("none").expect("the guest is up");
        vmm.attach_net(0, &first, running).expect("filling a slot");
        drop(first);
        refused(vmm.attach_net(0, &second, running), "in use");
        vmm.console.wait_for("first").expect("the guest finds it");
        vmm.pause().expect("pause");
        vmm.attach_net(1, &second, VmState::Paused).expect("filling a slot of a paused machine");
        vmm.resume().expect("resume");
        vmm.console.wait_for("unbound").expect("the guest gives it up");
        let stats = vmm.net_stats().expect("counters");
        assert_eq!(stats.iter().map(|net| net.slot).collect::<Vec<_>>(), [0, 1]);
        vmm.detach_net(0, running).expect("emptying a slot");
        // Nobody holds the tap any more, so it is gone.
        assert!(
            !run(Command::new("busybox").args(["ip", "link", "show", "tap1"]))
                .text()
                .contains("tap1")
        );
        assert_eq!(vmm.net_stats().expect("counters").len(), 1);
        vmm.attach_net(0, &third, running).expect("filling it again");
        let expected = [
            "none 0",
            "first 02:00:00:00:00:01",
            "ping 0",
            "second 02:00:00:00:00:02",
            "ping 0",
            "unbound 1",
            "ping 0",
            "third 02:00:00:00:00:03",
            "ping 9000 0",
        ];
        assert_eq!(finish(vmm), expected);
    });
}

const LIMITED: &str = r#"
setup eth0 10.9.0.2/24
arp -s 10.9.0.1 02:00:00:00:00:99
dd if=/dev/zero of=/big bs=64k count=4 2>/dev/null
nc -u 10.9.0.1 9 < /big &
say ready
while [ $(cat /sys/class/net/eth0/statistics/rx_packets) -lt 20 ]; do usleep 20000; done
say received $(cat /sys/class/net/eth0/statistics/rx_packets)
while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do usleep 20000; done
"#;

#[test]
fn rate_limit_passes_what_it_holds_and_no_more() {
    in_namespace(|| {
        let scratch = scratch();
        let taps = tap("tap0", 1, "10.9.0.1/24", 1500);
        let neighbour = ["arp", "-s", "10.9.0.2", "02:00:00:00:00:07"];
        run(Command::new("busybox").args(neighbour)).expect(0);
        // Takes what the guest sends: without it the guest's program would be told that nobody
        // does, and end before it has sent enough.
        let _taker = UdpSocket::bind("10.9.0.1:9").expect("a socket");
        let mut vmm =
            start(machine(&scratch, LIMITED).interface(Interface::new(7, taps).packets(20, 10)));
        vmm.console.wait_for("ready").expect("the guest is up");
        let socket = UdpSocket::bind("10.9.0.1:7").expect("a socket");
        for _ in 0..100 {
            socket.send_to(b"packet", "10.9.0.2:7").expect("sending");
        }
        vmm.console.wait_for("received").expect("the guest receives");
        let enough = |stats: &VmStats| stats.nets[0].tx_packets >= 10;
        vmm.wait_until(LIMIT, enough).expect("the guest sends");
        let stats = vmm.net_stats().expect("counters")[0];
        assert_eq!((stats.rx_packets, stats.rx_dropped), (20, 0));
        assert_eq!((stats.tx_packets, stats.tx_dropped), (10, 0));
        run(Command::new("busybox").args(["ip", "link", "delete", "tap0"])).expect(0);
        assert_eq!(finish(vmm), ["ready", "received 20"]);
    });
}

const VANISHING: &str = r#"
setup eth0 10.9.0.2/24
say carrier $(cat /sys/class/net/eth0/carrier)
while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do usleep 20000; done
say carrier $(cat /sys/class/net/eth0/carrier)
ping -c 1 -W 1 10.9.0.1 > /dev/null 2>&1; say ping $?
"#;

#[test]
fn tap_that_vanishes_is_a_link_without_carrier() {
    in_namespace(|| {
        let scratch = scratch();
        let taps = tap("tap0", 2, "10.9.0.1/24", 1500);
        let mut vmm = start(machine(&scratch, VANISHING).interface(Interface::new(7, taps)));
        vmm.console.wait_for("carrier 1").expect("the guest is up");
        run(Command::new("busybox").args(["ip", "link", "delete", "tap0"])).expect(0);
        assert_eq!(finish(vmm), ["carrier 1", "carrier 0", "ping 1"]);
    });
}

#[test]
fn descriptor_that_is_no_tap_ends_the_start_with_its_reason() {
    let scratch = scratch();
    let null = File::open("/dev/null").expect("/dev/null").into();
    let machine = machine(&scratch, "").interface(Interface::new(7, vec![null]));
    let error = machine.spawn().err().expect("a refusal").to_string();
    assert!(
        error.contains("opening the tap for network slot 0: queue 0 is no attached queue"),
        "{error}"
    );
}
