//! The entropy device behind a transport, driven as Linux does it.

use vm_memory::{Bytes, GuestAddress};

use super::Rng;
use super::queue::CHUNK_BYTES;
use crate::virtio::testing::{BUFFERS, Machine, no_hook, readable, writable};

fn machine() -> Machine<Rng> {
    let mut machine = Machine::new(Rng::new(&no_hook()).unwrap());
    machine.start(0);
    machine
}

fn bytes(machine: &Machine<Rng>, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    machine.memory.read_slice(&mut data, GuestAddress(BUFFERS)).unwrap();
    data
}

#[test]
fn buffer_offered_is_filled() {
    let mut machine = machine();
    let head = machine.queues[0].offer(&[writable(BUFFERS, 64)]);
    machine.kick(0);
    assert_eq!(machine.wait_used(0, 1), [(u32::from(head), 64)]);
    let data = bytes(&machine, 65);
    assert!(data[..64].iter().any(|byte| *byte != 0));
    assert_eq!(data[64], 0);
}

#[test]
fn buffer_beyond_the_chunk_is_filled_in_part() {
    let mut machine = machine();
    let head = machine.queues[0].offer(&[writable(BUFFERS, 1 << 20)]);
    machine.kick(0);
    assert_eq!(machine.wait_used(0, 1), [(u32::from(head), CHUNK_BYTES as u32)]);
    assert_eq!(bytes(&machine, CHUNK_BYTES + 1)[CHUNK_BYTES], 0);
}

#[test]
fn readable_and_broken_chains_come_back_empty_and_the_device_goes_on() {
    let mut machine = machine();
    let first = machine.queues[0].offer(&[readable(BUFFERS, 64)]);
    let second = machine.queues[0].offer(&[writable(u64::MAX - 8, 64)]);
    let third = machine.queues[0].offer(&[writable(BUFFERS, 8)]);
    machine.kick(0);
    let used = machine.wait_used(0, 3);
    assert_eq!(used, [(first.into(), 0), (second.into(), 0), (third.into(), 8)]);
}

#[test]
fn device_reset_and_started_again_serves_the_new_rings() {
    let mut machine = machine();
    for _ in 0..3 {
        machine.queues[0].offer(&[writable(BUFFERS, 16)]);
        machine.kick(0);
        assert_eq!(machine.wait_used(0, 1).len(), 1);
        machine.write(0x70, 0);
        assert_eq!(machine.read(0x70), 0);
        machine.start(0);
    }
}

#[test]
fn paused_device_serves_nothing_until_resumed() {
    let mut machine = machine();
    machine.transport.pause();
    machine.queues[0].offer(&[writable(BUFFERS, 16)]);
    machine.kick(0);
    let state = machine.transport.device().state().queue.unwrap();
    assert_eq!((state.next_avail, state.next_used, state.ready), (0, 0, true));
    machine.transport.resume().unwrap();
    assert_eq!(machine.wait_used(0, 1).len(), 1);
    machine.transport.pause();
    assert_eq!(machine.transport.device().state().queue.unwrap().next_used, 1);
}
