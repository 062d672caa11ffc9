//! The memory device behind a transport, driven as Linux does it, and as it never would.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::device::F_UNPLUGGED_INACCESSIBLE;
use super::{BLOCK_BYTES, Mem, MemCounts};
use crate::virtio::Reach;
use crate::virtio::testing::{BUFFERS, MEMORY_BYTES, Machine, no_hook, readable, writable};

/// The region is the upper half of the test's memory: one block.
const START: u64 = MEMORY_BYTES - BLOCK_BYTES;
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;
/// Where requests and responses lie.
const REQUEST: u64 = BUFFERS;
const RESPONSE: u64 = BUFFERS + 0x1000;

fn machine() -> Machine<Mem> {
    let mut machine = Machine::new(Mem::new(START, BLOCK_BYTES, &no_hook()).unwrap());
    machine.start(F_UNPLUGGED_INACCESSIBLE);
    machine
}

/// The first block is the guest's, and asked for.
fn with_block() -> Machine<Mem> {
    let machine = machine();
    machine.transport.device().request(BLOCK_BYTES, BLOCK_BYTES);
    machine
}

/// Response and state of a request; `u16::MAX` where nothing was written.
fn ask(machine: &mut Machine<Mem>, kind: u16, addr: u64, blocks: u16) -> (u16, u16) {
    let memory = &machine.memory;
    memory.write_obj(kind, GuestAddress(REQUEST)).unwrap();
    memory.write_obj(addr, GuestAddress(REQUEST + 8)).unwrap();
    memory.write_obj(blocks, GuestAddress(REQUEST + 16)).unwrap();
    memory.write_slice(&[0xff; 10], GuestAddress(RESPONSE)).unwrap();
    machine.queues[0].offer(&[readable(REQUEST, 24), writable(RESPONSE, 10)]);
    machine.kick(0);
    machine.wait_used(0, 1);
    let word = |at| machine.memory.read_obj(GuestAddress(at)).unwrap();
    (word(RESPONSE), word(RESPONSE + 8))
}

fn field(machine: &mut Machine<Mem>, index: u64) -> u64 {
    let low = machine.read(0x100 + index * 8);
    u64::from(machine.read(0x104 + index * 8)) << 32 | u64::from(low)
}

fn byte(memory: &GuestMemoryMmap) -> u8 {
    memory.read_obj(GuestAddress(START + 5)).unwrap()
}

#[test]
fn configuration_tells_the_region_and_what_was_asked_for() {
    let mut machine = machine();
    let fields = |machine: &mut Machine<Mem>| [0, 1, 2, 3, 4, 5, 6, 7].map(|i| field(machine, i));
    assert_eq!(fields(&mut machine), [BLOCK_BYTES, 0, START, BLOCK_BYTES, 0, 0, 0, 0]);
    machine.transport.device().request(1, u64::MAX);
    let expected = [BLOCK_BYTES, 0, START, BLOCK_BYTES, BLOCK_BYTES, 0, BLOCK_BYTES, 0];
    assert_eq!(fields(&mut machine), expected);
    machine.transport.device().request(0, 0);
    assert_eq!((field(&mut machine, 4), field(&mut machine, 6)), (BLOCK_BYTES, 0));
}

#[test]
fn block_is_plugged_and_unplugged_and_its_memory_goes_back() {
    let mut machine = with_block();
    assert_eq!(ask(&mut machine, STATE, START, 1), (ACK, 1));
    assert_eq!(ask(&mut machine, PLUG, START, 1).0, ACK);
    assert_eq!(ask(&mut machine, STATE, START, 1), (ACK, 0));
    assert_eq!(field(&mut machine, 5), BLOCK_BYTES);
    machine.memory.write_slice(&[7; 4096], GuestAddress(START)).unwrap();
    assert_eq!(ask(&mut machine, UNPLUG, START, 1).0, ACK);
    assert_eq!(byte(&machine.memory), 0);
    assert_eq!(ask(&mut machine, STATE, START, 1), (ACK, 1));
    let counts = machine.transport.device().counts();
    assert_eq!(counts, MemCounts { requested_bytes: BLOCK_BYTES, plugged_bytes: 0 });
}

#[test]
fn more_than_was_asked_for_is_denied() {
    let mut machine = with_block();
    machine.transport.device().request(0, BLOCK_BYTES);
    assert_eq!(ask(&mut machine, PLUG, START, 1).0, NACK);
    assert_eq!(field(&mut machine, 5), 0);
}

