//! A queue that hands out checked chains and takes them back.
//!
//! Input: the available ring of a hostile driver, which may run on another CPU meanwhile.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::checked::{Chain, Segment};
use super::used::UsedRing;
use crate::virtio::reach::Reachable;
use crate::virtio::{ActiveQueue, Interrupt, Reach};

/// Most descriptors of an allocation that is kept for the next chain: a hostile guest shall not
/// make every one of them large for good.
const SPARE_SEGMENTS_MAX: usize = 64;

/// A queue as a device uses it: chains come out checked and go back once.
///
/// ```text
/// queue.acknowledge_kick(&memory);
/// while let Some(chain) = queue.pop(&memory) {
///     // ... now or later, in any order:
///     queue.complete(&memory, chain, written);
/// }
/// queue.notify(&memory);
/// ```
///
/// What the driver can do wrong ends in one of two ways: a chain that is refused goes back with
/// length 0, and the queue goes on; rings that make no sense (more chains than the queue has
/// entries, a head outside of the table, a head that is out already) mark the device as needing a
/// reset and stop the queue.
pub struct ChainQueue {
    queue: Queue,
    used: UsedRing,
    kick: Arc<EventFd>,
    reach: Reach,
    interrupt: Interrupt,
    /// Chains that may still be popped before the worker looks at its other events.
    budget: u16,
    broken: bool,
    /// Heads of the chains that are out, by index.
    out: Vec<bool>,
    /// Allocations of completed chains, for the next ones.
    spare: Vec<Vec<Segment>>,
}

impl ChainQueue {
    /// Takes over a queue that the transport has validated.
    pub fn new(active: ActiveQueue, interrupt: Interrupt) -> Self {
        let budget = active.queue.size();
        let out = vec![false; usize::from(budget)];
        Self {
            used: UsedRing::new(&active.queue),
            queue: active.queue,
            kick: active.kick,
            reach: active.reach,
            interrupt,
            budget,
            broken: false,
            out,
            spare: Vec::new(),
        }
    }

    /// Handles the readiness of the kick event. Without this the event stays ready.
    pub fn acknowledge_kick(&mut self, memory: &GuestMemoryMmap) {
        // The event never blocks; that there is nothing to read is no error.
        let _ = self.kick.read();
        self.begin_round(memory);
    }

    /// As [`ChainQueue::acknowledge_kick`] for a kick event that is watched for edges, whose
    /// counter nobody has to read.
    pub fn begin_round(&mut self, memory: &GuestMemoryMmap) {
        self.budget = self.queue.size();
        // A hint that saves kicks while the queue is worked on; `pop` takes it back.
        let _ = self.queue.disable_notification(memory);
    }

    /// The next chain, or `None` if there is none now.
    ///
    /// After `None` the kick event becomes ready when there are more. The attack that the budget
    /// stops: a driver on another CPU that adds chains as fast as they are popped, or moves the
    /// available index to and fro, would keep the worker from its stop event for ever. So after
    /// as many steps as the queue has entries the queue kicks itself and says `None`.
    pub fn pop(&mut self, memory: &GuestMemoryMmap) -> Option<Chain> {
        while !self.broken {
            let Some(budget) = self.budget.checked_sub(1) else {
                let _ = self.kick.write(1);
                return None;
            };
            let reachable = Reachable::new(memory, &self.reach);
            match self.queue.iter(&reachable).map(|mut chains| chains.next()) {
                Ok(Some(chain)) => {
                    self.budget = budget;
                    let head = chain.head_index();
                    if !hand_out(&mut self.out, head) {
                        self.fail();
                        break;
                    }
                    let spare = self.spare.pop().unwrap_or_default();
                    match Chain::parse(chain, &reachable, spare) {
                        Ok(chain) => return Some(chain),
                        Err((segments, _)) => {
                            self.put_back(memory, head, segments, 0);
                            self.show(memory);
                        }
                    }
                }
                // The driver may have added a chain before it could see that kicks are wanted.
                Ok(None) => match self.queue.enable_notification(memory) {
                    Ok(true) => self.budget = budget,
                    Ok(false) => return None,
                    Err(_) => self.fail(),
                },
                Err(_) => self.fail(),
            }
        }
        None
    }

    /// Whether every entry of the queue is out: there is nothing more to pop until one is
    /// completed.
    pub fn is_drained(&self) -> bool {
        self.out.iter().all(|out| *out)
    }

    /// Returns a chain to the driver, with the number of bytes that were written from the start
    /// of its writable part.
    pub fn complete(&mut self, memory: &GuestMemoryMmap, chain: Chain, written: usize) {
        self.complete_unseen(memory, chain, written);
        self.show(memory);
    }

    /// As [`ChainQueue::complete`], but the driver sees it only with the next one that is completed
    /// that way, or after [`ChainQueue::notify`].
    pub fn complete_unseen(&mut self, memory: &GuestMemoryMmap, chain: Chain, written: usize) {
        debug_assert!(written <= chain.writable_len(), "more written than there is room for");
        let written = chain.writable_len.min(u32::try_from(written).unwrap_or(u32::MAX));
        self.put_back(memory, chain.head, chain.segments, written);
    }

    /// Tells the driver of the chains completed since the last call, if it wants to be told.
    pub fn notify(&mut self, memory: &GuestMemoryMmap) {
        if self.needs_interrupt(memory) {
            self.interrupt.used();
        }
    }

    /// As [`ChainQueue::notify`], but leaves the interrupt that this says is wanted to the caller:
    /// the queues of a device share it.
    #[must_use]
    pub fn needs_interrupt(&mut self, memory: &GuestMemoryMmap) -> bool {
        self.show(memory);
        self.used.needs_interrupt(memory).unwrap_or_else(|_| {
            self.fail();
            false
        })
    }

    /// The queue's position, for a snapshot.
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    fn put_back(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        mut segments: Vec<Segment>,
        written: u32,
    ) {
        if let Some(out) = self.out.get_mut(usize::from(head)) {
            *out = false;
        }
        if segments.capacity() <= SPARE_SEGMENTS_MAX {
            segments.clear();
            self.spare.push(segments);
        }
        if self.used.push(memory, head, written).is_err() {
            self.fail();
        }
    }

    fn show(&mut self, memory: &GuestMemoryMmap) {
        if self.used.show(memory).is_err() {
            self.fail();
        }
        self.queue.set_next_used(self.used.next());
    }

    /// The rings make no sense: the driver must reset the device.
    fn fail(&mut self) {
        if !std::mem::replace(&mut self.broken, true) {
            self.interrupt.device_needs_reset();
        }
    }
}

/// Marks a head as out. The attack that this stops: a driver that offers one head over and over
/// while the device holds its chain would make the device hold any number of chains. So there are
/// never more out than the queue has entries.
fn hand_out(all: &mut [bool], head: u16) -> bool {
    match all.get_mut(usize::from(head)) {
        Some(out) => !std::mem::replace(out, true),
        None => false,
    }
}

impl AsRawFd for ChainQueue {
    /// The kick event.
    fn as_raw_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }
}
