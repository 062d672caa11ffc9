//! The balloon behind a transport, driven as Linux does it, and as it never would.

use vm_memory::{Bytes, GuestAddress};

use super::device::{F_DEFLATE_ON_OOM, F_REPORTING, F_STATS_VQ};
use super::queue::PFNS_MAX;
use super::{Balloon, GuestFigures};
use crate::virtio::Reach;
use crate::virtio::testing::{BUFFERS, MEMORY_BYTES, Machine, no_hook, readable, writable};

const ALL: u64 = F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
/// Where pages to give away lie, and their number.
const PAGES: u64 = 0x20_0000;
const PFN: u32 = (PAGES >> 12) as u32;

fn machine() -> Machine<Balloon> {
    let mut machine = Machine::new(Balloon::new(&no_hook()).unwrap());
    machine.start(ALL);
    fill(&machine);
    machine
}

fn fill(machine: &Machine<Balloon>) {
    machine.memory.write_slice(&vec![7; 0x10_0000], GuestAddress(PAGES)).unwrap();
}

fn page(machine: &Machine<Balloon>, index: u64) -> u8 {
    machine.memory.read_obj(GuestAddress(PAGES + index * 4096 + 9)).unwrap()
}

/// Offers `pfns` on `queue` and waits for their return.
fn give(machine: &mut Machine<Balloon>, queue: usize, pfns: &[u32]) {
    let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
    machine.memory.write_slice(&bytes, GuestAddress(BUFFERS)).unwrap();
    machine.queues[queue].offer(&[readable(BUFFERS, bytes.len() as u32)]);
    machine.kick(queue as u32);
    assert_eq!(machine.wait_used(queue, 1)[0].1, 0);
}

#[test]
fn pages_in_the_balloon_are_gone_and_others_stay() {
    let mut machine = machine();
    give(&mut machine, INFLATE, &[PFN + 3, PFN + 1, PFN + 2]);
    let bytes: Vec<u8> = (0..5).map(|index| page(&machine, index)).collect();
    assert_eq!(bytes, [7, 0, 0, 0, 7]);
    give(&mut machine, DEFLATE, &[PFN + 1]);
    machine.memory.write_slice(&[9; 4096], GuestAddress(PAGES + 4096)).unwrap();
    assert_eq!(page(&machine, 1), 9);
}

#[test]
fn page_numbers_outside_of_memory_are_passed_over() {
    let mut machine = machine();
    let last = (MEMORY_BYTES >> 12) as u32;
    give(&mut machine, INFLATE, &[u32::MAX, last, PFN, last + 1, 1 << 31]);
    assert_eq!([page(&machine, 0), page(&machine, 1)], [0, 7]);
}

#[test]
fn chain_with_more_page_numbers_than_are_taken_comes_back() {
    let mut machine = machine();
    let mut pfns = vec![PFN; PFNS_MAX];
    pfns.push(PFN + 1);
    give(&mut machine, INFLATE, &pfns);
    assert_eq!([page(&machine, 0), page(&machine, 1)], [0, 7]);
}

#[test]
fn chains_that_name_nothing_come_back() {
    let mut machine = machine();
    for queue in [INFLATE, DEFLATE, REPORTING] {
        machine.queues[queue].offer(&[readable(BUFFERS, 3)]);
        machine.queues[queue].offer(&[readable(u64::MAX - 4, 4)]);
        machine.kick(queue as u32);
        assert_eq!(machine.wait_used(queue, 2).len(), 2);
    }
    machine.queues[INFLATE].offer(&[writable(PAGES, 4096)]);
    machine.kick(INFLATE as u32);
    machine.wait_used(INFLATE, 1);
    assert_eq!(page(&machine, 0), 7);
}

#[test]
fn reported_ranges_go_back_and_are_counted() {
    let mut machine = machine();
    let ranges = [writable(PAGES + 0x4000, 0x2000), writable(PAGES + 0x2000, 0x2000)];
    machine.queues[REPORTING].offer(&ranges);
    machine.queues[REPORTING].offer(&[writable(PAGES + 0x8800, 0x1000)]);
    machine.kick(REPORTING as u32);
    assert_eq!(machine.wait_used(REPORTING, 2), [(0, 0), (2, 0)]);
    let bytes: Vec<u8> = (0..10).map(|index| page(&machine, index)).collect();
    assert_eq!(bytes, [7, 7, 0, 0, 0, 0, 7, 7, 7, 7]);
    assert_eq!(machine.transport.device().counts().reported_bytes, 0x4000);
}

