//! Slots that fill and empty, resets, pauses, rate limits.

use std::time::Duration;

use super::*;
use crate::rate::BucketConfig;
use crate::virtio::net::AttachError;

#[test]
fn empty_slot_has_no_device_and_takes_nothing() {
    let mut machine = Machine::new(Net::new(&no_hook()).unwrap());
    assert_eq!(machine.read(0x00), 0x7472_6976, "the magic value is there all the same");
    assert_eq!((machine.read(0x04), machine.read(0x08)), (2, 0));
    for status in [1, 3, 11, 15] {
        machine.write(0x70, status);
        assert_eq!(machine.read(0x70), 0);
    }
    machine.write(0x30, 1);
    assert_eq!((machine.read(0x34), machine.read(0x44)), (0, 0));
    machine.kick(0);
    assert!(machine.transport.device().counts().is_none());
    assert!(!machine.transport.replace(Net::detach));
}

#[test]
fn slot_is_filled_emptied_and_filled_again() {
    let mut machine = Machine::new(Net::new(&no_hook()).unwrap());
    for seed in 0..3 {
        let (backend, hosts) = ports(1);
        machine.transport.replace(|net| net.attach(config(), backend)).unwrap();
        assert_eq!(machine.read(0x08), 1);
        let (second, _) = ports(1);
        let refused = machine.transport.device_mut().attach(config(), second);
        assert!(matches!(refused, Err(AttachError::Occupied)));
        machine.start(u64::MAX);
        let sent = frame(60, seed);
        offer_packet(&mut machine, 1, Header::default(), &sent);
        machine.kick(1);
        assert_eq!(hosts[0].receive().1, sent);
        assert!(machine.transport.replace(Net::detach));
        assert_eq!(machine.read(0x08), 0);
        // The device's end is closed.
        assert!(hosts[0].socket.send(&[0; 20]).is_err());
    }
}

#[test]
fn detach_under_a_running_driver_leaves_it_nothing() {
    let (mut machine, _host) = machine();
    assert!(machine.transport.replace(Net::detach));
    offer_packet(&mut machine, 1, Header::default(), &frame(60, 1));
    machine.kick(1);
    assert_eq!((machine.read(0x70), machine.read(0x60)), (0, 0));
    assert!(machine.queues[1].take_used().is_empty());
}

#[test]
fn reset_keeps_the_interface_for_the_next_driver() {
    let (mut machine, host) = machine();
    for round in 0..3_u8 {
        offer_buffers(&mut machine, 0, 8, 2048);
        let sent = frame(60 + usize::from(round), round);
        host.send(&sent);
        assert_eq!(machine.wait_used(0, 1), [(0, 72 + u32::from(round))]);
        machine.write(0x70, 0);
        assert_eq!(machine.read(0x70), 0);
        machine.start(u64::MAX);
    }
    let counts = machine.transport.device().counts().unwrap();
    assert_eq!((counts.rx_packets, counts.rx_bytes), (3, 183));
}

#[test]
fn pause_gives_back_what_is_held_and_resume_loses_nothing() {
    let (mut machine, host) = machine();
    offer_buffers(&mut machine, 0, 16, 2048);
    host.send(&frame(60, 1));
    assert_eq!(machine.wait_used(0, 1).len(), 1);
    machine.transport.pause();
    let state = machine.transport.device().state().unwrap();
    assert_eq!((state.active_pairs, state.queues.len()), (1, 2));
    assert_eq!((state.queues[0].next_avail, state.queues[0].next_used), (1, 1));
    host.send(&frame(61, 2));
    offer_packet(&mut machine, 1, Header::default(), &frame(62, 3));
    machine.kick(1);
    host.assert_silent();
    machine.transport.resume().unwrap();
    assert_eq!(machine.wait_used(0, 1), [(1, 73)]);
    assert_eq!(host.receive().1, frame(62, 3));
}

/// Passes `size` packets at once and then, for a test's time, none.
fn slow(size: u64) -> RateLimit {
    let refill_time = Duration::from_secs(100_000);
    RateLimit { bytes: None, ops: Some(BucketConfig { size, one_time_burst: 0, refill_time }) }
}

#[test]
fn limit_of_what_the_guest_sends_holds_back_the_rest() {
    let (mut machine, host) = machine_with(NetConfig { tx_rate: slow(5), ..config() }, u64::MAX);
    for _ in 0..8 {
        offer_packet(&mut machine, 1, Header::default(), &frame(60, 1));
    }
    machine.kick(1);
    assert_eq!(machine.wait_used(1, 5).len(), 5);
    // A second kick finds the same.
    machine.kick(1);
    machine.transport.pause();
    assert!(machine.queues[1].take_used().is_empty());
    for _ in 0..5 {
        host.receive();
    }
    host.assert_silent();
}

#[test]
fn limit_of_what_the_guest_receives_holds_back_the_rest() {
    let (mut machine, host) = machine_with(NetConfig { rx_rate: slow(5), ..config() }, u64::MAX);
    for _ in 0..8 {
        host.send(&frame(60, 1));
    }
    offer_buffers(&mut machine, 0, 8, 2048);
    assert_eq!(machine.wait_used(0, 5).len(), 5);
    machine.kick(0);
    machine.transport.pause();
    assert!(machine.queues[0].take_used().is_empty());
}

#[test]
fn limit_that_is_reached_is_left_by_its_timer() {
    let refill_time = Duration::from_millis(40);
    let ops = Some(BucketConfig { size: 2, one_time_burst: 0, refill_time });
    let limited = RateLimit { bytes: None, ops };
    let (mut machine, host) =
        machine_with(NetConfig { rx_rate: limited, tx_rate: limited, ..config() }, u64::MAX);
    offer_buffers(&mut machine, 0, 10, 2048);
    for _ in 0..10 {
        offer_packet(&mut machine, 1, Header::default(), &frame(60, 1));
        host.send(&frame(60, 2));
    }
    machine.kick(1);
    assert_eq!(machine.wait_used(1, 10).len(), 10);
    assert_eq!(machine.wait_used(0, 10).len(), 10);
}

#[test]
fn device_that_cannot_be_configured_asks_for_a_reset() {
    let (mut machine, hosts) = slot(config(), 1);
    hosts[0].fail(libc::EPERM);
    machine.negotiate(u64::MAX);
    machine.set_up_queues();
    machine.write(0x70, 15);
    machine.line.read().unwrap();
    assert_eq!(machine.read(0x70) & 64, 64);
    hosts[0].log.lock().unwrap().error = None;
    machine.start(u64::MAX);
    offer_packet(&mut machine, 1, Header::default(), &frame(60, 1));
    machine.kick(1);
    hosts[0].receive();
}
