//! From the guest to the host: one transmit queue (virtio 1.2, section 5.1.6.2).
//!
//! Input: packets of a hostile driver. The header is copied and checked; the rest goes to the
//! kernel as it lies in guest memory. What cannot be sent is dropped and counted.

use std::io;

use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use zerocopy::IntoBytes;

use super::backend::Port;
use super::counters::Counts;
use super::header::{HEADER_BYTES, Header, Offloads};
use crate::rate::RateLimiter;
use crate::virtio::chain::{Chain, ChainQueue, IoVectors};

/// A transmit queue.
pub(super) struct TxQueue {
    queue: ChainQueue,
    offloads: Offloads,
    vectors: IoVectors,
}

/// Why [`TxQueue::send`] has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// There is no packet now; the queue's kick says when there is.
    Drained,
    /// The rate limit is reached; its timer says when to go on.
    Limited,
}

impl TxQueue {
    pub(super) fn new(queue: ChainQueue, offloads: Offloads) -> Self {
        Self { queue, offloads, vectors: IoVectors::default() }
    }

    /// Whether the driver wants an interrupt for what was sent.
    pub(super) fn needs_interrupt(&mut self, memory: &GuestMemoryMmap) -> bool {
        self.queue.needs_interrupt(memory)
    }

    /// The queue's position for a snapshot.
    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Sends packets while there are any. `lost` is set when the interface of the host is gone;
    /// then packets go nowhere.
    pub(super) fn send(
        &mut self,
        memory: &GuestMemoryMmap,
        port: &mut dyn Port,
        mut limit: Option<&mut RateLimiter>,
        counts: &mut Counts,
        lost: &mut bool,
    ) -> io::Result<Ended> {
        self.queue.begin_round(memory);
        loop {
            if let Some(limit) = &mut limit
                && !limit.admit()?
            {
                return Ok(Ended::Limited);
            }
            let Some(chain) = self.queue.pop(memory) else {
                return Ok(Ended::Drained);
            };
            let frame_bytes = chain.readable_len().saturating_sub(HEADER_BYTES) as u64;
            let sent = !*lost && self.send_one(memory, &chain, port, lost);
            self.queue.complete_unseen(memory, chain, 0);
            if !sent {
                counts.tx_dropped += 1;
                continue;
            }
            counts.tx_packets += 1;
            counts.tx_bytes += frame_bytes;
            if let Some(limit) = &mut limit {
                limit.charge(frame_bytes);
            }
        }
    }

    /// Sends one packet; whether the kernel has taken it.
    fn send_one(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        port: &mut dyn Port,
        lost: &mut bool,
    ) -> bool {
        let Some(frame_bytes) = chain.readable_len().checked_sub(HEADER_BYTES) else {
            return false;
        };
        let Ok(header) = chain.read_object::<Header>(memory, 0) else {
            return false;
        };
        let Some(header) = self.offloads.sent(header, frame_bytes) else {
            return false;
        };
        self.vectors.clear();
        self.vectors.push_bytes(header.as_bytes().as_ptr(), HEADER_BYTES);
        if chain.readable_vectors(memory, HEADER_BYTES, frame_bytes, &mut self.vectors).is_err() {
            return false;
        }
        // SAFETY: the vectors name the header above and guest memory, which the caller keeps
        // mapped.
        match unsafe { port.send(&self.vectors) } {
            Ok(()) => true,
            Err(error) => {
                *lost = error.raw_os_error() == Some(libc::EBADFD);
                false
            }
        }
    }
}
