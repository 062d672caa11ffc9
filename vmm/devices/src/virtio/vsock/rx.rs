//! The queue that carries packets to the guest.
//!
//! The guest gives small buffers, Linux one page each. So that a system call moves more than one
//! page, a read of a host socket goes into many buffers at once, straight into guest memory; each
//! gets a header of its own afterwards. Buffers that a read did not fill stay in stock for the
//! next packet.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use zerocopy::IntoBytes;

use crate::virtio::chain::{Chain, ChainQueue, IoVectors};

use super::packet::{HEADER_BYTES, Header};
use super::socket::MAX_VECTORS;

/// The rx queue (virtio 1.2, section 5.10.2).
pub struct RxQueue {
    memory: GuestMemoryMmap,
    queue: ChainQueue,
    /// Popped and not used, in the order of the available ring. At most the size of the queue.
    stock: VecDeque<Chain>,
    vectors: IoVectors,
}

impl RxQueue {
    /// Takes over the queue.
    pub fn new(memory: GuestMemoryMmap, queue: ChainQueue) -> Self {
        Self { memory, queue, stock: VecDeque::new(), vectors: IoVectors::default() }
    }

    /// Handles the readiness of the kick event.
    pub fn acknowledge_kick(&mut self) {
        self.queue.acknowledge_kick(&self.memory);
    }

    /// Whether there is a buffer for a header. If not, the kick event tells when there is.
    pub fn is_ready(&mut self) -> bool {
        self.first_with(HEADER_BYTES)
    }

    /// Sends a packet without payload. The caller has seen [`RxQueue::is_ready`].
    pub fn send(&mut self, header: &Header) {
        if let Some(chain) = self.stock.pop_front() {
            self.complete(chain, header, 0);
        }
    }

    /// Room for payload of at most `limit` bytes, or `None` if there is no buffer; then the kick
    /// event tells when there is.
    pub fn gather(&mut self, limit: usize) -> Option<&IoVectors> {
        self.vectors.clear();
        if !self.first_with(HEADER_BYTES + 1) {
            return None;
        }
        let mut index = 0;
        while self.vectors.len_bytes() < limit
            && self.vectors.as_slice().len() < MAX_VECTORS
            && (index < self.stock.len() || self.refill())
        {
            let chain = &self.stock[index];
            // Nothing but the first buffer may be given back unused, to keep their order.
            let Some(room) = payload_room(chain) else {
                break;
            };
            let part = room.min(limit - self.vectors.len_bytes());
            if chain.writable_vectors(&self.memory, HEADER_BYTES, part, &mut self.vectors).is_err()
            {
                break;
            }
            index += 1;
        }
        (self.vectors.len_bytes() > 0).then_some(&self.vectors)
    }

    /// Sends `count` bytes that lie in the room just gathered, each buffer with `header`.
    pub fn deliver(&mut self, count: usize, mut header: Header) {
        let mut left = count;
        while left > 0 {
            let Some(chain) = self.stock.pop_front() else {
                return;
            };
            let len = payload_room(&chain).unwrap_or(0).min(left);
            header.len = (len as u32).into();
            self.complete(chain, &header, len);
            left -= len;
        }
    }

    /// Tells the guest of what was sent, if it wants to be told.
    pub fn notify(&mut self) {
        self.queue.notify(&self.memory);
    }

    /// The queue's position for a snapshot, with the stock given back. That is possible because
    /// the stock is the last that was popped, and the driver cannot reuse its places in the
    /// available ring before it is used.
    pub fn state(&self) -> QueueState {
        let mut state = self.queue.state();
        state.next_avail = state.next_avail.wrapping_sub(self.stock.len() as u16);
        state
    }

    /// Makes the first buffer of the stock one of at least `len` bytes; returns smaller ones.
    fn first_with(&mut self, len: usize) -> bool {
        while !self.stock.is_empty() || self.refill() {
            match self.stock.pop_front() {
                Some(chain) if chain.writable_len() < len => {
                    self.queue.complete(&self.memory, chain, 0);
                }
                Some(chain) => {
                    self.stock.push_front(chain);
                    return true;
                }
                None => break,
            }
        }
        false
    }

    fn refill(&mut self) -> bool {
        let chain = self.queue.pop(&self.memory);
        let more = chain.is_some();
        self.stock.extend(chain);
        more
    }

    fn complete(&mut self, chain: Chain, header: &Header, payload_len: usize) {
        let written = match chain.write(&self.memory, 0, header.as_bytes()) {
            Ok(()) => HEADER_BYTES + payload_len,
            Err(_) => 0,
        };
        self.queue.complete(&self.memory, chain, written);
    }
}

impl AsRawFd for RxQueue {
    /// The kick event.
    fn as_raw_fd(&self) -> RawFd {
        self.queue.as_raw_fd()
    }
}

/// Bytes of payload that a buffer has room for, or `None` for none.
fn payload_room(chain: &Chain) -> Option<usize> {
    chain.writable_len().checked_sub(HEADER_BYTES).filter(|&room| room > 0)
}
