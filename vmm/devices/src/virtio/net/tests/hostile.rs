//! A driver that offers nonsense, and a host that fails.

use super::*;

/// Counts of a device whose worker has come to rest.
fn counts(machine: &mut Machine<Net>) -> crate::virtio::net::Counts {
    machine.transport.pause();
    let counts = machine.transport.device().counts().unwrap();
    machine.transport.resume().unwrap();
    counts
}

#[test]
fn malformed_packets_are_dropped_counted_and_returned_and_the_next_is_sent() {
    let (mut machine, host) = machine();
    let queue = &mut machine.queues[1];
    // Shorter than a header, no Ethernet header, writable, too long, not in memory.
    queue.offer(&[readable(TX, 11)]);
    queue.offer(&[readable(TX, 25)]);
    queue.offer(&[writable(TX, 100)]);
    queue.offer(&[readable(TX, 0x1_1000)]);
    queue.offer(&[readable(u64::MAX - 20, 100)]);
    let sent = frame(60, 1);
    offer_packet(&mut machine, 1, Header { gso_type: 1, ..Header::default() }, &sent);
    machine.kick(1);
    let used = machine.wait_used(1, 6);
    assert!(used.iter().all(|(_, len)| *len == 0));
    offer_packet(&mut machine, 1, Header::default(), &sent);
    machine.kick(1);
    assert_eq!(host.receive().1, sent);
    let counts = counts(&mut machine);
    // The chain that is not in memory never became a packet.
    assert_eq!((counts.tx_dropped, counts.tx_packets, counts.tx_bytes), (5, 1, 60));
    assert_eq!(machine.read(0x70), 15);
}

#[test]
fn useless_buffers_are_returned_and_the_next_is_filled() {
    let (mut machine, host) = machine();
    let queue = &mut machine.queues[0];
    queue.offer(&[writable(RX, 11)]);
    queue.offer(&[readable(RX, 2048)]);
    queue.offer(&[writable(u64::MAX - 20, 2048)]);
    let good = queue.offer(&[readable(TX, 64), writable(RX, 2048)]);
    machine.kick(0);
    let sent = frame(64, 1);
    host.send(&sent);
    let used = machine.wait_used(0, 4);
    assert_eq!(used.iter().map(|(_, len)| *len).collect::<Vec<_>>(), [0, 0, 0, 76]);
    assert_eq!(used[3].0, u32::from(good));
    assert!(received(&machine, 64).1 == sent);
}

#[test]
fn buffer_of_the_whole_memory_is_not_too_large() {
    let (mut machine, host) = machine();
    machine.queues[0].offer(&[writable(RX, 0x20_0000), writable(RX, 0x20_0000)]);
    machine.kick(0);
    host.send(&frame(64, 1));
    assert_eq!(machine.wait_used(0, 1), [(0, 76)]);
}

#[test]
fn buffers_of_the_most_vectors_are_no_more_than_the_kernel_takes() {
    let (mut machine, host) = machine();
    let (queue, table) = (&mut machine.queues[0], RX + 0x10_0000);
    let bytes = |from: u64, count: u64| -> Vec<Desc> {
        (from..from + count).map(|index| writable(RX + index, 1)).collect()
    };
    let useless = queue.offer_indirect(table, &bytes(0, 513));
    let first = queue.offer_indirect(table + 0x4000, &bytes(0, 511));
    let second = queue.offer_indirect(table + 0x8000, &bytes(511, 512));
    machine.kick(0);
    host.send(&frame(600, 1));
    let used = [(useless, 0), (first, 511), (second, 101)].map(|(head, len)| (head.into(), len));
    assert_eq!(machine.wait_used(0, 3), used);
    let (header, got) = received(&machine, 600);
    assert_eq!((header.num_buffers.get(), got), (2, frame(600, 1)));
}

