//! The device behind its transport, with a driver that knows the protocol and real sockets.

mod flow;
mod guest;
mod hostile;
mod life;

use std::io::{Read, Write};
use std::net;
use std::os::unix::net::UnixStream;

use self::guest::{Guest, Host, ROOMY, connected, pattern, read_all};
use super::Backend;
use super::packet::{Op, Ports, Shutdown};

const SEND: Shutdown = Shutdown { receive: false, send: true };
const RECEIVE: Shutdown = Shutdown { receive: true, send: false };

fn machine() -> (Guest, Host) {
    let (host, backend) = Host::new();
    (Guest::started(backend), host)
}

/// The payload of all packets up to the first that is not `RW`, and that one.
fn receive_until_control(guest: &mut Guest) -> (Vec<u8>, guest::Received) {
    let mut data = Vec::new();
    loop {
        let packet = guest.receive();
        if !packet.is(Op::Rw) {
            return (data, packet);
        }
        data.extend(&packet.payload);
    }
}

#[test]
fn client_is_connected_when_guest_accepts() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    assert_eq!(ports.guest, 1024);
    client.write_all(b"ping").unwrap();
    assert_eq!(guest.expect(Op::Rw).payload, b"ping");
    guest.send_data(ports, ROOMY, b"pong");
    let mut answer = [0; 4];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
}

#[test]
fn client_bytes_right_after_the_line_reach_the_guest() {
    let (mut guest, host) = machine();
    let mut client = host.client();
    client.write_all(b"CONNECT 9\nearly").unwrap();
    let ports = guest.expect(Op::Request).ports();
    guest.send(ports, Op::Response, ROOMY);
    assert_eq!(guest.expect(Op::Rw).payload, b"early");
}

#[test]
fn client_refused_by_guest_reads_end_of_file() {
    let (mut guest, host) = machine();
    let mut client = host.connect(7);
    let ports = guest.expect(Op::Request).ports();
    guest.send(ports, Op::Rst, ROOMY);
    assert_eq!(read_all(&mut client), b"");
}

#[test]
fn client_with_nonsense_reads_end_of_file_and_guest_hears_nothing() {
    let (mut guest, host) = machine();
    let mut client = host.client();
    client.write_all(b"GET / HTTP/1.1\n").unwrap();
    assert_eq!(read_all(&mut client), b"");
    let (_client, ports) = connected(&mut guest, &host, ROOMY);
    assert_eq!(ports.guest, 1024);
}

#[test]
fn two_connections_have_different_host_ports() {
    let (mut guest, host) = machine();
    let (_first, one) = connected(&mut guest, &host, ROOMY);
    let (_second, two) = connected(&mut guest, &host, ROOMY);
    assert_ne!(one.host, two.host);
}

#[test]
fn dial_serves_one_request_and_others_are_reset() {
    let (mut theirs, ours) = UnixStream::pair().unwrap();
    let backend = Backend::new(None, vec![(1024, ours)]).unwrap();
    let mut guest = Guest::started(backend);
    let ports = |guest| Ports { host: 1024, guest };

    guest.send(ports(50).with_host(9), Op::Request, ROOMY);
    assert_eq!(guest.expect(Op::Rst).ports(), ports(50).with_host(9));

    guest.send(ports(51), Op::Request, ROOMY);
    assert_eq!(guest.expect(Op::Response).ports(), ports(51));
    guest.send_data(ports(51), ROOMY, &[1]);
    let mut ready = [0];
    theirs.read_exact(&mut ready).unwrap();
    theirs.write_all(b"thanks").unwrap();
    assert_eq!(guest.expect(Op::Rw).payload, b"thanks");

    guest.send(ports(52), Op::Request, ROOMY);
    assert_eq!(guest.expect(Op::Rst).ports(), ports(52));
    // The one that there is goes on, and its end is seen.
    guest.send(ports(51), Op::Rst, ROOMY);
    assert_eq!(read_all(&mut theirs), b"");
}

#[test]
fn client_half_close_reaches_guest_after_all_data_and_other_half_goes_on() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    let data = pattern(1, 300_000);
    let writer = {
        let (mut client, data) = (client.try_clone().unwrap(), data.clone());
        std::thread::spawn(move || {
            client.write_all(&data).unwrap();
            client.shutdown(net::Shutdown::Write).unwrap();
        })
    };
    let (received, packet) = receive_until_control(&mut guest);
    writer.join().unwrap();
    assert_eq!(received, data);
    assert!(packet.is(Op::Shutdown));
    assert_eq!(Shutdown::from_flags(packet.header.flags.get()), SEND);

    guest.send_data(ports, ROOMY, b"still here");
    guest.send_shutdown(ports, ROOMY, SEND);
    assert_eq!(read_all(&mut client), b"still here");
    drop(client);
    let end = guest.expect(Op::Shutdown);
    assert_eq!(Shutdown::from_flags(end.header.flags.get()), Shutdown::BOTH);
}

#[test]
fn guest_half_close_is_end_of_file_and_other_half_goes_on() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    guest.send_data(ports, ROOMY, b"last words");
    guest.send_shutdown(ports, ROOMY, SEND);
    assert_eq!(read_all(&mut client), b"last words");
    client.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(Op::Rw).payload, b"answer");
    // What was ended stays ended.
    guest.send_data(ports, ROOMY, b"more");
    guest.expect(Op::Rst);
}

#[test]
fn guest_that_stops_receiving_makes_client_writes_fail() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    guest.send_shutdown(ports, ROOMY, RECEIVE);
    guest.send_data(ports, ROOMY, b"x");
    // The order of packets makes the shutdown visible with the byte.
    client.read_exact(&mut [0]).unwrap();
    let error = client.write_all(b"y").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    guest.send_shutdown(ports, ROOMY, SEND);
    guest.expect(Op::Rst);
    assert_eq!(read_all(&mut client), b"");
}

