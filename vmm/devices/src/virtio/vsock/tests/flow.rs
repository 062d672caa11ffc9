//! Credit, fairness and many bytes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::guest::{Guest, ROOMY, RX_BYTES, TX_BYTES, connected, pattern, read_all};
use super::{machine, receive_until_control};
use crate::virtio::vsock::muxer::WIDE_WINDOW_BYTES;
use crate::virtio::vsock::packet::{BufferState, HEADER_BYTES, Op, Ports, Shutdown};
use crate::virtio::vsock::peer::QUANTUM_BYTES;

/// The guest's end of a connection, which sends back what it gets.
struct Echo {
    window: u32,
    forwarded: u32,
    told: u32,
    sent: u32,
    device: BufferState,
    backlog: Vec<u8>,
    ended: bool,
}

impl Echo {
    fn new(window: u32) -> Self {
        Self {
            window,
            forwarded: 0,
            told: 0,
            sent: 0,
            device: BufferState::default(),
            backlog: Vec::new(),
            ended: false,
        }
    }

    fn buffer(&mut self) -> BufferState {
        self.told = self.forwarded;
        BufferState { buf_alloc: self.window, fwd_cnt: self.forwarded }
    }

    /// Sends back as much as the device has room for, in pieces of odd sizes.
    fn pump(&mut self, guest: &mut Guest, ports: Ports) {
        while !self.backlog.is_empty() {
            let room = self.device.buf_alloc - self.sent.wrapping_sub(self.device.fwd_cnt);
            let piece = 1 + (self.sent as usize * 7919) % (TX_BYTES - 1);
            let piece = piece.min(self.backlog.len()).min(room as usize);
            if piece == 0 {
                return;
            }
            let data: Vec<u8> = self.backlog.drain(..piece).collect();
            self.forwarded = self.forwarded.wrapping_add(piece as u32);
            self.sent = self.sent.wrapping_add(piece as u32);
            let buffer = self.buffer();
            guest.send_data(ports, buffer, &data);
        }
        if self.ended {
            let buffer = self.buffer();
            guest.send_shutdown(ports, buffer, Shutdown::BOTH);
            self.ended = false;
        }
    }
}

/// Runs echoes until the device has answered the end of each.
fn run_echoes(guest: &mut Guest, mut echoes: BTreeMap<u32, (Ports, Echo)>) {
    while !echoes.is_empty() {
        let packet = guest.receive();
        let host_port = packet.ports().host;
        let (ports, echo) = echoes.get_mut(&host_port).unwrap();
        echo.device = BufferState {
            buf_alloc: packet.header.buf_alloc.get(),
            fwd_cnt: packet.header.fwd_cnt.get(),
        };
        if packet.is(Op::Rw) {
            assert!(echo.backlog.len() + packet.payload.len() <= echo.window as usize);
            echo.backlog.extend(&packet.payload);
        } else if packet.is(Op::Shutdown) {
            echo.ended = true;
        } else if packet.is(Op::Rst) {
            assert!(echo.backlog.is_empty());
            echoes.remove(&host_port);
            continue;
        } else if packet.is(Op::CreditRequest) {
            let buffer = echo.buffer();
            guest.send(*ports, Op::CreditUpdate, buffer);
        }
        echo.pump(guest, *ports);
    }
}