#[test]
fn request_that_makes_no_sense_is_an_error_and_changes_nothing() {
    let mut machine = with_block();
    machine.memory.write_slice(&[7; 4096], GuestAddress(START - 4096)).unwrap();
    for kind in [PLUG, UNPLUG, STATE] {
        for (addr, blocks) in [
            (START, 0),
            (START, 2),
            (START, u16::MAX),
            (START + 4096, 1),
            (START - BLOCK_BYTES, 1),
            (0, 1),
            (u64::MAX, 1),
        ] {
            assert_eq!(ask(&mut machine, kind, addr, blocks).0, ERROR, "{kind} {addr:#x} {blocks}");
        }
    }
    assert_eq!(ask(&mut machine, 4, START, 1).0, ERROR);
    assert_eq!(ask(&mut machine, UNPLUG, START, 1).0, ERROR, "not plugged");
    assert_eq!(ask(&mut machine, PLUG, START, 1).0, ACK);
    assert_eq!(ask(&mut machine, PLUG, START, 1).0, ERROR, "plugged already");
    let before: u8 = machine.memory.read_obj(GuestAddress(START - 1)).unwrap();
    assert_eq!(before, 7);
}

#[test]
fn chain_without_request_or_room_comes_back_empty() {
    let mut machine = with_block();
    let chains = [
        vec![readable(REQUEST, 23), writable(RESPONSE, 10)],
        vec![readable(REQUEST, 24), writable(RESPONSE, 9)],
        vec![readable(REQUEST, 24)],
        vec![writable(RESPONSE, 10)],
    ];
    for chain in &chains {
        machine.queues[0].offer(chain);
        machine.kick(0);
        assert_eq!(machine.wait_used(0, 1)[0].1, 0);
    }
    assert_eq!(ask(&mut machine, PLUG, START, 1).0, ACK);
}

#[test]
fn unplug_all_gives_everything_back() {
    let mut machine = with_block();
    assert_eq!(ask(&mut machine, PLUG, START, 1).0, ACK);
    machine.memory.write_slice(&[7; 4096], GuestAddress(START)).unwrap();
    assert_eq!(ask(&mut machine, UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!((byte(&machine.memory), field(&mut machine, 5)), (0, 0));
    assert_eq!(ask(&mut machine, PLUG, START, 1).0, ACK);
}

#[test]
fn plugged_blocks_outlive_a_reset_and_a_pause() {
    let mut machine = with_block();
    assert_eq!(ask(&mut machine, PLUG, START, 1).0, ACK);
    machine.write(0x70, 0);
    assert_eq!(machine.transport.device().state().plugged, [1]);
    machine.start(F_UNPLUGGED_INACCESSIBLE);
    assert_eq!(ask(&mut machine, STATE, START, 1), (ACK, 0));
    machine.transport.pause();
    let state = machine.transport.device().state();
    assert_eq!((state.counts.plugged_bytes, state.usable_bytes), (BLOCK_BYTES, BLOCK_BYTES));
    assert_eq!((state.queue.unwrap().next_used, state.plugged), (1, vec![1]));
    machine.transport.resume().unwrap();
    assert_eq!(ask(&mut machine, UNPLUG, START, 1).0, ACK);
}

#[test]
fn buffer_in_memory_that_was_not_given_is_refused_until_it_is() {
    let reach = Reach::new(START);
    let device = Mem::new(START, BLOCK_BYTES, &no_hook()).unwrap();
    let mut machine = Machine::within(device, reach.clone());
    machine.start(F_UNPLUGGED_INACCESSIBLE);
    machine.memory.write_obj(STATE, GuestAddress(REQUEST)).unwrap();
    machine.memory.write_slice(&[7; 10], GuestAddress(START)).unwrap();
    machine.queues[0].offer(&[readable(REQUEST, 24), writable(START, 10)]);
    machine.kick(0);
    assert_eq!(machine.wait_used(0, 1)[0].1, 0);
    assert_eq!(byte(&machine.memory), 7);
    reach.extend(MEMORY_BYTES);
    machine.queues[0].offer(&[readable(REQUEST, 24), writable(START, 10)]);
    machine.kick(0);
    assert_eq!(machine.wait_used(0, 1)[0].1, 10);
}

#[test]
fn ring_in_memory_that_was_not_given_needs_a_reset() {
    for register in [0x80, 0x90, 0xa0] {
        let device = Mem::new(START, BLOCK_BYTES, &no_hook()).unwrap();
        let mut machine = Machine::within(device, Reach::new(START));
        machine.negotiate(0);
        machine.set_up_queues();
        machine.write(0x30, 0);
        machine.write(0x44, 0);
        machine.write(register, START as u32);
        machine.write(0x44, 1);
        machine.write(0x70, 15);
        assert_eq!(machine.read(0x70), 15 | 64, "{register:#x}");
    }
}