#[test]
fn guest_close_is_answered_by_reset_and_unread_bytes_do_not_spoil_the_end() {
    let (mut guest, host) = machine();
    guest.refills = false;
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    guest.send_data(ports, ROOMY, b"bye");
    let no_room = super::packet::BufferState::default();
    guest.send(ports, Op::CreditUpdate, no_room);
    guest.settle();
    client.write_all(b"nobody reads this").unwrap();
    guest.send_shutdown(ports, no_room, Shutdown::BOTH);
    assert_eq!(read_all(&mut client), b"bye");
    let mut packet = guest.receive();
    if packet.is(Op::CreditRequest) {
        packet = guest.receive();
    }
    assert!(packet.is(Op::Rst));
}

#[test]
fn guest_close_with_slow_client_loses_nothing() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    // As much as socket and window take.
    let data = pattern(3, 256 << 10);
    for part in data.chunks(guest::TX_BYTES) {
        guest.send_data(ports, ROOMY, part);
    }
    guest.send_shutdown(ports, ROOMY, Shutdown::BOTH);
    while !guest.receive().is(Op::Rst) {
        // More than half of the window was used and forwarded: an update is due.
    }
    // The connection is gone for the guest: its ports mean nothing any more.
    guest.send(ports, Op::CreditRequest, ROOMY);
    guest.expect(Op::Rst);
    assert_eq!(read_all(&mut client), data);
}

#[test]
fn guest_half_close_with_slow_client_comes_after_all_data() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    let data = pattern(6, 256 << 10);
    for part in data.chunks(guest::TX_BYTES) {
        guest.send_data(ports, ROOMY, part);
    }
    guest.send_shutdown(ports, ROOMY, SEND);
    guest.settle();
    assert_eq!(read_all(&mut client), data);
    client.write_all(b"answer").unwrap();
    while guest.receive().payload != b"answer" {}
}

#[test]
fn client_that_vanishes_with_bytes_waiting_gives_their_credit_back() {
    let (mut guest, host) = machine();
    let (client, ports) = connected(&mut guest, &host, ROOMY);
    // As much as socket and window take.
    let part = vec![1; guest::TX_BYTES];
    for _ in 0..8 {
        guest.send_data(ports, ROOMY, &part);
    }
    guest.settle();
    drop(client);
    let mut ended = Shutdown::default();
    while ended != Shutdown::BOTH {
        let packet = guest.receive();
        if packet.is(Op::Shutdown) {
            ended = Shutdown::from_flags(packet.header.flags.get());
            assert_eq!(packet.header.fwd_cnt.get(), 256 << 10);
        }
    }
    for _ in 0..8 {
        guest.send_data(ports, ROOMY, &part);
    }
    guest.send(ports, Op::CreditRequest, ROOMY);
    assert_eq!(guest.expect(Op::CreditUpdate).header.fwd_cnt.get(), 512 << 10);
}

#[test]
fn client_that_vanishes_after_guest_stopped_receiving_ends_both() {
    let (mut guest, host) = machine();
    let (client, ports) = connected(&mut guest, &host, ROOMY);
    guest.send_shutdown(ports, ROOMY, RECEIVE);
    guest.settle();
    drop(client);
    let packet = guest.expect(Op::Shutdown);
    assert_eq!(Shutdown::from_flags(packet.header.flags.get()), Shutdown::BOTH);
    guest.send(ports, Op::Rst, ROOMY);

    let (client, ports) = connected(&mut guest, &host, ROOMY);
    client.shutdown(net::Shutdown::Read).unwrap();
    guest.send_data(ports, ROOMY, b"nobody reads");
    let packet = guest.expect(Op::Shutdown);
    assert_eq!(Shutdown::from_flags(packet.header.flags.get()), RECEIVE);
    guest.send_shutdown(ports, ROOMY, RECEIVE);
    let packet = guest.expect(Op::Shutdown);
    assert_eq!(Shutdown::from_flags(packet.header.flags.get()), Shutdown::BOTH);
}

#[test]
fn client_that_vanishes_gives_its_data_then_shutdown_and_frees_its_entry_at_reset() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    client.write_all(&pattern(2, 50_000)).unwrap();
    drop(client);
    let mut data: Vec<u8> = Vec::new();
    let mut ended = Shutdown::default();
    while ended != Shutdown::BOTH {
        let packet = guest.receive();
        if packet.is(Op::Rw) {
            assert!(!ended.send, "data after the end");
            data.extend(&packet.payload);
        } else {
            assert!(packet.is(Op::Shutdown));
            ended = Shutdown::from_flags(packet.header.flags.get());
        }
    }
    assert_eq!(data, pattern(2, 50_000));
    // Data on its way is taken without complaint.
    guest.send_data(ports, ROOMY, &[0; 1000]);
    guest.send(ports, Op::CreditRequest, ROOMY);
    guest.expect(Op::CreditUpdate);
    guest.send(ports, Op::Rst, ROOMY);
    guest.send(ports, Op::CreditRequest, ROOMY);
    guest.expect(Op::Rst);
}

#[test]
fn client_that_vanishes_before_the_answer_resets_the_request() {
    let (mut guest, host) = machine();
    let client = host.connect(5);
    let ports = guest.expect(Op::Request).ports();
    drop(client);
    assert_eq!(guest.expect(Op::Rst).ports(), ports);
    // The late answer meets nobody.
    guest.send(ports, Op::Response, ROOMY);
    guest.expect(Op::Rst);
}

impl Ports {
    fn with_host(self, host: u32) -> Self {
        Self { host, ..self }
    }
}
