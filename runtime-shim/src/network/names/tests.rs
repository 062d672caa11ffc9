//! With a resolver of the test's own, on a port that the kernel chooses.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use super::*;

const PATIENCE: Option<Duration> = Some(Duration::from_secs(120));

/// Answers over UDP and, on the same port, over TCP with the question in capital letters; never
/// one that begins with `?`.
fn resolver() -> SocketAddr {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut message) {
            if message[0] != b'?' {
                udp.send_to(&message[..length].to_ascii_uppercase(), from).unwrap();
            }
        }
    });
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut message = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut message).unwrap();
            stream.write_all(&length).unwrap();
            stream.write_all(&message.to_ascii_uppercase()).unwrap();
        }
    });
    address
}

/// A carrier to `resolver`, and the guest's end of its stream.
fn carrier(resolver: SocketAddr) -> (Carrier, UnixStream) {
    let (stream, guest) = UnixStream::pair().unwrap();
    guest.set_read_timeout(PATIENCE).unwrap();
    (Carrier { stream, resolver, received: vec![], open: vec![] }, guest)
}

fn ask(mut guest: &UnixStream, number: u32, tcp: bool, message: &[u8]) {
    guest.write_all(&frame(number, tcp, message).unwrap()).unwrap();
}

fn answer(mut guest: &UnixStream) -> (u32, bool, Vec<u8>) {
    let mut header = [0; Header::SIZE];
    guest.read_exact(&mut header).unwrap();
    let header = Header::read(header).unwrap();
    let mut message = vec![0; header.length.into()];
    guest.read_exact(&mut message).unwrap();
    (header.number, header.tcp, message)
}

#[test]
fn questions_are_answered_over_what_they_were_asked_over() {
    let (carrier, guest) = carrier(resolver());
    let thread = thread::spawn(move || carrier.run());
    ask(&guest, 7, false, b"name");
    assert_eq!(answer(&guest), (7, false, b"NAME".to_vec()));
    let long = vec![b'x'; 65_535];
    ask(&guest, u32::MAX, true, &long);
    let (number, tcp, message) = answer(&guest);
    assert!(number == u32::MAX && tcp && message == long.to_ascii_uppercase());
    // In two parts.
    let bytes = frame(8, false, b"parts").unwrap();
    (&guest).write_all(&bytes[..9]).unwrap();
    (&guest).write_all(&bytes[9..]).unwrap();
    assert_eq!(answer(&guest), (8, false, b"PARTS".to_vec()));
    drop(guest);
    thread.join().unwrap();
}

#[test]
fn resolver_that_is_not_there_is_an_answer_of_no_bytes() {
    let nobody = {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        udp.local_addr().unwrap()
    };
    let (carrier, guest) = carrier(nobody);
    thread::spawn(move || carrier.run());
    for tcp in [false, true] {
        ask(&guest, 9, tcp, b"name");
        assert_eq!(answer(&guest), (9, tcp, vec![]));
    }
}

#[test]
fn more_questions_than_may_wait_are_left_in_the_stream() {
    let (mut carrier, guest) = carrier(resolver());
    for number in 0..=OPEN_MAX as u32 {
        ask(&guest, number, false, b"?");
    }
    while carrier.open.len() < OPEN_MAX {
        carrier.step().unwrap();
    }
    assert!(carrier.received.len() <= CHUNK + Header::SIZE);
    // Their time is over.
    carrier.open.iter_mut().for_each(|question| question.deadline = Instant::now());
    carrier.step().unwrap();
    assert_eq!(carrier.open.len(), 1);
    for number in 0..OPEN_MAX as u32 {
        assert_eq!(answer(&guest), (number, false, vec![]));
    }
}

#[test]
fn frame_that_is_none_ends_the_stream() {
    let (carrier, mut guest) = carrier(resolver());
    let thread = thread::spawn(move || carrier.run());
    guest.write_all(&[0, 0, 0, 0, 7, 0, 0]).unwrap();
    assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    thread.join().unwrap();
}

#[test]
fn socket_at_the_resolvers_address_is_found() {
    let head = "   sl  local_address rem_address   st tx_queue rx_queue\n";
    let other = "  402: 0100007F:0035 00000000:0000 07 00000000:00000000\n";
    let engine = "  403: 0B00007F:BE4D 00000000:0000 07 00000000:00000000\n";
    assert!(!lists_resolver(&format!("{head}{other}")));
    assert!(lists_resolver(&format!("{head}{other}{engine}")));
    let socket = UdpSocket::bind((RESOLVER, 0)).unwrap();
    assert!(are_served().unwrap());
    drop(socket);
}
