//! Chains and queues against a hostile driver.

use std::os::fd::AsRawFd;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Chain, ChainError, ChainQueue, IoVectors, MAX_DESCRIPTORS};
use crate::virtio::reach::Reachable;
use crate::virtio::testing::{
    BUFFERS, Desc, DriverQueue, INDIRECT, MEMORY_BYTES, NEXT, WRITE, memory, readable, writable,
};
use crate::virtio::{ActiveQueue, Interrupt, Reach};

const TABLE: u64 = BUFFERS + 0x10_0000;

struct Setup {
    memory: GuestMemoryMmap,
    driver: DriverQueue,
    queue: ChainQueue,
    interrupt: Interrupt,
    line: EventFd,
}

fn setup(size: u16, event_idx: bool) -> Setup {
    let memory = memory();
    let driver = DriverQueue::new(&memory, 0, size);
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let interrupt = Interrupt::new(line.try_clone().unwrap());
    let queue = ChainQueue::new(driver.device_side(event_idx), interrupt.clone());
    Setup { memory, driver, queue, interrupt, line }
}

impl Setup {
    fn pop(&mut self) -> Option<Chain> {
        self.queue.acknowledge_kick(&self.memory);
        self.queue.pop(&self.memory)
    }

    /// What the driver has offered is refused, comes back with length 0, and the queue goes on.
    fn assert_refused(&mut self, head: u16) {
        assert!(self.pop().is_none());
        assert_eq!(self.driver.take_used(), [(u32::from(head), 0)]);
        assert!(!self.interrupt.needs_reset());
        let head = self.driver.offer(&[writable(BUFFERS, 8)]);
        let chain = self.pop().unwrap();
        self.queue.complete(&self.memory, chain, 8);
        assert_eq!(self.driver.take_used(), [(u32::from(head), 8)]);
    }
}

/// The parser alone, for the reason of a refusal.
fn parse(setup: &Setup, head: u16) -> Result<Chain, ChainError> {
    let mut queue = setup.driver.device_side(false).queue;
    use virtio_queue::QueueOwnedT;
    let reach = Reach::default();
    let memory = Reachable::new(&setup.memory, &reach);
    let chain = queue.iter(&memory).unwrap().next().unwrap();
    assert_eq!(chain.head_index(), head);
    Chain::parse(chain, &memory, Vec::new()).map_err(|(_, error)| error)
}

#[test]
fn chain_offered_is_split_and_copied_across_its_buffers() {
    let mut setup = setup(16, true);
    let memory = setup.memory.clone();
    memory.write_slice(b"hello, ", GuestAddress(BUFFERS)).unwrap();
    memory.write_slice(b"device", GuestAddress(BUFFERS + 0x100)).unwrap();
    let head = setup.driver.offer(&[
        readable(BUFFERS, 7),
        readable(u64::MAX, 0),
        readable(BUFFERS + 0x100, 6),
        writable(BUFFERS + 0x200, 3),
        writable(BUFFERS + 0x300, 100),
    ]);
    let chain = setup.pop().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (13, 103));
    let mut text = [0; 13];
    chain.read(&memory, 0, &mut text).unwrap();
    assert_eq!(&text, b"hello, device");
    let mut middle = [0; 4];
    chain.read(&memory, 5, &mut middle).unwrap();
    assert_eq!(&middle, b", de");
    assert_eq!(chain.read_object::<u16>(&memory, 7).unwrap(), u16::from_le_bytes(*b"de"));
    chain.write(&memory, 1, b"reply").unwrap();
    let mut reply = [0; 2];
    memory.read_slice(&mut reply, GuestAddress(BUFFERS + 0x201)).unwrap();
    assert_eq!(&reply, b"re");
    let mut rest = [0; 3];
    memory.read_slice(&mut rest, GuestAddress(BUFFERS + 0x300)).unwrap();
    assert_eq!(&rest, b"ply");
    setup.queue.complete(&memory, chain, 6);
    setup.queue.notify(&memory);
    assert_eq!(setup.driver.take_used(), [(u32::from(head), 6)]);
    assert_eq!(setup.line.read().unwrap(), 1);
}

