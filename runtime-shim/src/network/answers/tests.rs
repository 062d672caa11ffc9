//! A server in another namespace is asked from that of a container.

use std::io::Read;
use std::net::UdpSocket;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::network::namespace::enter;
use crate::network::tests::{in_namespace, ip};
use crate::network::{Network, OpenNet};
use crate::plan::{NetLimits, NetworkPlan};
use crate::process::ProcessId;

/// Whether a frame has `text` in it.
fn has(frame: &[u8], text: &str) -> bool {
    frame.windows(text.len()).any(|part| part == text.as_bytes())
}

/// What a guest with this device receives, up to a frame that has `text` in it.
fn receive_until(net: OpenNet, text: &'static str) -> Vec<Vec<u8>> {
    let queue = net.taps.into_iter().next().unwrap();
    rustix::io::ioctl_fionbio(&queue, false).unwrap();
    let mut queue = fs::File::from(queue);
    let mut frames: Vec<Vec<u8>> = vec![];
    while !frames.last().is_some_and(|frame| has(frame, text)) {
        let mut frame = vec![0; 2048];
        let length = queue.read(&mut frame).unwrap();
        frame.truncate(length);
        frames.push(frame);
    }
    frames
}

/// Gives back what comes to `port` of the other end's address.
fn echo(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind(("10.1.0.1", port)).unwrap();
    let copy = socket.try_clone().unwrap();
    thread::spawn(move || {
        let mut message = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut message) {
            socket.send_to(&message[..length], from).unwrap();
        }
    });
    copy
}

/// A thread in a namespace of its own that gets `far`, and serves there once it has been told so.
fn other_end() -> (rustix::thread::Pid, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (told, go) = mpsc::channel();
    let (ready, served) = mpsc::channel();
    let (name, named) = mpsc::channel();
    thread::spawn(move || {
        enter(&NetworkPlan::New).unwrap();
        name.send(rustix::thread::gettid()).unwrap();
        go.recv().unwrap();
        ip("addr add 10.1.0.1/24 dev far");
        ip("link set far up");
        let sockets = [echo(53), echo(54)];
        ready.send(()).unwrap();
        // Until the test has ended.
        let _ = go.recv();
        drop(sockets);
    });
    (named.recv().unwrap(), told, served)
}

#[test]
fn engine_gets_answers_to_its_questions_and_the_guest_everything_else() {
    in_namespace(|| {
        let (thread, told, served) = other_end();
        ip("link add far type veth peer name eth0");
        ip(&format!("link set far netns {}", thread.as_raw_nonzero()));
        told.send(()).unwrap();
        served.recv().unwrap();
        ip("addr add 10.1.0.2/24 dev eth0");
        ip("link set eth0 up");
        let mut network =
            Network::open(ProcessId::own().unwrap(), 1, NetLimits::default()).unwrap();
        let net = network.connect().unwrap().nets.remove(0);
        network.let_answers_in().unwrap();

        let ask = |port: u16, text: &str| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            assert!(PORTS.contains(&socket.local_addr().unwrap().port()));
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            socket.connect(("10.1.0.1", port)).unwrap();
            socket.send(text.as_bytes()).unwrap();
            socket
        };
        let mut answer = [0; 64];
        let length = ask(53, "to a server of names").recv(&mut answer).unwrap();
        assert_eq!(&answer[..length], b"to a server of names");
        let _other = ask(54, "to another server");
        let frames = receive_until(net, "to another server");
        assert!(!frames.iter().any(|frame| has(frame, "names")));
        // Without the filters of answers, which go with the others.
        drop(network);
        assert_eq!(ip("tc filter show dev eth0 ingress"), "");
    });
}