#[test]
fn packet_that_the_host_refuses_is_dropped_and_the_device_goes_on() {
    let (mut machine, host) = machine();
    for errno in [libc::EINVAL, libc::EIO, libc::EAGAIN, libc::ENOMEM] {
        host.fail(errno);
        offer_packet(&mut machine, 1, Header::default(), &frame(60, 1));
        machine.kick(1);
        assert_eq!(machine.wait_used(1, 1).len(), 1);
    }
    host.log.lock().unwrap().error = None;
    let sent = frame(60, 2);
    offer_packet(&mut machine, 1, Header::default(), &sent);
    machine.kick(1);
    assert_eq!(host.receive().1, sent);
    assert_eq!(counts(&mut machine).tx_dropped, 4);
}

#[test]
fn packet_that_cannot_be_read_is_counted_and_no_other_lost() {
    let (mut machine, host) = machine();
    host.fail(libc::EINVAL);
    offer_buffers(&mut machine, 0, 4, 2048);
    host.send(&frame(60, 1));
    while machine.transport.device().counts().unwrap().rx_dropped == 0 {
        std::thread::yield_now();
    }
    host.log.lock().unwrap().error = None;
    assert_eq!(machine.wait_used(0, 1), [(0, 72)]);
}

#[test]
fn interface_that_vanishes_is_a_link_that_is_down() {
    let (mut machine, host) = machine();
    host.fail(libc::EBADFD);
    offer_packet(&mut machine, 1, Header::default(), &frame(60, 1));
    machine.kick(1);
    assert_eq!(machine.wait_used(1, 1).len(), 1);
    let mut link = [0xff; 2];
    crate::bus::BusDevice::read(&mut machine.transport, 0x106, &mut link);
    assert_eq!(link, [0, 0]);
    // Packets go nowhere, the device stays.
    offer_packet(&mut machine, 1, Header::default(), &frame(60, 1));
    machine.kick(1);
    assert_eq!(machine.wait_used(1, 1).len(), 1);
    assert_eq!(counts(&mut machine).tx_dropped, 2);
    machine.start(u64::MAX);
    crate::bus::BusDevice::read(&mut machine.transport, 0x106, &mut link);
    assert_eq!(link, [0, 0], "nor does a reset bring it back");
}

#[test]
fn rings_that_make_no_sense_need_a_reset_and_after_it_all_is_well() {
    let (mut machine, host) = machine();
    machine.queues[1].set_available_index(1000);
    machine.kick(1);
    machine.line.read().unwrap();
    assert_eq!(machine.read(0x70) & 64, 64);
    machine.start(u64::MAX);
    let sent = frame(60, 2);
    offer_packet(&mut machine, 1, Header::default(), &sent);
    machine.kick(1);
    assert_eq!(host.receive().1, sent);
}

/// A descriptor that may mean anything, mostly near memory.
fn desc() -> impl Strategy<Value = Desc> {
    let address = prop_oneof![RX..RX + 0x1000, any::<u64>()];
    let len = prop_oneof![0..64_u32, 0..0x1000_u32, any::<u32>()];
    (address, len, 0..4_u16, 0..80_u16).prop_map(|(address, len, flags, next)| Desc {
        address,
        len,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_chains_leave_a_device_that_works_after_a_reset(
        chains in prop::collection::vec((0..2_usize, prop::collection::vec(desc(), 1..6)), 1..20),
    ) {
        let (mut machine, host) = machine();
        for (queue, descs) in &chains {
            host.socket.set_nonblocking(true).unwrap();
            let _ = host.socket.send(&[0; 80]);
            machine.queues[*queue].offer(descs);
            machine.kick(*queue as u32);
        }
        while host.socket.recv(&mut [0; 1 << 16]).is_ok() {}
        machine.start(u64::MAX);
        while host.socket.recv(&mut [0; 1 << 16]).is_ok() {}
        host.socket.set_nonblocking(false).unwrap();
        let sent = frame(60, 2);
        offer_packet(&mut machine, 1, Header::default(), &sent);
        machine.kick(1);
        prop_assert_eq!(host.receive().1, sent);
    }
}
