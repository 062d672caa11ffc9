//! A guest driver as a model: real rings in guest memory, packets sent and received one by one.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use crate::virtio::testing::{BUFFERS, Machine, no_hook, readable, writable};
use crate::virtio::vsock::packet::{
    BufferState, HEADER_BYTES, HOST_CID, Header, Op, Ports, Shutdown,
};
use crate::virtio::vsock::{Backend, Vsock};

pub const GUEST_CID: u64 = 3;
/// Size of a buffer for a received packet.
pub const RX_BYTES: u64 = 4096;
/// Largest payload of a packet sent.
pub const TX_BYTES: usize = 32 << 10;
const TX_BUFFERS: u64 = BUFFERS + 0x10_0000;
/// Where the guest puts the buffers for events.
const EVENT_BUFFERS: u64 = BUFFERS + 0x0f_0000;
/// Packets in flight to the device: each takes two of 64 descriptors.
const TX_SLOTS: u64 = 32;
/// How long a test waits before it gives up. Nothing takes that long unless it hangs.
const GIVE_UP: Duration = Duration::from_secs(120);

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;

/// A packet from the device.
#[derive(Debug, Clone)]
pub struct Received {
    pub header: Header,
    pub payload: Vec<u8>,
}

impl Received {
    pub fn op(&self) -> u16 {
        self.header.op.get()
    }

    pub fn is(&self, op: Op) -> bool {
        self.op() == op as u16
    }

    pub fn ports(&self) -> Ports {
        Ports { host: self.header.src_port.get(), guest: self.header.dst_port.get() }
    }
}

pub struct Guest {
    pub machine: Machine<Vsock>,
    /// Give buffers back as soon as they were read.
    pub refills: bool,
    /// Size of buffers that are given.
    pub rx_bytes: u32,
    rx_withheld: u64,
    rx_next: u64,
    tx_sent: u64,
    tx_done: u64,
    /// Chains of the rx and tx queues that have come back.
    used: [u16; 2],
    inbox: VecDeque<Received>,
}

impl Guest {
    /// A device with `backend` and its driver, not started.
    pub fn stopped(backend: Option<Backend>) -> Self {
        let device = Vsock::new(GUEST_CID, backend, &no_hook()).unwrap();
        Self {
            machine: Machine::new(device),
            refills: true,
            rx_bytes: RX_BYTES as u32,
            rx_withheld: 0,
            rx_next: 0,
            tx_sent: 0,
            tx_done: 0,
            used: [0; 2],
            inbox: VecDeque::new(),
        }
    }

    pub fn started(backend: Backend) -> Self {
        let mut guest = Self::stopped(Some(backend));
        guest.start();
        guest
    }

    /// Resets the device and makes it ready, with all buffers given.
    pub fn start(&mut self) {
        self.start_without_buffers();
        self.give(u64::from(self.machine.queues[RX].size));
    }

    pub fn start_without_buffers(&mut self) {
        self.machine.start(0);
        (self.rx_next, self.tx_sent, self.tx_done) = (0, 0, 0);
        self.rx_withheld = u64::from(self.machine.queues[RX].size);
        self.used = [0; 2];
        self.inbox.clear();
    }

    /// Gives `count` of the withheld buffers for packets.
    pub fn give(&mut self, count: u64) {
        assert!(count <= self.rx_withheld);
        for _ in 0..count {
            let buffer = writable(self.rx_address(), self.rx_bytes);
            self.machine.queues[RX].offer(&[buffer]);
            self.rx_next += 1;
        }
        self.rx_withheld -= count;
        self.machine.kick(RX as u32);
    }

    fn rx_address(&self) -> u64 {
        BUFFERS + self.rx_next % u64::from(self.machine.queues[RX].size) * RX_BYTES
    }

    /// Buffers that the guest has and could give.
    pub fn withheld(&self) -> u64 {
        self.rx_withheld
    }