#[test]
fn access_beyond_a_part_is_refused_and_moves_nothing() {
    let mut setup = setup(16, false);
    let memory = setup.memory.clone();
    setup.driver.offer(&[readable(BUFFERS, 8), writable(BUFFERS + 0x100, 8)]);
    let chain = setup.pop().unwrap();
    let mut vectors = IoVectors::default();
    for (offset, len) in [(0, 9), (8, 1), (9, 0), (usize::MAX, 2), (1, 8)] {
        let bounds = Err(ChainError::Bounds { offset, len });
        assert_eq!(chain.read(&memory, offset, &mut vec![0; len]), bounds);
        assert_eq!(chain.write(&memory, offset, &vec![1; len]), bounds);
        assert_eq!(chain.readable_vectors(&memory, offset, len, &mut vectors), bounds);
        assert_eq!(chain.writable_vectors(&memory, offset, len, &mut vectors), bounds);
    }
    assert_eq!((vectors.as_slice().len(), vectors.len_bytes()), (0, 0));
    assert_eq!(memory.read_obj::<u64>(GuestAddress(BUFFERS + 0x100)).unwrap(), 0);
    chain.read(&memory, 8, &mut []).unwrap();
    setup.queue.complete(&memory, chain, 0);
}

#[test]
fn vectors_name_the_memory_of_the_buffers() {
    let mut setup = setup(16, false);
    let memory = setup.memory.clone();
    setup.driver.offer(&[writable(BUFFERS, 8), writable(BUFFERS + 0x1000, 24)]);
    let chain = setup.pop().unwrap();
    let mut vectors = IoVectors::default();
    chain.writable_vectors(&memory, 4, 20, &mut vectors).unwrap();
    assert_eq!(vectors.len_bytes(), 20);
    let lens: Vec<_> = vectors.as_slice().iter().map(|vector| vector.iov_len).collect();
    assert_eq!(lens, [4, 16]);
    let host = memory.get_host_address(GuestAddress(BUFFERS + 0x1000)).unwrap();
    assert_eq!(vectors.as_slice()[1].iov_base.cast(), host);
    vectors.clear();
    vectors.push_zeroes((64 << 10) + 1);
    assert_eq!((vectors.as_slice().len(), vectors.len_bytes()), (2, (64 << 10) + 1));
    setup.queue.complete(&memory, chain, 0);
}

#[test]
fn chain_that_loops_is_refused() {
    let mut setup = setup(16, false);
    let looped = Desc { address: BUFFERS, len: 8, flags: NEXT, next: 1 };
    setup.driver.write_descriptor(setup.driver.descriptors, 0, looped);
    setup.driver.write_descriptor(setup.driver.descriptors, 1, Desc { next: 0, ..looped });
    setup.driver.offer_head(0);
    assert_eq!(parse(&setup, 0).unwrap_err(), ChainError::Broken(16));
    setup.assert_refused(0);
}

#[test]
fn chain_that_leaves_its_table_is_refused() {
    let mut setup = setup(16, false);
    let desc = Desc { address: BUFFERS, len: 8, flags: NEXT, next: 16 };
    setup.driver.write_descriptor(setup.driver.descriptors, 3, desc);
    setup.driver.offer_head(3);
    assert_eq!(parse(&setup, 3).unwrap_err(), ChainError::Broken(1));
    setup.assert_refused(3);
}

#[test]
fn buffers_outside_of_memory_are_refused() {
    for (address, len) in [
        (MEMORY_BYTES, 1),
        (MEMORY_BYTES - 1, 2),
        (BUFFERS, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (0, MEMORY_BYTES as u32 + 1),
    ] {
        let mut setup = setup(16, false);
        let head = setup.driver.offer(&[writable(address, len)]);
        assert_eq!(parse(&setup, head).unwrap_err(), ChainError::Memory { address, len });
        setup.assert_refused(head);
    }
}

#[test]
fn readable_buffer_after_a_writable_one_is_refused() {
    let mut setup = setup(16, false);
    let head = setup.driver.offer(&[writable(BUFFERS, 8), readable(BUFFERS, 8)]);
    assert_eq!(parse(&setup, head).unwrap_err(), ChainError::Order(1));
    setup.assert_refused(head);
}

#[test]
fn total_length_that_overflows_is_refused() {
    let mut setup = setup(2048, false);
    // 1025 buffers of 4 MiB - 4 KiB are more than 2^32 bytes; the count is refused first or the
    // length, but never is anything added up wrongly.
    let buffers = vec![readable(0x1000, MEMORY_BYTES as u32 - 0x1000); 1030];
    let head = setup.driver.offer_indirect(TABLE, &buffers);
    assert_eq!(parse(&setup, head).unwrap_err(), ChainError::TooManyDescriptors);
    setup.assert_refused(head);
    let mut setup = self::setup(2048, false);
    let buffers = vec![readable(0, MEMORY_BYTES as u32); MAX_DESCRIPTORS];
    let head = setup.driver.offer_indirect(TABLE, &buffers);
    assert!(matches!(parse(&setup, head), Err(ChainError::Broken(_))));
}

#[test]
fn indirect_chain_is_read_and_broken_ones_are_refused() {
    let mut setup = setup(16, false);
    let head = setup.driver.offer_indirect(TABLE, &[readable(BUFFERS, 8), writable(BUFFERS, 4)]);
    let chain = setup.pop().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 4));
    setup.queue.complete(&setup.memory, chain, 4);
    assert_eq!(setup.driver.take_used(), [(u32::from(head), 4)]);

    let inner = Desc { address: TABLE, len: 16, flags: INDIRECT, next: 0 };
    for table in [
        Desc { address: TABLE, len: 15, flags: INDIRECT, next: 0 },
        Desc { address: TABLE, len: 0, flags: INDIRECT, next: 0 },
        Desc { address: MEMORY_BYTES, len: 16, flags: INDIRECT, next: 0 },
        Desc { address: u64::MAX - 8, len: 32, flags: INDIRECT, next: 0 },
        Desc { address: TABLE, len: !15, flags: INDIRECT, next: 0 },
        inner,
    ] {
        setup.driver.write_descriptor(TABLE, 0, inner);
        let head = setup.driver.offer(&[table]);
        setup.assert_refused(head);
    }
}

