//! A network interface: a tap with offloads. The peer of the guest's TCP is this process.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use bulkhead_tests::bench::idle::Idle;
use bulkhead_tests::tap;

use crate::Suite;
use crate::machines::{QEMU, bulkhead, qemu, run_bulkhead, run_qemu};
use crate::marks::Case;

const INITRD: &str = "bench-guest.img";
const NAME: &str = "net";
const IP: &str = "/usr/bin/ip";
/// Name of the tap.
const TAP: &str = "bench0";
/// Address of the host on it; the guest has the next.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Port on which the host takes what the guest sends.
const SINK: u16 = 5001;
/// Port on which the host sends.
const SOURCE: u16 = 5002;
/// Hardware address of the guest.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const MTU: u16 = 1500;
/// Bytes of one read or write of the peer.
const CHUNK: usize = 256 << 10;

pub const SUITE: Suite = Suite {
    initrd: INITRD,
    programs: &[QEMU, IP],
    units: &[("tcp-tx", "instr/MiB"), ("tcp-rx", "instr/MiB")],
    bulkhead: run_on_bulkhead,
    qemu: run_on_qemu,
};

fn run_on_bulkhead(idle: &Idle) -> Result<Vec<Case>> {
    let tap = interface()?;
    with_peer(|| run_bulkhead(bulkhead(NAME, INITRD)?.net(MAC, MTU, tap), idle))
}

/// The tap with userspace virtio-net, and checksum and segmentation offloads, which QEMU turns on
/// as it finds that the tap has virtio-net headers.
fn run_on_qemu(idle: &Idle) -> Result<Vec<Case>> {
    let tap = interface()?;
    rustix::io::fcntl_setfd(&tap, rustix::io::FdFlags::empty()).context("cannot pass the tap")?;
    let mut qemu = qemu(NAME, INITRD);
    qemu.args(["-netdev", &format!("tap,id=net,fd={},vhost=off", tap.as_raw_fd())]);
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    qemu.args(["-device", &format!("virtio-net-device,netdev=net,mac={mac}")]);
    with_peer(|| run_qemu(&mut qemu, idle))
}

/// A new tap that is up; it goes with its descriptor.
fn interface() -> Result<OwnedFd> {
    let tap = tap::open(TAP, false)?;
    for arguments in [
        vec![
            "addr".to_owned(),
            "add".to_owned(),
            format!("{HOST}/24"),
            "dev".to_owned(),
            TAP.to_owned(),
        ],
        vec!["link".to_owned(), "set".to_owned(), TAP.to_owned(), "up".to_owned()],
    ] {
        let status = Command::new(IP).args(&arguments).status().context("cannot start ip")?;
        ensure!(status.success(), "ip {}: {status}", arguments.join(" "));
    }
    Ok(tap)
}

/// Runs `guest` with a sink and a source of bytes for it.
fn with_peer<T>(guest: impl FnOnce() -> Result<T>) -> Result<T> {
    let sink = TcpListener::bind((HOST, SINK)).context("cannot listen")?;
    let source = TcpListener::bind((HOST, SOURCE)).context("cannot listen")?;
    std::thread::spawn(move || sink.accept().and_then(|(stream, _)| take(stream)));
    std::thread::spawn(move || source.accept().and_then(|(stream, _)| give(stream)));
    guest()
}

/// Reads to the end of the guest's bytes and tells it so.
fn take(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while stream.read(&mut buffer)? > 0 {}
    stream.write_all(&[1])
}

/// Sends as many MiB as the guest wants.
fn give(mut stream: TcpStream) -> std::io::Result<()> {
    let mut wanted = [0; 4];
    stream.read_exact(&mut wanted)?;
    let buffer = vec![0x5a; CHUNK];
    let mut left = u64::from(u32::from_le_bytes(wanted)) << 20;
    while left > 0 {
        let count = left.min(CHUNK as u64);
        stream.write_all(&buffer[..count as usize])?;
        left -= count;
    }
    Ok(())
}
