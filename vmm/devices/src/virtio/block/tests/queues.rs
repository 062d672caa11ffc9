//! Several queues of one device, a size that changes, and what is counted.

use super::*;
use crate::virtio::block::BlockCounts;

const QUEUES: usize = 3;

fn several(file: &File) -> Machine<Block> {
    let backing = Backing::new(file.try_clone().unwrap(), false, QUEUES).unwrap();
    let config = BlockConfig { queues: QUEUES, ..BlockConfig::default() };
    Machine::new(Block::new(config, Some(backing), &no_hook()).unwrap())
}

/// Offers a read of `sector` to `queue`, with buffers that belong to that queue alone.
fn offer_read(machine: &mut Machine<Block>, queue: usize, sector: u64) -> u64 {
    let at = BUFFERS + queue as u64 * 0x1000;
    put_header(machine, at, IN, sector);
    let chain = [readable(at, 16), writable(at + 0x200, 512), writable(at + 0x100, 1)];
    machine.queues[queue].offer(&chain);
    at
}

#[test]
fn requests_of_every_queue_are_answered_on_their_queue() {
    let mut machine = several(&disk());
    machine.start(u64::MAX);
    assert_eq!(machine.queues.len(), QUEUES);
    assert_eq!(machine.read(0x100 + 32) >> 16, QUEUES as u32, "num_queues");
    for queue in 0..QUEUES {
        let at = offer_read(&mut machine, queue, queue as u64 + 7);
        machine.kick(queue as u32);
        assert_eq!(machine.wait_used(queue, 1).len(), 1);
        assert_eq!(guest_bytes(&machine, at + 0x200, 512), [queue as u8 + 8; 512]);
    }
    machine.transport.pause();
    let state = machine.transport.device().state();
    assert_eq!(state.queues.iter().map(|q| q.next_used).collect::<Vec<_>>(), [1; QUEUES]);
    machine.transport.resume().unwrap();
    offer_read(&mut machine, 2, 1);
    machine.kick(2);
    assert_eq!(machine.wait_used(2, 1).len(), 1);
}

#[test]
fn driver_that_uses_one_queue_of_several_is_served() {
    let mut machine = several(&disk());
    for ready in [vec![0], vec![0, 1]] {
        machine.negotiate(u64::MAX);
        machine.set_up_queues();
        for unused in (0..QUEUES).filter(|queue| !ready.contains(queue)) {
            machine.write(0x30, unused as u32);
            machine.write(0x44, 0);
        }
        machine.write(0x70, 15);
        assert_eq!(machine.read(0x70), 15, "DRIVER_OK");
        offer_read(&mut machine, 0, 1);
        machine.kick(0);
        assert_eq!(machine.wait_used(0, 1).len(), 1);
    }
}

#[test]
fn queue_that_is_left_out_before_another_is_an_error() {
    for missing in [0, 1] {
        let mut machine = several(&disk());
        machine.negotiate(u64::MAX);
        machine.set_up_queues();
        machine.write(0x30, missing);
        machine.write(0x44, 0);
        machine.write(0x70, 15);
        assert_eq!(machine.read(0x70), 15 | 64, "DEVICE_NEEDS_RESET");
    }
}

#[test]
fn new_size_is_seen_by_the_driver_and_holds_for_requests() {
    let file = disk();
    let mut machine = several(&file);
    machine.start(u64::MAX);
    let read = |machine: &mut Machine<Block>, sector| {
        let at = offer_read(machine, 1, sector);
        machine.kick(1);
        machine.wait_used(1, 1);
        guest_bytes(machine, at + 0x100, 1)[0]
    };
    assert_eq!(read(&mut machine, SECTORS), IO_ERROR);
    file.set_len((SECTORS + 8) * 512 + 100).unwrap();
    assert_eq!(read(&mut machine, SECTORS), IO_ERROR, "not told yet");
    assert_eq!(machine.transport.device_mut().resize().unwrap(), SECTORS + 8);
    assert_eq!(machine.read(0x100), SECTORS as u32 + 8);
    assert_eq!(read(&mut machine, SECTORS), OK);
    file.set_len(10 * 512).unwrap();
    assert_eq!(machine.transport.device_mut().resize().unwrap(), 10);
    assert_eq!(read(&mut machine, 10), IO_ERROR);
    assert_eq!(read(&mut machine, 9), OK);
}

#[test]
fn counts_are_of_all_queues() {
    let file = disk();
    let mut machine = several(&file);
    machine.start(u64::MAX);
    for (queue, sector) in [(0, 1), (1, 2), (2, 3), (2, SECTORS)] {
        offer_read(&mut machine, queue, sector);
        machine.kick(queue as u32);
        machine.wait_used(queue, 1);
    }
    assert_eq!(request(&mut machine, OUT, 0, &[readable(DATA, 1024)]).0, OK);
    assert_eq!(request(&mut machine, FLUSH, 0, &[]).0, OK);
    assert_eq!(request(&mut machine, 99, 0, &[]).0, UNSUPPORTED);
    let expected =
        BlockCounts { read_bytes: 3 * 512, reads: 3, written_bytes: 1024, writes: 1, errors: 1 };
    assert_eq!(machine.transport.device().counts(), expected);
}
