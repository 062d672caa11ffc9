//! The device behind its transport, with a driver of the test's own; ports are socket pairs, whose
//! messages are packets.

mod hostile;
mod life;
mod several;
mod tap;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_bindings::virtio_net::*;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::backend::Port;
use super::header::{FRAME_MAX, HEADER_BYTES, Header, Offloads};
use super::{Backend, Net, NetConfig};
use crate::rate::RateLimit;
use crate::virtio::chain::IoVectors;
use crate::virtio::testing::{BUFFERS, Desc, Machine, no_hook, readable, writable};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const MTU: u16 = 1500;
/// Where packets to send are put.
const TX: u64 = BUFFERS;
/// Where receive buffers begin.
const RX: u64 = BUFFERS + 0x2_0000;

/// What a device has asked of a port.
#[derive(Debug, Default)]
struct Log {
    offloads: Vec<u32>,
    attached: Vec<bool>,
    /// Error of every call that the test wants to fail.
    error: Option<i32>,
}

/// A queue of an interface that is one end of a socket pair.
struct FakePort {
    socket: UnixDatagram,
    log: Arc<Mutex<Log>>,
}

impl FakePort {
    fn check(&self) -> io::Result<()> {
        self.log
            .lock()
            .unwrap()
            .error
            .map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

impl AsRawFd for FakePort {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Port for FakePort {
    fn configure(&mut self, offloads: Offloads) -> io::Result<()> {
        self.check()?;
        self.log.lock().unwrap().offloads.push(offloads.of_tap());
        Ok(())
    }

    fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        self.check()?;
        self.log.lock().unwrap().attached.push(attached);
        Ok(())
    }

    unsafe fn receive(&mut self, vectors: &IoVectors) -> io::Result<usize> {
        self.check()?;
        let vectors = vectors.as_slice();
        let (fd, count) = (self.socket.as_raw_fd(), vectors.len() as i32);
        // SAFETY: as the caller says.
        let result = unsafe { libc::readv(fd, vectors.as_ptr(), count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    unsafe fn send(&mut self, vectors: &IoVectors) -> io::Result<()> {
        self.check()?;
        let vectors = vectors.as_slice();
        let (fd, count) = (self.socket.as_raw_fd(), vectors.len() as i32);
        // SAFETY: as the caller says.
        let result = unsafe { libc::writev(fd, vectors.as_ptr(), count) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The host's end of a port.
struct Host {
    socket: UnixDatagram,
    log: Arc<Mutex<Log>>,
}

impl Host {
    /// Sends a packet to the guest, with a header of the kernel's.
    fn send(&self, frame: &[u8]) {
        let mut packet = vec![0; HEADER_BYTES];
        packet.extend(frame);
        self.socket.send(&packet).unwrap();
    }

    /// Waits for a packet of the guest: its header and its frame.
    fn receive(&self) -> (Vec<u8>, Vec<u8>) {
        let mut packet = vec![0; 1 << 17];
        let count = self.socket.recv(&mut packet).unwrap();
        let frame = packet[HEADER_BYTES..count].to_vec();
        packet.truncate(HEADER_BYTES);
        (packet, frame)
    }

    /// Nothing has come from the guest.
    fn assert_silent(&self) {
        self.socket.set_nonblocking(true).unwrap();
        assert_eq!(self.socket.recv(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
    }

    /// Waits until the device has prepared its port for a driver.
    fn wait_configured(&self) {
        while self.log.lock().unwrap().attached.is_empty() {
            std::thread::yield_now();
        }
    }

    /// Every call of the port fails from now on.
    fn fail(&self, errno: i32) {
        self.log.lock().unwrap().error = Some(errno);
    }
}

fn ports(count: usize) -> (Backend, Vec<Host>) {
    let mut ports: Vec<Box<dyn Port>> = Vec::new();
    let mut hosts = Vec::new();
    for _ in 0..count {
        let (host, guest) = UnixDatagram::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let log = Arc::new(Mutex::new(Log::default()));
        ports.push(Box::new(FakePort { socket: guest, log: Arc::clone(&log) }));
        hosts.push(Host { socket: host, log });
    }
    (Backend { ports }, hosts)
}

fn config() -> NetConfig {
    let (rx_rate, tx_rate) = (RateLimit::default(), RateLimit::default());
    NetConfig { mac: MAC, mtu: MTU, rx_rate, tx_rate }
}

/// A machine with an interface of `count` queue pairs, not started.
fn slot(config: NetConfig, count: usize) -> (Machine<Net>, Vec<Host>) {
    let mut machine = Machine::new(Net::new(&no_hook()).unwrap());
    let (backend, hosts) = ports(count);
    machine.transport.replace(|net| net.attach(config, backend)).unwrap();
    (machine, hosts)
}

/// A running machine with one pair, whose driver has accepted `features`.
fn machine_with(config: NetConfig, features: u64) -> (Machine<Net>, Host) {
    let (mut machine, mut hosts) = slot(config, 1);
    machine.start(features);
    hosts[0].wait_configured();
    (machine, hosts.remove(0))
}

fn machine() -> (Machine<Net>, Host) {
    machine_with(config(), u64::MAX)
}

/// A frame that differs in every byte from its shifted self.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

/// Puts header and frame into guest memory and offers them as `descs` cuts them.
fn offer_packet(machine: &mut Machine<Net>, queue: usize, header: Header, frame: &[u8]) -> u16 {
    machine.memory.write_slice(header.as_bytes(), GuestAddress(TX)).unwrap();
    machine.memory.write_slice(frame, GuestAddress(TX + 0x1000)).unwrap();
    let len = frame.len() as u32;
    machine.queues[queue].offer(&[readable(TX, 12), readable(TX + 0x1000, len)])
}

/// Offers `count` receive buffers of `len` bytes, one after the other, from `RX` on.
fn offer_buffers(machine: &mut Machine<Net>, queue: usize, count: u64, len: u32) {
    for index in 0..count {
        machine.queues[queue].offer(&[writable(RX + index * u64::from(len), len)]);
    }
    machine.kick(queue as u32);
}

/// What lies in guest memory at `RX`.
fn received(machine: &Machine<Net>, len: usize) -> (Header, Vec<u8>) {
    let mut bytes = vec![0; HEADER_BYTES + len];
    machine.memory.read_slice(&mut bytes, GuestAddress(RX)).unwrap();
    let frame = bytes.split_off(HEADER_BYTES);
    let mut header = Header::default();
    header.as_mut_bytes().copy_from_slice(&bytes);
    (header, frame)
}

#[test]
fn packet_of_the_guest_reaches_the_host_whole() {
    let (mut machine, host) = machine();
    let sent = frame(1514, 1);
    let head = offer_packet(&mut machine, 1, Header::default(), &sent);
    machine.kick(1);
    assert_eq!(host.receive(), (vec![0; 12], sent));
    assert_eq!(machine.wait_used(1, 1), [(u32::from(head), 0)]);
}

#[test]
fn packet_in_many_descriptors_with_a_split_header_reaches_the_host_whole() {
    let (mut machine, host) = machine();
    let sent = frame(900, 2);
    let header = [0; HEADER_BYTES];
    machine.memory.write_slice(&[&header[..], &sent].concat(), GuestAddress(TX)).unwrap();
    let cuts = [0, 5, 11, 30, 31, 500, 912];
    let descs: Vec<Desc> =
        cuts.windows(2).map(|cut| readable(TX + cut[0], (cut[1] - cut[0]) as u32)).collect();
    machine.queues[1].offer(&descs);
    machine.kick(1);
    assert_eq!(host.receive().1, sent);
}

#[test]
fn packet_of_the_host_fills_one_buffer() {
    let (mut machine, host) = machine();
    offer_buffers(&mut machine, 0, 4, 2048);
    let sent = frame(700, 3);
    host.send(&sent);
    assert_eq!(machine.wait_used(0, 1), [(0, 712)]);
    let (header, got) = received(&machine, 700);
    assert_eq!((header.num_buffers.get(), got), (1, sent));
}

#[test]
fn packet_larger_than_a_buffer_is_merged_from_several() {
    let (mut machine, host) = machine();
    offer_buffers(&mut machine, 0, 50, 1500);
    let sent = frame(60_000, 4);
    host.send(&sent);
    let used = machine.wait_used(0, 41);
    let lengths: Vec<u32> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(lengths[..40], [1500; 40]);
    assert_eq!(lengths[40..], [60_012 - 40 * 1500]);
    let (header, got) = received(&machine, 60_000);
    assert_eq!(header.num_buffers.get(), 41);
    assert!(got == sent);
}

#[test]
fn packet_that_lacks_buffers_waits_for_them() {
    let (mut machine, host) = machine();
    offer_buffers(&mut machine, 0, 2, 1000);
    let sent = frame(4000, 5);
    host.send(&sent);
    let more = frame(100, 6);
    host.send(&more);
    // Seen from here there is no telling when the packet has been read; either way it arrives.
    for index in 2..6 {
        machine.queues[0].offer(&[writable(RX + index * 1000, 1000)]);
        machine.kick(0);
    }
    let used = machine.wait_used(0, 6);
    let lengths: Vec<u32> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(lengths, [1000, 1000, 1000, 1000, 12, 112]);
    assert!(received(&machine, 4000).1 == sent);
}

#[test]
fn packet_beyond_all_buffers_of_the_ring_is_dropped_and_the_next_received() {
    let (mut machine, host) = machine();
    machine.queue_size_max = 4;
    machine.start(u64::MAX);
    offer_buffers(&mut machine, 0, 4, 1000);
    host.send(&frame(5000, 7));
    let sent = frame(500, 8);
    host.send(&sent);
    assert_eq!(machine.wait_used(0, 1), [(0, 512)]);
    assert!(received(&machine, 500).1 == sent);
    machine.transport.pause();
    let counts = machine.transport.device().counts().unwrap();
    assert_eq!((counts.rx_dropped, counts.rx_packets, counts.rx_bytes), (1, 1, 500));
}

#[test]
fn packet_without_merging_has_one_buffer_or_is_dropped() {
    let features = !(1 << VIRTIO_NET_F_MRG_RXBUF);
    let (mut machine, host) = machine_with(config(), features);
    offer_buffers(&mut machine, 0, 2, 1600);
    host.send(&frame(1600, 9));
    let sent = frame(1514, 10);
    host.send(&sent);
    assert_eq!(machine.wait_used(0, 1), [(0, 1526)]);
    let (header, got) = received(&machine, 1514);
    assert_eq!(header.num_buffers.get(), 1);
    assert!(got == sent);
}

#[test]
fn packets_that_come_before_buffers_are_received_with_them() {
    let (mut machine, host) = machine();
    for seed in 0..10 {
        host.send(&frame(64, seed));
    }
    offer_buffers(&mut machine, 0, 10, 2048);
    assert_eq!(machine.wait_used(0, 10).len(), 10);
}

#[test]
fn batch_interrupts_once() {
    let (mut machine, host) = machine();
    machine.transport.pause();
    for seed in 0..20 {
        host.send(&frame(64, seed));
    }
    offer_buffers(&mut machine, 0, 40, 2048);
    machine.transport.resume().unwrap();
    assert_eq!(machine.line.read().unwrap(), 1);
    assert_eq!(machine.queues[0].take_used().len(), 20, "shown together");
}

#[test]
fn configuration_tells_address_link_and_mtu() {
    let (mut machine, _host) = machine();
    let mut space = [0xff; 16];
    crate::bus::BusDevice::read(&mut machine.transport, 0x100, &mut space);
    assert_eq!(space[..6], MAC);
    assert_eq!(space[6..12], [1, 0, 1, 0, 0xdc, 0x05]);
    assert_eq!(space[12..], [0; 4]);
}

#[test]
fn offloads_of_the_tap_are_what_the_driver_accepted() {
    let (_machine, host) = machine();
    let (_plain, plain) = machine_with(config(), 0);
    let (_checksum, checksum) =
        machine_with(config(), 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4);
    for (host, flags) in [
        (host, libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN),
        (plain, 0),
        (checksum, libc::TUN_F_CSUM | libc::TUN_F_TSO4),
    ] {
        assert_eq!(host.log.lock().unwrap().offloads, [flags]);
    }
}

fn sent(features: u32, header: Header, frame_bytes: usize) -> Option<Header> {
    Offloads::new(u64::from(features)).sent(header, frame_bytes)
}

#[test]
fn header_is_passed_on_only_as_agreed() {
    let checksum =
        Header { flags: 1, csum_start: 34.into(), csum_offset: 16.into(), ..Header::default() };
    let tso = Header { gso_type: 1, hdr_len: 54.into(), gso_size: 1448.into(), ..checksum };
    let (csum, tso4, ecn) =
        (1 << VIRTIO_NET_F_CSUM, 1 << VIRTIO_NET_F_HOST_TSO4, 1 << VIRTIO_NET_F_HOST_ECN);
    assert_eq!(sent(csum, checksum, 60), Some(checksum));
    assert_eq!(sent(csum | tso4, tso, 60_000), Some(tso));
    assert_eq!(
        sent(csum | tso4 | ecn, Header { gso_type: 0x81, ..tso }, 60_000).map(|h| h.gso_type),
        Some(0x81)
    );

    assert_eq!(sent(0, checksum, 60), None, "no checksum was agreed on");
    assert_eq!(sent(csum, tso, 60_000), None, "no segmentation was agreed on");
    assert_eq!(sent(csum | tso4, Header { gso_type: 0x81, ..tso }, 60_000), None);
    assert_eq!(sent(csum | tso4, Header { gso_type: 4, ..tso }, 60_000), None);
    assert_eq!(sent(csum | tso4, Header { gso_type: 3, ..tso }, 60_000), None);
    assert_eq!(sent(csum | tso4, Header { flags: 0, ..tso }, 60_000), None);
    assert_eq!(sent(csum | tso4, Header { gso_size: 0.into(), ..tso }, 60_000), None);
    assert_eq!(sent(csum | tso4, tso, 53), None, "headers longer than the frame");
    assert_eq!(sent(csum, checksum, 51), None, "a checksum behind the frame");
    assert_eq!(sent(csum, checksum, 13), None, "no Ethernet header");
    assert_eq!(sent(csum, checksum, FRAME_MAX + 1), None);
    let unknown = Header { flags: 0xfe, num_buffers: 9.into(), ..Header::default() };
    assert_eq!(sent(csum, unknown, 60), Some(Header::default()));
}

proptest! {
    #[test]
    fn header_that_passes_stays_within_frame_and_agreement(
        bytes: [u8; HEADER_BYTES], features: u32, frame_bytes in 0..70_000_usize,
    ) {
        let mut header = Header::default();
        header.as_mut_bytes().copy_from_slice(&bytes);
        let Some(out) = sent(features, header, frame_bytes) else { return Ok(()) };
        prop_assert!((14..=FRAME_MAX).contains(&frame_bytes));
        prop_assert_eq!(out.num_buffers.get(), 0);
        if out == Header::default() { return Ok(()) }
        prop_assert_eq!(out.flags, 1);
        prop_assert!(features & 1 << VIRTIO_NET_F_CSUM != 0);
        prop_assert!(usize::from(out.csum_start) + usize::from(out.csum_offset) + 2 <= frame_bytes);
        match out.gso_type & 0x7f {
            0 => prop_assert_eq!((out.gso_type, out.gso_size.get(), out.hdr_len.get()), (0, 0, 0)),
            1 => prop_assert!(features & 1 << VIRTIO_NET_F_HOST_TSO4 != 0),
            4 => prop_assert!(features & 1 << VIRTIO_NET_F_HOST_TSO6 != 0),
            other => prop_assert!(false, "gso_type {}", other),
        }
        prop_assert!(usize::from(out.hdr_len) <= frame_bytes);
        prop_assert!(out.gso_type == 0 || out.gso_size.get() > 0);
        prop_assert!(out.gso_type & 0x80 == 0 || features & 1 << VIRTIO_NET_F_HOST_ECN != 0);
    }
}
