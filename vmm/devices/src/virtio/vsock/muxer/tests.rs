//! Guest and host do anything in any order: the muxer keeps its bounds, and every byte that
//! arrives is the one that was sent at its place.

use std::io::{Read, Write};
use std::net::Shutdown as Half;
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::virtio::Interrupt;
use crate::virtio::chain::{ChainQueue, IoVectors};
use crate::virtio::testing::{BUFFERS, DriverQueue, memory, readable, writable};
use crate::virtio::vsock::packet::{BufferState, HEADER_BYTES, HOST_CID, Shutdown};

const GUEST_CID: u64 = 3;
const RX_BYTES: u64 = 4096;
const TX_BUFFER: u64 = BUFFERS + 0x10_0000;
const TX_BYTES: u32 = 64 << 10;
const QUEUE_SIZE: u16 = 64;

/// One byte of a stream, by its place.
fn byte_at(place: u32) -> u8 {
    (place.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

fn bytes_at(place: u32, len: u32) -> Vec<u8> {
    (0..len).map(|at| byte_at(place.wrapping_add(at))).collect()
}

#[derive(Debug, Clone)]
enum Action {
    /// The guest sends a packet on connection `which`, of those that it knows.
    Packet {
        which: usize,
        op: u16,
        len: u32,
        flags: u32,
        room: u32,
    },
    /// The guest sends payload within its credit, as far as it has some.
    Data {
        which: usize,
        len: u32,
    },
    /// The guest sends a packet to nobody.
    Stray {
        port: u32,
        op: u16,
    },
    /// The guest gives buffers.
    Give(u16),
    Connect,
    Write {
        which: usize,
        len: u32,
    },
    Read {
        which: usize,
        len: usize,
    },
    HalfClose {
        which: usize,
    },
    Close {
        which: usize,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let which = 0usize..4;
    prop_oneof![
        2 => (which.clone(), 0u16..9, 0u32..100, 0u32..4, 0u32..100_000).prop_map(
            |(which, op, len, flags, room)| Action::Packet { which, op, len, flags, room }
        ),
        6 => (which.clone(), prop_oneof![0u32..100, 0u32..TX_BYTES])
            .prop_map(|(which, len)| Action::Data { which, len }),
        1 => (0u32..5, 0u16..9).prop_map(|(port, op)| Action::Stray { port, op }),
        4 => (0u16..64).prop_map(Action::Give),
        2 => Just(Action::Connect),
        6 => (which.clone(), prop_oneof![0u32..100, 0u32..200_000])
            .prop_map(|(which, len)| Action::Write { which, len }),
        4 => (which.clone(), 0usize..400_000).prop_map(|(which, len)| Action::Read { which, len }),
        1 => which.clone().prop_map(|which| Action::HalfClose { which }),
        1 => which.prop_map(|which| Action::Close { which }),
    ]
}

/// Both ends of a connection, outside of the muxer.
struct Ends {
    client: Option<UnixStream>,
    guest_port: u32,
    host_port: Option<u32>,
    /// Places in the two streams.
    host_sent: u32,
    guest_received: u32,
    guest_sent: u32,
    host_received: u32,
    /// `OK <port>\n` was read.
    greeted: bool,
    /// What the guest has said of its own end.
    guest_ended: Shutdown,
    /// What the device says of its buffer.
    device: BufferState,
    room: u32,
}

struct World {
    memory: GuestMemoryMmap,
    muxer: Muxer,
    rx: RxQueue,
    tx: ChainQueue,
    rx_driver: DriverQueue,
    tx_driver: DriverQueue,
    vectors: IoVectors,
    directory: TempDir,
    given: u16,
    next_buffer: u64,
    next_port: u32,
    ends: Vec<Ends>,
}

impl World {
    fn new() -> Self {
        let memory = memory();
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("v")).unwrap();
        let mut muxer = Muxer::new(GUEST_CID).unwrap();
        muxer.set_backend(Backend::new(Some(listener), Vec::new()).unwrap()).unwrap();
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let rx_driver = DriverQueue::new(&memory, 0, QUEUE_SIZE);
        let tx_driver = DriverQueue::new(&memory, 1, QUEUE_SIZE);
        let rx = ChainQueue::new(rx_driver.device_side(false), interrupt.clone());
        let tx = ChainQueue::new(tx_driver.device_side(false), interrupt);
        Self {
            rx: RxQueue::new(memory.clone(), rx),
            memory,
            muxer,
            tx,
            rx_driver,
            tx_driver,
            vectors: IoVectors::default(),
            directory,
            given: 0,
            next_buffer: 0,
            next_port: 1,
            ends: Vec::new(),
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Packet { which, op, len, flags, room } => {
                self.send_packet(which, op, len, flags, room);
            }
            Action::Data { which, len } => self.send_data(which, len),
            Action::Stray { port, op } => {
                let mut header = Header { src_port: port.into(), ..Header::default() };
                header.op = op.into();
                self.send(&header, &[]);
            }
            Action::Give(count) => self.give(count),
            Action::Connect => self.connect(),
            Action::Write { which, len } => self.write(which, len),
            Action::Read { which, len } => self.read(which, len),
            Action::HalfClose { which } => {
                if let Some(Ends { client: Some(client), .. }) = self.ends.get(which) {
                    let _ = client.shutdown(Half::Write);
                }
            }
            Action::Close { which } => {
                if let Some(ends) = self.ends.get_mut(which) {
                    ends.client = None;
                }
            }
        }
        self.run();
        self.check();
    }

    /// Lets the muxer do all that it can.
    fn run(&mut self) {
        self.rx.acknowledge_kick();
        loop {
            self.muxer.poll().unwrap();
            let mut served = 0;
            while self.muxer.serve_next(&mut self.rx) == Step::Served {
                served += 1;
                assert!(served < 10_000, "turns without end");
            }
            self.muxer.listen_again();
            if !self.take_packets() && served == 0 {
                return;
            }
        }
    }

    fn check(&self) {
        let muxer = &self.muxer;
        let members: Vec<(Token, &Member)> = muxer
            .peers
            .iter()
            .filter_map(|(token, peer)| match peer {
                Peer::Connection(member) => Some((token, member)),
                _ => None,
            })
            .collect();
        assert_eq!(members.len(), muxer.index.len());
        assert!(muxer.connections() <= MAX_CONNECTIONS);
        assert!(muxer.clients <= MAX_CLIENTS);
        assert!(muxer.resets.len() <= MAX_RESETS + MAX_CONNECTIONS);
        assert_eq!(members.iter().filter(|(_, member)| member.queued).count(), muxer.run.len());
        for (token, member) in members {
            assert_eq!(muxer.index.get(&member.connection.ports()), Some(&token));
            // Whoever has something for the guest waits in the queue for a buffer.
            assert_eq!(member.queued, member.connection.has_work());
            assert_eq!(member.watches_room, member.connection.waits_for_room());
            assert!(member.connection.held_bytes() <= WIDE_WINDOW_BYTES as usize);
        }
        assert!(self.tx_driver_is_empty());
    }

    fn tx_driver_is_empty(&self) -> bool {
        let offered: u16 =
            self.memory.read_obj(GuestAddress(self.tx_driver.available + 2)).unwrap();
        let used: u16 = self.memory.read_obj(GuestAddress(self.tx_driver.used + 2)).unwrap();
        offered == used
    }

    fn give(&mut self, count: u16) {
        for _ in 0..count.min(QUEUE_SIZE - self.given) {
            let address = BUFFERS + self.next_buffer % u64::from(QUEUE_SIZE) * RX_BYTES;
            // Sizes that divide nothing.
            let len = RX_BYTES as u32 - (self.next_buffer as u32 * 37) % 2000;
            self.rx_driver.offer(&[writable(address, len)]);
            self.next_buffer += 1;
            self.given += 1;
        }
    }

    /// Takes what came to the guest. True if there was something.
    fn take_packets(&mut self) -> bool {
        let used = self.rx_driver.take_used();
        let any = !used.is_empty();
        for (head, len) in used {
            self.given -= 1;
            let mut bytes = vec![0; len as usize];
            let address = BUFFERS + u64::from(head) * RX_BYTES;
            self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            let (header, payload) = Header::read_from_prefix(&bytes).unwrap();
            self.take_packet(&header, payload);
        }
        any
    }

    fn take_packet(&mut self, header: &Header, payload: &[u8]) {
        assert_eq!(header.len.get() as usize, payload.len());
        let guest_port = header.dst_port.get();
        let Some(ends) = self.ends.iter_mut().find(|ends| ends.guest_port == guest_port) else {
            return;
        };
        ends.device =
            BufferState { buf_alloc: header.buf_alloc.get(), fwd_cnt: header.fwd_cnt.get() };
        match header.op.get() {
            1 => ends.host_port = Some(header.src_port.get()),
            5 => {
                let len = payload.len() as u32;
                assert_eq!(payload, bytes_at(ends.guest_received, len));
                ends.guest_received += len;
                assert!(ends.guest_received <= ends.room, "more than the guest had room for");
                assert!(!ends.guest_ended.receive);
            }
            4 if header.flags.get() & 2 != 0 => {
                // After the end there is nothing more.
                assert!(ends.client.is_none() || ends.guest_received == ends.host_sent);
            }
            _ => {}
        }
    }

    fn connect(&mut self) {
        if self.ends.len() == 4 {
            return;
        }
        let mut client = UnixStream::connect(self.directory.path().join("v")).unwrap();
        client.set_nonblocking(true).unwrap();
        client.write_all(format!("CONNECT {}\n", self.next_port).as_bytes()).unwrap();
        self.ends.push(Ends {
            client: Some(client),
            guest_port: self.next_port,
            host_port: None,
            host_sent: 0,
            guest_received: 0,
            guest_sent: 0,
            host_received: 0,
            greeted: false,
            guest_ended: Shutdown::default(),
            device: BufferState { buf_alloc: WIDE_WINDOW_BYTES, fwd_cnt: 0 },
            room: 0,
        });
        self.next_port += 1;
    }

    fn write(&mut self, which: usize, len: u32) {
        let Some(ends) = self.ends.get_mut(which) else { return };
        let Some(client) = &mut ends.client else { return };
        if let Ok(count) = client.write(&bytes_at(ends.host_sent, len)) {
            ends.host_sent += count as u32;
        }
    }

    fn read(&mut self, which: usize, len: usize) {
        let Some(ends) = self.ends.get_mut(which) else { return };
        let Some(client) = &mut ends.client else { return };
        if !ends.greeted {
            let Some(host_port) = ends.host_port else { return };
            let mut line = vec![0; format!("OK {host_port}\n").len()];
            match client.read(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => assert_eq!(line, format!("OK {host_port}\n").as_bytes()),
            }
            ends.greeted = true;
        }
        let mut data = vec![0; len];
        if let Ok(count) = client.read(&mut data) {
            assert!(data[..count] == bytes_at(ends.host_received, count as u32));
            ends.host_received += count as u32;
        }
    }

    fn header(&self, which: usize, op: u16) -> Option<Header> {
        let ends = self.ends.get(which)?;
        Some(Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: ends.guest_port.into(),
            dst_port: ends.host_port?.into(),
            kind: 1.into(),
            op: op.into(),
            buf_alloc: (ends.room - ends.guest_received).into(),
            fwd_cnt: ends.guest_received.into(),
            ..Header::default()
        })
    }

    /// Any operation, without payload. `room` is what the guest says that it has; in a packet of no
    /// operation it says nothing.
    fn send_packet(&mut self, which: usize, op: u16, len: u32, flags: u32, room: u32) {
        let Some(mut header) = self.header(which, op) else { return };
        let ends = &mut self.ends[which];
        if header.check(GUEST_CID).is_ok() {
            ends.room = ends.guest_received + room;
        }
        header.buf_alloc = room.into();
        header.flags = flags.into();
        if op == Op::Shutdown as u16 {
            ends.guest_ended = ends.guest_ended.union(Shutdown::from_flags(flags));
        }
        if op == Op::Rw as u16 {
            // Claims bytes that are not there, unless it claims none.
            header.len = len.into();
        }
        self.send(&header, &[]);
    }

    fn send_data(&mut self, which: usize, len: u32) {
        let Some(mut header) = self.header(which, Op::Rw as u16) else { return };
        let ends = &mut self.ends[which];
        if ends.guest_ended.send {
            return;
        }
        let held = ends.guest_sent - ends.device.fwd_cnt;
        let len = len.min(ends.device.buf_alloc.saturating_sub(held));
        let data = bytes_at(ends.guest_sent, len);
        ends.guest_sent += len;
        header.len = len.into();
        self.send(&header, &data);
    }

    fn send(&mut self, header: &Header, payload: &[u8]) {
        if !self.muxer.takes_packets() {
            return;
        }
        self.memory.write_slice(header.as_bytes(), GuestAddress(TX_BUFFER)).unwrap();
        self.memory.write_slice(payload, GuestAddress(TX_BUFFER + 64)).unwrap();
        // The header is cut where no driver would cut it.
        self.tx_driver.offer(&[
            readable(TX_BUFFER, 10),
            readable(TX_BUFFER + 10, HEADER_BYTES as u32 - 10),
            readable(TX_BUFFER + 64, payload.len() as u32),
        ]);
        self.tx.acknowledge_kick(&self.memory);
        while let Some(chain) = self.tx.pop(&self.memory) {
            let header = chain.read_object::<Header>(&self.memory, 0).unwrap();
            let (memory, vectors) = (&self.memory, &mut self.vectors);
            self.muxer.receive(&header, |len| Payload::new(memory, &chain, len, vectors));
            self.tx.complete(&self.memory, chain, 0);
        }
    }
}

/// What a quiet end must look like: all that was sent has arrived.
fn settle(world: &mut World) {
    for which in 0..world.ends.len() {
        if !world.ends[which].greeted && world.ends[which].host_port.is_some() {
            world.send_packet(which, Op::Response as u16, 0, 0, 1 << 20);
        }
    }
    // Each lap empties every socket.
    for _ in 0..16 {
        world.give(QUEUE_SIZE);
        world.run();
        for which in 0..world.ends.len() {
            world.read(which, 256 << 10);
            world.run();
        }
    }
}

/// Found by the test below, whose guest took its word in a refused packet for given.
#[test]
fn room_told_in_a_packet_of_no_operation_is_not_taken() {
    let mut world = World::new();
    let packet = |op: u16, room| Action::Packet { which: 0, op, len: 0, flags: 0, room };
    for action in [
        Action::Connect,
        Action::Give(13),
        packet(Op::Response as u16, 30_295),
        packet(0, 10),
        packet(8, 50_000),
        Action::Write { which: 0, len: 183_735 },
    ] {
        world.act(&action);
    }
    assert_eq!(world.ends[0].guest_received, 30_295);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_actions_keep_bounds_and_bytes_in_order(
        actions in prop::collection::vec(action(), 1..120),
    ) {
        let mut world = World::new();
        for action in &actions {
            world.act(action);
        }
        settle(&mut world);
        world.check();
    }

    #[test]
    fn honest_guest_and_patient_host_lose_nothing(
        steps in prop::collection::vec(
            (0usize..4, any::<bool>(), 1u32..TX_BYTES, 0u16..64, 0usize..200_000),
            1..60,
        ),
    ) {
        let mut world = World::new();
        for _ in 0..4 {
            world.act(&Action::Connect);
        }
        world.act(&Action::Give(8));
        for which in 0..4 {
            let op = Op::Response as u16;
            world.act(&Action::Packet { which, op, len: 0, flags: 0, room: 1 << 28 });
        }
        for (which, host, len, buffers, read) in steps {
            world.act(&Action::Give(buffers));
            if host {
                world.act(&Action::Write { which, len });
            } else {
                world.act(&Action::Data { which, len });
            }
            world.act(&Action::Read { which, len: read });
        }
        settle(&mut world);
        for ends in &world.ends {
            prop_assert!(ends.greeted);
            prop_assert_eq!(ends.guest_received, ends.host_sent);
            prop_assert_eq!(ends.host_received, ends.guest_sent);
        }
    }
}
