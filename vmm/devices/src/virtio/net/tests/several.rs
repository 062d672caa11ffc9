//! Several queue pairs and the control queue.

use super::*;

const CONTROL: usize = 6;

/// A running machine with three pairs.
fn machine() -> (Machine<Net>, Vec<Host>) {
    let (mut machine, hosts) = slot(config(), 3);
    machine.start(u64::MAX);
    hosts.iter().for_each(Host::wait_configured);
    (machine, hosts)
}

/// Sends a command of `bytes`; the answer.
fn command(machine: &mut Machine<Net>, bytes: &[u8]) -> u8 {
    machine.memory.write_slice(bytes, GuestAddress(TX)).unwrap();
    machine.memory.write_obj(0xeeu8, GuestAddress(TX + 0x100)).unwrap();
    machine.queues[CONTROL].offer(&[readable(TX, bytes.len() as u32), writable(TX + 0x100, 1)]);
    machine.kick(CONTROL as u32);
    assert_eq!(machine.wait_used(CONTROL, 1)[0].1, 1);
    machine.memory.read_obj(GuestAddress(TX + 0x100)).unwrap()
}

fn attached(host: &Host) -> Option<bool> {
    host.log.lock().unwrap().attached.last().copied()
}

#[test]
fn one_pair_is_used_until_the_driver_asks_for_more() {
    let (mut machine, hosts) = machine();
    let sent = frame(60, 1);
    offer_packet(&mut machine, 3, Header::default(), &sent);
    machine.kick(3);
    assert_eq!(command(&mut machine, &[4, 0, 3, 0]), 0);
    assert_eq!(hosts[1].receive().1, sent, "only the second pair can have sent it, and only now");
    assert_eq!(hosts.iter().map(attached).collect::<Vec<_>>(), [Some(true); 3]);
    for (index, host) in hosts.iter().enumerate() {
        offer_buffers(&mut machine, 2 * index, 2, 2048);
        host.send(&frame(70, 2));
        assert_eq!(machine.wait_used(2 * index, 1)[0].1, 82, "pair {index}");
    }
    assert_eq!(command(&mut machine, &[4, 0, 1, 0]), 0);
    assert_eq!(hosts.iter().map(attached).collect::<Vec<_>>(), [true, false, false].map(Some));
}

#[test]
fn what_came_for_a_pair_before_it_was_used_is_received() {
    let (mut machine, hosts) = machine();
    offer_buffers(&mut machine, 2, 2, 2048);
    hosts[1].send(&frame(60, 1));
    assert_eq!(command(&mut machine, &[4, 0, 2, 0]), 0);
    assert_eq!(machine.wait_used(2, 1)[0].1, 72);
}

#[test]
fn other_commands_are_refused_by_name() {
    let (mut machine, _hosts) = machine();
    for bytes in [
        &[4, 0, 0, 0][..],
        &[4, 0, 4, 0],
        &[4, 0, 1, 1],
        &[4, 1, 1, 0],
        &[0, 0, 1, 0],
        &[1, 1, 2, 0, 0, 0, 0, 7],
        &[4, 0, 1],
        &[4],
    ] {
        assert_eq!(command(&mut machine, bytes), 1, "{bytes:?}");
    }
    assert_eq!(command(&mut machine, &[4, 0, 2, 0, 9, 9]), 0);
}

#[test]
fn command_without_room_for_an_answer_is_returned() {
    let (mut machine, _hosts) = machine();
    machine.memory.write_slice(&[4, 0, 2, 0], GuestAddress(TX)).unwrap();
    machine.queues[CONTROL].offer(&[readable(TX, 4)]);
    machine.kick(CONTROL as u32);
    assert_eq!(machine.wait_used(CONTROL, 1)[0].1, 0);
}

#[test]
fn pairs_that_the_host_cannot_attach_are_refused() {
    let (mut machine, hosts) = machine();
    assert_eq!(command(&mut machine, &[4, 0, 1, 0]), 0);
    hosts[2].fail(libc::EBUSY);
    assert_eq!(command(&mut machine, &[4, 0, 3, 0]), 1);
    assert_eq!(command(&mut machine, &[4, 0, 2, 0]), 1, "the third cannot be taken out of use");
    hosts[2].log.lock().unwrap().error = None;
    assert_eq!(command(&mut machine, &[4, 0, 2, 0]), 0);
    machine.transport.pause();
    assert_eq!(machine.transport.device().state().unwrap().active_pairs, 2);
}

#[test]
fn reset_takes_the_additional_pairs_out_of_use() {
    let (mut machine, hosts) = machine();
    assert_eq!(command(&mut machine, &[4, 0, 3, 0]), 0);
    machine.start(u64::MAX);
    assert_eq!(command(&mut machine, &[4, 0, 1, 0]), 0);
    assert_eq!(hosts.iter().map(attached).collect::<Vec<_>>(), [true, false, false].map(Some));
}

#[test]
fn driver_without_several_queues_uses_the_first_pair_alone() {
    let (mut machine, hosts) = slot(config(), 3);
    machine.start(1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MRG_RXBUF);
    let sent = frame(60, 1);
    offer_packet(&mut machine, 1, Header::default(), &sent);
    machine.kick(1);
    assert_eq!(hosts[0].receive().1, sent);
    // Its control queue is the third.
    machine.memory.write_slice(&[4, 0, 1, 0], GuestAddress(TX)).unwrap();
    machine.queues[2].offer(&[readable(TX, 4), writable(TX + 0x100, 1)]);
    machine.kick(2);
    assert_eq!(machine.wait_used(2, 1)[0].1, 1);
    assert_eq!(machine.memory.read_obj::<u8>(GuestAddress(TX + 0x100)).unwrap(), 0);
    // All ports outlive it.
    machine.start(u64::MAX);
    assert_eq!(command(&mut machine, &[4, 0, 3, 0]), 0);
}
