//! A guest that says anything.

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::guest::{GUEST_CID, Guest, Host, ROOMY, connected, read_all};
use super::machine;
use crate::virtio::vsock::muxer::MAX_RESETS;
use crate::virtio::vsock::packet::{HEADER_BYTES, HOST_CID, Header, Op, Ports};

#[test]
fn second_response_request_or_early_data_reset_the_connection() {
    for (answered, op) in [(true, Op::Response), (true, Op::Request), (false, Op::Rw)] {
        let (mut guest, host) = machine();
        let mut client = host.connect(6);
        let ports = guest.expect(Op::Request).ports();
        if answered {
            guest.send(ports, Op::Response, ROOMY);
            super::guest::read_line(&mut client);
        }
        guest.send(ports, op, ROOMY);
        assert_eq!(guest.expect(Op::Rst).ports(), ports);
        assert_eq!(read_all(&mut client), b"");
    }
}

#[test]
fn payload_that_is_not_there_resets_the_connection() {
    let (mut guest, host) = machine();
    let (mut client, ports) = connected(&mut guest, &host, ROOMY);
    let mut header = Guest::header(ports, Op::Rw, ROOMY);
    header.len = 101.into();
    guest.send_raw(&header, &[1; 100]);
    assert_eq!(guest.expect(Op::Rst).ports(), ports);
    assert_eq!(read_all(&mut client), b"");
}

#[test]
fn stray_packets_without_buffers_wait_and_are_all_answered() {
    let (mut guest, _host) = machine();
    guest.refills = false;
    guest.start_without_buffers();
    let waiting = 32;
    let sent = MAX_RESETS as u32 + waiting;
    for guest_port in 0..sent {
        guest.send(Ports { host: 1, guest: guest_port }, Op::CreditRequest, ROOMY);
    }
    // Each resumption handles packets, but there is no room for more answers.
    for _ in 0..sent {
        guest.machine.transport.pause();
        guest.machine.transport.resume().unwrap();
    }
    assert_eq!(guest.unreturned(), u64::from(waiting));
    guest.refills = true;
    guest.give(64);
    for guest_port in 0..sent {
        assert_eq!(guest.expect(Op::Rst).ports().guest, guest_port);
    }
    guest.settle();
}

#[derive(Debug, Clone)]
struct Attack {
    header: [u8; HEADER_BYTES],
    /// Make addresses and type valid.
    plausible: bool,
    /// Of the live connection in place of any.
    known: bool,
    op: u16,
    len: u32,
    lengths: [u32; 2],
}

fn attack() -> impl Strategy<Value = Attack> {
    (
        any::<[u8; HEADER_BYTES]>(),
        prop::bool::weighted(0.9),
        any::<bool>(),
        0u16..9,
        prop_oneof![0u32..5000, any::<u32>()],
        prop_oneof![Just([44, 4096]), (0u32..100, 0u32..8192).prop_map(|(a, b)| [a, b])],
    )
        .prop_map(|(header, plausible, known, op, len, lengths)| Attack {
            header,
            plausible,
            known,
            op,
            len,
            lengths,
        })
}

impl Attack {
    fn header(&self, ports: Ports) -> Header {
        let mut header = Header::read_from_bytes(&self.header).unwrap();
        if self.plausible {
            header.src_cid = GUEST_CID.into();
            header.dst_cid = HOST_CID.into();
            header.kind = 1.into();
            header.op = self.op.into();
            header.len = self.len.into();
        }
        if self.known {
            header.src_port = ports.guest.into();
            header.dst_port = ports.host.into();
        }
        header
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_packets_are_returned_and_the_device_serves_on(
        attacks in prop::collection::vec(attack(), 1..40),
    ) {
        let (host, backend) = Host::new();
        let mut guest = Guest::started(backend);
        let (client, ports) = connected(&mut guest, &host, ROOMY);
        for attack in &attacks {
            guest.send_chain(attack.header(ports).as_bytes(), attack.lengths);
        }
        guest.settle();
        prop_assert_eq!(guest.machine.read(0x70), 15, "needs no reset");
        drop(client);
        // Whatever was answered is read away; then a new connection works.
        let mut client = host.connect(4242);
        let ports = loop {
            let packet = guest.receive();
            if packet.is(Op::Request) && packet.ports().guest == 4242 {
                break packet.ports();
            }
        };
        guest.send(ports, Op::Response, ROOMY);
        prop_assert_eq!(super::guest::read_line(&mut client), format!("OK {}\n", ports.host));
    }
}