    /// Buffers for packets that there are.
    pub fn buffers(&self) -> u64 {
        u64::from(self.machine.queues[RX].size)
    }

    /// Whether packets were received that nobody has looked at.
    pub fn has_inbox(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// A header of the guest for `ports`.
    pub fn header(ports: Ports, op: Op, buffer: BufferState) -> Header {
        Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: ports.guest.into(),
            dst_port: ports.host.into(),
            kind: 1.into(),
            op: (op as u16).into(),
            buf_alloc: buffer.buf_alloc.into(),
            fwd_cnt: buffer.fwd_cnt.into(),
            ..Header::default()
        }
    }

    /// Sends a packet as it is; `header.len` is not looked at.
    pub fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        while self.tx_sent - self.tx_done == TX_SLOTS {
            self.wait();
        }
        let base = TX_BUFFERS + self.tx_sent % TX_SLOTS * (TX_BYTES as u64 + 64);
        self.machine.memory.write_slice(payload, GuestAddress(base + 64)).unwrap();
        // Always two descriptors, so that a slot is always the same two.
        self.send_chain(header.as_bytes(), [HEADER_BYTES as u32, payload.len() as u32]);
    }

    /// Offers a chain of two readable buffers of any length, the first with a header.
    pub fn send_chain(&mut self, header: &[u8], lengths: [u32; 2]) {
        while self.tx_sent - self.tx_done == TX_SLOTS {
            self.wait();
        }
        let base = TX_BUFFERS + self.tx_sent % TX_SLOTS * (TX_BYTES as u64 + 64);
        self.machine.memory.write_slice(header, GuestAddress(base)).unwrap();
        self.machine.queues[TX]
            .offer(&[readable(base, lengths[0]), readable(base + 64, lengths[1])]);
        self.tx_sent += 1;
        self.machine.kick(TX as u32);
    }

    /// Chains of the tx queue that the device has not returned.
    pub fn unreturned(&mut self) -> u64 {
        self.look();
        self.tx_sent - self.tx_done
    }

    /// Waits until the device has returned all chains of the tx queue.
    pub fn settle(&mut self) {
        while self.unreturned() > 0 {
            self.wait();
        }
    }

    pub fn send(&mut self, ports: Ports, op: Op, buffer: BufferState) {
        self.send_raw(&Self::header(ports, op, buffer), &[]);
    }

    pub fn send_data(&mut self, ports: Ports, buffer: BufferState, data: &[u8]) {
        let mut header = Self::header(ports, Op::Rw, buffer);
        header.len = (data.len() as u32).into();
        self.send_raw(&header, data);
    }

    pub fn send_shutdown(&mut self, ports: Ports, buffer: BufferState, what: Shutdown) {
        let mut header = Self::header(ports, Op::Shutdown, buffer);
        header.flags = what.flags().into();
        self.send_raw(&header, &[]);
    }

    /// The next packet from the device.
    pub fn receive(&mut self) -> Received {
        loop {
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            self.wait();
        }
    }

    /// A packet that is there already.
    pub fn try_receive(&mut self) -> Option<Received> {
        if self.inbox.is_empty() {
            self.look();
        }
        self.inbox.pop_front()
    }

    /// The next packet, which must be `op`.
    pub fn expect(&mut self, op: Op) -> Received {
        let packet = self.receive();
        assert!(packet.is(op), "expected {op:?}, got {packet:?}");
        packet
    }

    /// Waits for a `TRANSPORT_RESET` event, for which it gives one buffer.
    pub fn receive_event(&mut self) -> Vec<u8> {
        let zeroes = [0xff; 8];
        self.machine.memory.write_slice(&zeroes, GuestAddress(EVENT_BUFFERS)).unwrap();
        self.machine.queues[EVENT].offer(&[writable(EVENT_BUFFERS, 8)]);
        self.machine.kick(EVENT as u32);
        loop {
            if let Some(&(_, len)) = self.machine.queues[EVENT].take_used().first() {
                let mut data = vec![0; len as usize];
                self.machine.memory.read_slice(&mut data, GuestAddress(EVENT_BUFFERS)).unwrap();
                return data;
            }
            self.wait();
        }
    }

    /// Takes what the device has returned, and says from where on it wants interrupts.
    fn look(&mut self) {
        for queue in [RX, TX] {
            loop {
                let used = self.machine.queues[queue].take_used();
                self.used[queue] = self.used[queue].wrapping_add(used.len() as u16);
                self.want_interrupt_after(queue);
                if used.is_empty() {
                    break;
                }
                if queue == TX {
                    self.tx_done += used.len() as u64;
                    continue;
                }
                for (head, len) in used {
                    self.take_packet(head, len);
                }
            }
        }
    }

    /// Writes `used_event` (virtio 1.2, section 2.7.7). What the device has returned since is
    /// seen by a look afterwards.
    fn want_interrupt_after(&self, queue: usize) {
        let driver = &self.machine.queues[queue];
        let at = driver.available + 4 + u64::from(driver.size) * 2;
        driver.memory.write_obj(self.used[queue], GuestAddress(at)).unwrap();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    fn take_packet(&mut self, head: u32, len: u32) {
        self.rx_withheld += 1;
        if len > 0 {
            let mut bytes = vec![0; len as usize];
            let address = BUFFERS + u64::from(head) * RX_BYTES;
            self.machine.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            let (header, payload) = Header::read_from_prefix(&bytes).unwrap();
            assert_eq!(header.len.get() as usize, payload.len());
            assert_eq!(header.dst_cid.get(), GUEST_CID);
            let payload = payload.to_vec();
            self.inbox.push_back(Received { header, payload });
        }
        if self.refills {
            self.give(1);
        }
    }

    /// Waits for an interrupt.
    fn wait(&mut self) {
        let mut poll =
            libc::pollfd { fd: self.machine.line.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd.
        let ready = unsafe { libc::poll(&mut poll, 1, GIVE_UP.as_millis() as i32) };
        assert_eq!(ready, 1, "the device is silent");
        self.machine.line.read().unwrap();
        let status = self.machine.read(0x60);
        self.machine.write(0x64, status);
        self.look();
    }
}

/// The host's side: a listening socket in a directory of its own.
pub struct Host {
    directory: TempDir,
}

impl Host {
    pub fn new() -> (Self, Backend) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("v")).unwrap();
        (Self { directory }, Backend::new(Some(listener), Vec::new()).unwrap())
    }

    /// A client that has said nothing.
    pub fn client(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("v")).unwrap();
        stream.set_read_timeout(Some(GIVE_UP)).unwrap();
        stream.set_write_timeout(Some(GIVE_UP)).unwrap();
        stream
    }

    /// A client that asks for `port`.
    pub fn connect(&self, port: u32) -> UnixStream {
        let mut stream = self.client();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        stream
    }
}

/// A large buffer of the guest, which it never fills.
pub const ROOMY: BufferState = BufferState { buf_alloc: 1 << 30, fwd_cnt: 0 };

/// A connection that a client asks for and the guest accepts.
pub fn connected(guest: &mut Guest, host: &Host, buffer: BufferState) -> (UnixStream, Ports) {
    let mut stream = host.connect(1024);
    let ports = guest.expect(Op::Request).ports();
    guest.send(ports, Op::Response, buffer);
    assert_eq!(read_line(&mut stream), format!("OK {}\n", ports.host));
    (stream, ports)
}

/// Reads a line byte by byte.
pub fn read_line(stream: &mut UnixStream) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(char::from(byte[0]));
    }
    line
}

/// Reads to the end of the stream.
pub fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    data
}

/// Bytes that tell their place and whose they are.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| ((at ^ (at >> 8) ^ (at >> 16)).wrapping_mul(31) + seed * 7) as u8)
        .collect()
}