#[test]
fn indirect_table_in_memory_that_was_not_given_is_refused_until_it_is() {
    let mut setup = setup(16, false);
    let reach = Reach::new(TABLE);
    let active = ActiveQueue { reach: reach.clone(), ..setup.driver.device_side(false) };
    setup.queue = ChainQueue::new(active, setup.interrupt.clone());
    let head = setup.driver.offer_indirect(TABLE, &[writable(BUFFERS, 8)]);
    setup.assert_refused(head);
    reach.extend(MEMORY_BYTES);
    let head = setup.driver.offer_indirect(TABLE, &[writable(BUFFERS, 8)]);
    let chain = setup.pop().unwrap();
    setup.queue.complete(&setup.memory, chain, 8);
    assert_eq!(setup.driver.take_used(), [(u32::from(head), 8)]);
}

#[test]
fn chain_of_the_most_descriptors_passes_and_one_more_does_not() {
    for (count, passes) in [(MAX_DESCRIPTORS, true), (MAX_DESCRIPTORS + 1, false)] {
        let mut setup = setup(16, false);
        let head = setup.driver.offer_indirect(TABLE, &vec![writable(BUFFERS, 1); count]);
        match parse(&setup, head) {
            Ok(chain) => assert!(passes && chain.writable_len() == count),
            Err(error) => assert!(!passes && error == ChainError::TooManyDescriptors),
        }
    }
}

#[test]
fn head_outside_of_the_table_needs_a_reset() {
    let mut setup = setup(16, false);
    setup.driver.offer_head(16);
    assert!(setup.pop().is_none());
    assert!(setup.interrupt.needs_reset());
    assert_eq!(setup.interrupt.status(), 2);
    // The queue stays stopped, whatever comes.
    setup.driver.offer(&[writable(BUFFERS, 8)]);
    assert!(setup.pop().is_none());
    assert_eq!(setup.driver.take_used(), []);
}

#[test]
fn head_offered_while_it_is_out_needs_a_reset() {
    let mut setup = setup(16, false);
    let head = setup.driver.offer(&[writable(BUFFERS, 8)]);
    let chain = setup.pop().unwrap();
    setup.driver.offer_head(head);
    assert!(setup.pop().is_none());
    assert!(setup.interrupt.needs_reset());
    setup.queue.complete(&setup.memory, chain, 8);
    assert_eq!(setup.driver.take_used(), [(u32::from(head), 8)]);
}

#[test]
fn head_offered_again_after_its_return_is_served() {
    let mut setup = setup(16, false);
    let head = setup.driver.offer(&[writable(BUFFERS, 8)]);
    for _ in 0..40 {
        let chain = setup.pop().unwrap();
        setup.queue.complete(&setup.memory, chain, 8);
        assert_eq!(setup.driver.take_used(), [(u32::from(head), 8)]);
        setup.driver.offer_head(head);
    }
}

#[test]
fn more_chains_than_entries_need_a_reset() {
    let mut setup = setup(16, true);
    setup.driver.set_available_index(17);
    assert!(setup.pop().is_none());
    assert!(setup.interrupt.needs_reset());
}

/// The attack of a driver that never stops adding: the same thread plays it here, between pops.
#[test]
fn endless_driver_is_left_after_one_round_and_comes_back_by_a_kick() {
    let mut setup = setup(16, true);
    setup.queue.acknowledge_kick(&setup.memory);
    let mut popped = 0;
    for _ in 0..100 {
        setup.driver.offer(&[writable(BUFFERS, 8)]);
        let Some(chain) = setup.queue.pop(&setup.memory) else { break };
        setup.queue.complete(&setup.memory, chain, 8);
        popped += 1;
    }
    assert_eq!(popped, 16);
    assert!(ready(setup.queue.as_raw_fd()), "the queue has kicked itself");
    assert!(setup.pop().is_some());
}