/// Writes in odd pieces, ends its half, and checks that all of it comes back.
fn echo_client(mut stream: UnixStream, seed: u64, len: usize) {
    let data = pattern(seed, len);
    let mut writer = stream.try_clone().unwrap();
    let expected = data.clone();
    let writing = std::thread::spawn(move || {
        let mut rest = &data[..];
        let mut piece = 1;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(piece.min(rest.len()));
            writer.write_all(now).unwrap();
            piece = (piece * 3 + 1) % 70_001;
            rest = later;
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let echoed = read_all(&mut stream);
    writing.join().unwrap();
    assert!(echoed == expected, "{} bytes of {} came back", echoed.len(), expected.len());
}

#[test]
fn megabytes_in_odd_pieces_come_back_unchanged() {
    let (mut guest, host) = machine();
    let mut echoes = BTreeMap::new();
    let mut clients = Vec::new();
    for (seed, window) in [(1, 256 << 10), (2, 5000), (3, 64 << 10)] {
        let mut echo = Echo::new(window);
        let (stream, ports) = connected(&mut guest, &host, echo.buffer());
        echo.device.buf_alloc = WIDE_WINDOW_BYTES;
        echoes.insert(ports.host, (ports, echo));
        clients.push(std::thread::spawn(move || echo_client(stream, seed, 3 << 20)));
    }
    run_echoes(&mut guest, echoes);
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn credit_of_guest_is_never_exceeded_and_asked_for_once() {
    let (mut guest, host) = machine();
    let buffer = |fwd_cnt| BufferState { buf_alloc: 1000, fwd_cnt };
    let (mut client, ports) = connected(&mut guest, &host, buffer(0));
    let data = pattern(1, 2500);
    client.write_all(&data).unwrap();
    let (mut received, packet) = receive_until_control(&mut guest);
    assert!(packet.is(Op::CreditRequest));
    assert_eq!(received.len(), 1000);
    // An answer that gives nothing is not asked for again, nor does it make bytes flow.
    guest.send(ports, Op::CreditUpdate, buffer(0));
    guest.send(ports, Op::CreditRequest, buffer(0));
    guest.expect(Op::CreditUpdate);
    for taken in [1000, 2000] {
        guest.send(ports, Op::CreditUpdate, buffer(taken));
        while received.len() < data.len().min(taken as usize + 1000) {
            let packet = guest.receive();
            if packet.is(Op::CreditRequest) {
                break;
            }
            received.extend(&packet.payload);
        }
    }
    while received.len() < data.len() {
        received.extend(&guest.receive().payload);
    }
    assert_eq!(received, data);
}

#[test]
fn guest_that_lies_about_what_it_took_gets_nothing() {
    let (mut guest, host) = machine();
    let lie = BufferState { buf_alloc: 1000, fwd_cnt: 1 };
    let (mut client, ports) = connected(&mut guest, &host, lie);
    client.write_all(b"data").unwrap();
    guest.expect(Op::CreditRequest);
    guest.send(ports, Op::CreditUpdate, ROOMY);
    assert_eq!(guest.expect(Op::Rw).payload, b"data");
}

#[test]
fn window_fills_then_opens_when_the_client_reads() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    let data = pattern(5, 2 << 20);
    let mut device = BufferState { buf_alloc: WIDE_WINDOW_BYTES, fwd_cnt: 0 };
    let mut reader = None;
    let mut sent = 0;
    while sent < data.len() {
        let room = device.buf_alloc - (sent as u32).wrapping_sub(device.fwd_cnt);
        let piece = TX_BYTES.min(data.len() - sent).min(room as usize);
        if piece > 0 {
            guest.send_data(ports, ROOMY, &data[sent..sent + piece]);
            sent += piece;
        }
        let packet = if piece > 0 {
            guest.try_receive()
        } else {
            // Nothing can come before the client reads.
            if reader.is_none() {
                guest.settle();
                let mut client = client.try_clone().unwrap();
                let len = data.len();
                reader = Some(std::thread::spawn(move || {
                    let mut all = vec![0; len];
                    client.read_exact(&mut all).unwrap();
                    all
                }));
            }
            Some(guest.receive())
        };
        if let Some(packet) = packet {
            assert!(packet.is(Op::CreditUpdate), "{packet:?}");
            device.fwd_cnt = packet.header.fwd_cnt.get();
        }
    }
    let received = reader.expect("the window never filled").join().unwrap();
    assert!(received == data);
    client.write_all(b"z").unwrap();
    assert!(receive_last(&mut guest).payload == b"z");
}

/// The next packet with payload.
fn receive_last(guest: &mut Guest) -> super::guest::Received {
    loop {
        let packet = guest.receive();
        if packet.is(Op::Rw) {
            return packet;
        }
    }
}

#[test]
fn guest_that_overruns_its_credit_is_reset() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    let part = vec![7; TX_BYTES];
    // Far more than socket and window hold together; the client reads nothing.
    let mut reset = None;
    for _ in 0..64 {
        guest.send_data(ports, ROOMY, &part);
        reset = reset.or_else(|| guest.try_receive().filter(|packet| packet.is(Op::Rst)));
    }
    while reset.is_none() {
        reset = Some(guest.receive()).filter(|packet| packet.is(Op::Rst));
    }
    assert_eq!(reset.unwrap().ports(), ports);
    // The socket is closed, after what it had taken.
    let mut taken = Vec::new();
    client.read_to_end(&mut taken).unwrap();
    assert!(taken.len() < 64 * TX_BYTES);
}

#[test]
fn hundred_connections_have_equal_turns_beside_one_that_floods() {
    const OTHERS: usize = 100;
    const SHARE: usize = 2 * QUANTUM_BYTES;
    let (mut guest, host) = machine();
    let (mut flood, flood_ports) = connected(&mut guest, &host, ROOMY);
    let clients: Vec<_> = (0..OTHERS).map(|_| connected(&mut guest, &host, ROOMY)).collect();
    // The flood takes every buffer, then the others write all that they have to say.
    guest.refills = false;
    let flooding = std::thread::spawn(move || {
        let data = vec![0xff; 1 << 20];
        while flood.write_all(&data).is_ok() {}
    });
    while guest.withheld() < guest.buffers() || guest.has_inbox() {
        assert_eq!(guest.expect(Op::Rw).ports(), flood_ports);
    }
    for (index, (client, _)) in clients.iter().enumerate() {
        let mut client = client;
        client.write_all(&pattern(index as u64, SHARE)).unwrap();
    }
    // The device has seen them all: each pause comes behind one of its looks, which takes 64.
    for _ in 0..2 {
        guest.machine.transport.pause();
        guest.machine.transport.resume().unwrap();
    }

    guest.refills = true;
    guest.give(guest.buffers());
    let mut received: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let (mut flooded, mut finished) = (0, 0);
    while finished < OTHERS {
        let packet = guest.expect(Op::Rw);
        if packet.ports() == flood_ports {
            flooded += packet.payload.len();
            continue;
        }
        let data = received.entry(packet.ports().host).or_default();
        data.extend(&packet.payload);
        if data.len() == SHARE {
            if finished == 0 {
                let least = received.values().map(Vec::len).min().unwrap_or(0);
                assert_eq!(received.len(), OTHERS);
                assert!(least >= QUANTUM_BYTES, "nobody has two turns before all had one");
            }
            finished += 1;
        }
    }
    // Two turns each and a last look at an empty socket make three laps. Before the first the
    // flood may have some of a turn left, and one set of buffers is on its way.
    let alone = guest.buffers() as usize * RX_BYTES as usize;
    assert!(flooded <= 3 * QUANTUM_BYTES + alone, "{flooded}");
    for (index, (_, ports)) in clients.iter().enumerate() {
        assert!(received[&ports.host] == pattern(index as u64, SHARE), "connection {index}");
    }
    guest.send(flood_ports, Op::Rst, ROOMY);
    flooding.join().unwrap();
}

#[test]
fn more_turns_than_one_batch_need_no_other_event() {
    let (mut guest, host) = machine();
    let clients: Vec<_> = (0..48).map(|_| connected(&mut guest, &host, ROOMY)).collect();
    // The last buffers go to one connection alone.
    guest.refills = false;
    let mut first = &clients[0].0;
    first.write_all(&vec![0; guest.buffers() as usize * RX_BYTES as usize]).unwrap();
    while guest.withheld() < guest.buffers() || guest.has_inbox() {
        guest.expect(Op::Rw);
    }
    for (client, _) in &clients {
        let mut client = client;
        client.write_all(b"x").unwrap();
    }
    // The device has seen them all, and waits for buffers.
    guest.machine.transport.pause();
    guest.machine.transport.resume().unwrap();
    guest.give(guest.buffers());
    let mut heard = 0;
    while heard < clients.len() {
        // The first has some of its last bytes left to say before.
        heard += usize::from(guest.expect(Op::Rw).payload.ends_with(b"x"));
    }
}

#[test]
fn starved_device_reads_no_socket_and_goes_on_with_buffers() {
    let (mut guest, host) = machine();
    let (mut client, _) = connected(&mut guest, &host, ROOMY);
    guest.refills = false;
    let data = pattern(4, 4 << 20);
    let writer = {
        let (mut client, data) = (client.try_clone().unwrap(), data.clone());
        std::thread::spawn(move || client.write_all(&data).unwrap())
    };
    let mut received: Vec<u8> = Vec::new();
    let buffers = guest.buffers();
    let room = RX_BYTES as usize - HEADER_BYTES;
    while guest.withheld() < buffers || guest.has_inbox() {
        received.extend(&guest.expect(Op::Rw).payload);
    }
    // Every buffer was used, and what has left the client lies in its socket or in the guest.
    assert!(received.len() <= buffers as usize * room);
    assert!(!writer.is_finished());
    guest.refills = true;
    guest.give(buffers);
    while received.len() < data.len() {
        received.extend(&guest.expect(Op::Rw).payload);
    }
    writer.join().unwrap();
    assert!(received == data);
    client.write_all(b"z").unwrap();
    assert_eq!(guest.expect(Op::Rw).payload, b"z");
}

#[test]
fn buffers_too_small_for_payload_are_returned_and_odd_sizes_are_used() {
    let (mut guest, host) = machine();
    guest.refills = false;
    guest.start_without_buffers();
    let mut client = host.connect(1024);
    // One too small for a header, then one for a header alone.
    for size in [10, HEADER_BYTES as u32] {
        guest.rx_bytes = size;
        guest.give(1);
    }
    let ports = guest.expect(Op::Request).ports();
    guest.send(ports, Op::Response, ROOMY);
    super::guest::read_line(&mut client);
    client.write_all(b"abcdef").unwrap();
    for size in [HEADER_BYTES as u32, HEADER_BYTES as u32 + 1, HEADER_BYTES as u32 + 2, 4096] {
        guest.rx_bytes = size;
        guest.give(1);
    }
    let mut received = Vec::new();
    for expected in [1, 2, 3] {
        let packet = guest.expect(Op::Rw);
        assert_eq!(packet.payload.len(), expected);
        received.extend(packet.payload);
    }
    assert_eq!(received, b"abcdef");
}
