//! Activation, reset, pause, snapshot and full tables.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::guest::{GUEST_CID, Guest, Host, ROOMY, connected, pattern, read_all, read_line};
use super::machine;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::no_hook;
use crate::virtio::vsock::muxer::{MAX_CLIENTS, MAX_CONNECTIONS};
use crate::virtio::vsock::packet::{Op, Shutdown};
use crate::virtio::vsock::{Backend, Vsock, VsockError};

#[test]
fn client_before_activation_waits_and_is_served() {
    let (host, backend) = Host::new();
    let mut guest = Guest::stopped(Some(backend));
    let mut client = host.connect(11);
    guest.start();
    let ports = guest.expect(Op::Request).ports();
    assert_eq!(ports.guest, 11);
    guest.send(ports, Op::Response, ROOMY);
    assert_eq!(read_line(&mut client), format!("OK {}\n", ports.host));
}

#[test]
fn device_without_backend_resets_requests_and_takes_one_later() {
    let mut guest = Guest::stopped(None);
    guest.start();
    let ports = crate::virtio::vsock::packet::Ports { host: 1024, guest: 1 };
    guest.send(ports, Op::Request, ROOMY);
    guest.expect(Op::Rst);
    let (host, backend) = Host::new();
    let device = guest.machine.transport.device_mut();
    assert!(matches!(device.set_backend(Backend::default()), Err(VsockError::Active)));
    guest.machine.write(0x70, 0);
    guest.machine.transport.device_mut().set_backend(backend).unwrap();
    guest.start();
    connected(&mut guest, &host, ROOMY);
}

#[test]
fn reset_closes_every_connection_and_the_listener_goes_on() {
    let (mut guest, host) = machine();
    let (mut client, old) = connected(&mut guest, &host, ROOMY);
    let mut waiting = host.connect(8);
    guest.expect(Op::Request);
    let _slow = host.client();
    client.write_all(&pattern(1, 100_000)).unwrap();
    guest.expect(Op::Rw);
    guest.machine.write(0x70, 0);
    // The client had bytes on their way, so that a reset is as good an end as any.
    let mut rest = Vec::new();
    if let Err(error) = client.read_to_end(&mut rest) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert!(rest.is_empty());
    assert_eq!(read_all(&mut waiting), b"");

    guest.start();
    let (mut client, new) = connected(&mut guest, &host, ROOMY);
    assert_ne!(old, new);
    client.write_all(b"again").unwrap();
    assert_eq!(guest.expect(Op::Rw).payload, b"again");
}

#[test]
fn pause_keeps_connections_and_loses_nothing() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    guest.machine.transport.pause();
    client.write_all(b"from host").unwrap();
    guest.send_data(ports, ROOMY, b"from guest");
    let mut second = host.connect(9);
    guest.machine.transport.resume().unwrap();
    let mut heard = [0; 10];
    client.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"from guest");
    let mut seen = (false, false);
    while seen != (true, true) {
        let packet = guest.receive();
        seen.0 |= packet.is(Op::Rw) && packet.payload == b"from host";
        if packet.is(Op::Request) {
            guest.send(packet.ports(), Op::Response, ROOMY);
            seen.1 = true;
        }
    }
    assert!(read_line(&mut second).starts_with("OK "));
}

#[test]
fn state_of_paused_device_restores_to_one_that_announces_the_loss() {
    let (mut guest, host) = machine();
    let (_client, ports) = connected(&mut guest, &host, ROOMY);
    let device = guest.machine.transport.device();
    assert_eq!(device.state(), None);
    guest.machine.transport.pause();
    let state = guest.machine.transport.device().state().unwrap();
    assert_eq!(state.guest_cid, GUEST_CID);
    assert!(state.next_host_port > ports.host);
    let queues = state.queues.unwrap();
    // What was popped ahead of need counts as not popped: one buffer is used, for REQUEST.
    assert_eq!((queues[0].next_avail, queues[0].next_used), (1, 1));
    assert_eq!((queues[1].next_avail, queues[1].next_used), (1, 1));

    let (host, backend) = Host::new();
    let mut other = Guest::stopped(Some(backend));
    other.machine.transport.device_mut().restore(&state).unwrap();
    other.start();
    assert_eq!(other.receive_event(), [0; 4]);
    let (_client, new) = connected(&mut other, &host, ROOMY);
    assert!(new.host > ports.host);
}

#[test]
fn config_is_the_context_id_and_zeroes() {
    let device = Vsock::new(0x0102_0304_0506_0708, None, &no_hook()).unwrap();
    let mut data = [0xff; 16];
    device.read_config(0, &mut data);
    assert_eq!(data, [8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut high = [0xff; 4];
    device.read_config(4, &mut high);
    assert_eq!(high, [4, 3, 2, 1]);
    device.read_config(u64::MAX, &mut high);
    assert_eq!(high, [0; 4]);
}

#[test]
fn slow_clients_are_limited_and_the_next_waits_for_one_to_leave() {
    let (mut guest, host) = machine();
    let mut slow: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| host.client()).collect();
    let mut waiting = host.connect(77);
    // A slow client that becomes a fast one makes room as well as one that leaves.
    slow[0].write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(guest.expect(Op::Request).ports().guest, 1);
    let ports = guest.expect(Op::Request).ports();
    assert_eq!(ports.guest, 77);
    guest.send(ports, Op::Response, ROOMY);
    assert!(read_line(&mut waiting).starts_with("OK "));
}

#[test]
fn full_table_refuses_a_client_until_an_ended_connection_makes_room() {
    if !raise_descriptor_limit() {
        println!("skipped: too few descriptors are allowed here (ulimit -n)");
        return;
    }
    let (mut guest, host) = machine();
    let mut clients: Vec<_> =
        (0..MAX_CONNECTIONS).map(|_| connected(&mut guest, &host, ROOMY)).collect();
    let mut refused = host.connect(3);
    assert_eq!(read_all(&mut refused), b"");
    // Those that the host has ended wait for the guest's RST; new ones take their places, that
    // of the oldest first.
    let ended = [500, 20].map(|index| {
        let (client, ports) = clients.remove(index);
        drop(client);
        while guest.expect(Op::Shutdown).header.flags.get() != Shutdown::BOTH.flags() {}
        ports
    });
    for ports in ended {
        clients.push((host.connect(4), ports));
        assert_eq!(guest.expect(Op::Rst).ports(), ports);
        assert_eq!(guest.expect(Op::Request).ports().guest, 4);
    }
    let mut refused = host.connect(3);
    assert_eq!(read_all(&mut refused), b"");
}

/// Two descriptors for each of many connections, and those of other tests; whether they may be had.
fn raise_descriptor_limit() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live rlimit.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    assert_eq!(got, 0);
    limit.rlim_cur = limit.rlim_max.min(8192);
    // SAFETY: as above.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    assert_eq!(set, 0);
    limit.rlim_cur >= 4 * MAX_CONNECTIONS as u64
}