#[test]
fn malformed_chains_count_against_the_round_too() {
    let mut setup = setup(16, true);
    for _ in 0..16 {
        setup.driver.offer(&[writable(u64::MAX, 8)]);
    }
    assert!(setup.pop().is_none());
    assert_eq!(setup.driver.take_used().len(), 16);
    assert!(ready(setup.queue.as_raw_fd()));
    assert!(setup.pop().is_none());
    assert!(!ready(setup.queue.as_raw_fd()));
}

#[test]
fn driver_is_interrupted_only_when_it_asked() {
    for (event_idx, interrupts) in [(true, 1), (false, 3)] {
        let mut setup = setup(16, event_idx);
        setup.queue.notify(&setup.memory);
        assert_eq!(setup.interrupt.status(), 0, "nothing was completed");
        for _ in 0..3 {
            setup.driver.offer(&[writable(BUFFERS, 8)]);
            let chain = setup.pop().unwrap();
            setup.queue.complete(&setup.memory, chain, 8);
            setup.queue.notify(&setup.memory);
        }
        // With event indices, the driver has asked for the first completion alone.
        assert_eq!(setup.line.read().unwrap(), interrupts);
    }
}

#[test]
fn kicks_are_suppressed_while_the_queue_is_worked_on() {
    let mut setup = setup(16, false);
    let flags =
        |setup: &Setup| -> u16 { setup.memory.read_obj(GuestAddress(setup.driver.used)).unwrap() };
    setup.driver.offer(&[writable(BUFFERS, 8)]);
    let chain = setup.pop().unwrap();
    assert_eq!(flags(&setup), 1, "VRING_USED_F_NO_NOTIFY");
    assert!(setup.queue.pop(&setup.memory).is_none());
    assert_eq!(flags(&setup), 0);
    setup.queue.complete(&setup.memory, chain, 0);
}

/// Whether a descriptor is readable now.
fn ready(fd: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one live pollfd, and a count of one.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

fn any_desc() -> impl Strategy<Value = Desc> {
    let address = prop_oneof![0..MEMORY_BYTES, any::<u64>(), Just(TABLE)];
    let len = prop_oneof![0u32..0x2000, any::<u32>(), (0u32..20).prop_map(|n| n * 16)];
    let flags = prop_oneof![Just(0), Just(NEXT), Just(NEXT | WRITE), 0u16..8];
    (address, len, flags, 0u16..20).prop_map(|(address, len, flags, next)| Desc {
        address,
        len,
        flags,
        next,
    })
}

proptest! {
    /// Whatever lies in the tables and the ring: nothing panics, every chain popped is bounded
    /// and lies in memory, every head comes back once or the device needs a reset.
    #[test]
    fn any_rings_are_survived(
        table in prop::collection::vec(any_desc(), 16),
        indirect in prop::collection::vec(any_desc(), 20),
        heads in prop::collection::vec(0u16..18, 0..16),
        jump in prop_oneof![9 => Just(None), 1 => any::<u16>().prop_map(Some)],
        event_idx in any::<bool>(),
    ) {
        let mut setup = setup(16, event_idx);
        let memory = setup.memory.clone();
        for (index, desc) in (0u16..).zip(&table) {
            setup.driver.write_descriptor(setup.driver.descriptors, index, *desc);
        }
        for (index, desc) in (0u16..).zip(&indirect) {
            setup.driver.write_descriptor(TABLE, index, *desc);
        }
        for head in &heads {
            setup.driver.offer_head(*head);
        }
        if let Some(index) = jump {
            setup.driver.set_available_index(index);
        }
        setup.queue.acknowledge_kick(&memory);
        // Buffers are not written to: a guest may put them over its own rings.
        let mut count = 0;
        while let Some(chain) = setup.queue.pop(&memory) {
            prop_assert!(chain.segments.len() <= MAX_DESCRIPTORS);
            let mut data = vec![0; chain.readable_len().min(0x4000)];
            chain.read(&memory, 0, &mut data).unwrap();
            let mut vectors = IoVectors::default();
            chain.writable_vectors(&memory, 0, chain.writable_len(), &mut vectors).unwrap();
            prop_assert_eq!(vectors.len_bytes(), chain.writable_len());
            setup.queue.complete(&memory, chain, 0);
            count += 1;
        }
        setup.queue.notify(&memory);
        prop_assert!(count <= 16);
        let used = setup.driver.take_used().len();
        prop_assert!(setup.interrupt.needs_reset() || jump.is_some() || used == heads.len());
    }
}