#[test]
fn memory_that_was_not_given_is_neither_ballooned_nor_reported() {
    let reach = Reach::new(PAGES);
    let mut machine = Machine::within(Balloon::new(&no_hook()).unwrap(), reach);
    machine.start(ALL);
    fill(&machine);
    give(&mut machine, INFLATE, &[PFN]);
    machine.queues[REPORTING].offer(&[writable(PAGES + 4096, 4096)]);
    machine.kick(REPORTING as u32);
    machine.wait_used(REPORTING, 1);
    assert_eq!([page(&machine, 0), page(&machine, 1)], [7, 7]);
}

#[test]
fn target_is_read_and_what_the_driver_writes_is_told() {
    let mut machine = machine();
    machine.transport.device().set_target(5 << 20);
    machine.transport.interrupt().config_changed();
    assert_eq!(machine.read(0x100), 5 << 8);
    machine.write(0x104, 3 << 8);
    machine.write(0x100, 99);
    let counts = machine.transport.device().counts();
    assert_eq!((counts.target_bytes, counts.actual_bytes), (5 << 20, 3 << 20));
    assert_eq!([machine.read(0x104), machine.read(0x108)], [3 << 8, 0]);
    machine.write(0x70, 0);
    assert_eq!(machine.transport.device().counts().actual_bytes, 0);
    machine.transport.device().set_target(u64::MAX);
    assert_eq!(machine.read(0x100), u32::MAX);
}

/// Offers the statistics `total`.
fn tell(machine: &mut Machine<Balloon>, total: u64) {
    machine.memory.write_obj(5_u16, GuestAddress(BUFFERS)).unwrap();
    machine.memory.write_slice(&total.to_le_bytes(), GuestAddress(BUFFERS + 2)).unwrap();
    machine.queues[STATISTICS].offer(&[readable(BUFFERS, 10)]);
    machine.kick(STATISTICS as u32);
}

#[test]
fn statistics_are_kept_and_the_buffer_returns_when_they_are_asked_for() {
    let mut machine = machine();
    tell(&mut machine, 5);
    // A pause is a point at which the worker has seen the kick, and returns the buffer.
    machine.transport.pause();
    let figures = GuestFigures { total_bytes: 5, ..GuestFigures::default() };
    assert_eq!(machine.transport.device().counts().figures, Some(figures));
    machine.transport.resume().unwrap();
    machine.wait_used(STATISTICS, 1);
    for total in [6, 7] {
        tell(&mut machine, total);
        while machine.transport.device().counts().figures.unwrap().total_bytes != total {
            std::thread::yield_now();
        }
        assert_eq!(machine.wait_used(STATISTICS, 1).len(), 1);
    }
}

#[test]
fn buffer_offered_before_the_last_one_returned_sends_that_back() {
    let mut machine = machine();
    tell(&mut machine, 1);
    tell(&mut machine, 2);
    assert_eq!(machine.wait_used(STATISTICS, 1).len(), 1);
}

#[test]
fn queues_move_up_where_a_feature_is_not_accepted() {
    let mut machine = Machine::new(Balloon::new(&no_hook()).unwrap());
    machine.negotiate(F_REPORTING);
    machine.set_up_queues();
    machine.write(0x30, 3);
    machine.write(0x44, 0);
    machine.write(0x70, 15);
    assert_eq!(machine.read(0x70), 15);
    fill(&machine);
    machine.queues[2].offer(&[writable(PAGES, 4096)]);
    machine.kick(2);
    machine.wait_used(2, 1);
    assert_eq!(page(&machine, 0), 0);
}

#[test]
fn driver_with_too_few_queues_for_its_features_needs_a_reset() {
    let mut machine = Machine::new(Balloon::new(&no_hook()).unwrap());
    machine.negotiate(ALL);
    machine.set_up_queues();
    for queue in [2, 3] {
        machine.write(0x30, queue);
        machine.write(0x44, 0);
    }
    machine.write(0x70, 15);
    assert_eq!(machine.read(0x70), 15 | 64);
}

#[test]
fn device_paused_and_reset_serves_the_new_rings() {
    let mut machine = machine();
    for round in 0..3 {
        give(&mut machine, INFLATE, &[PFN + round]);
        machine.transport.pause();
        assert_eq!(machine.transport.device().state().queues[INFLATE].next_used, 1);
        machine.transport.resume().unwrap();
        machine.write(0x70, 0);
        machine.start(ALL);
    }
    assert_eq!([0, 1, 2, 3].map(|index| page(&machine, index)), [0, 0, 0, 7]);
}
