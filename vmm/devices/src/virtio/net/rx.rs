//! From the host to the guest: one receive queue.
//!
//! Input: buffers that a hostile driver offers, packets from the network. A packet is read straight
//! into as many buffers as it needs (`VIRTIO_NET_F_MRG_RXBUF`; virtio 1.2, section 5.1.6.3), so
//! buffers are held ready for the largest one that may come. Where there are too few, the end of a
//! packet goes to memory of this process until the driver has offered more: nothing is cut short
//! unseen.

use std::collections::VecDeque;
use std::io;

use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;

use super::backend::Port;
use super::counters::Counts;
use super::header::{HEADER_BYTES, NUM_BUFFERS_OFFSET};
use crate::rate::RateLimiter;
use crate::virtio::chain::{Chain, ChainQueue, IoVectors, MAX_DESCRIPTORS};

/// Most vectors of one buffer; with so many no further buffer is held.
const VECTORS_MAX: usize = 512;

// One vector less than the most, then a buffer of the most, and the spill. More than the kernel
// takes would be refused, and the same packet found again for ever.
const _: () = assert!(VECTORS_MAX - 1 + VECTORS_MAX < MAX_DESCRIPTORS);

/// Most packets received before the worker looks at its other events.
const BATCH_PACKETS: usize = 128;

/// Why [`RxQueue::receive`] has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// There is no packet now.
    Drained,
    /// There is no buffer now; the queue's kick says when there is.
    Starved,
    /// There may be more packets.
    Batch,
    /// The rate limit is reached; its timer says when to go on.
    Limited,
    /// The interface of the host is gone.
    Lost,
}

/// A buffer of the driver's that is held ready.
struct Held {
    chain: Chain,
    /// How many of the vectors are its.
    vectors: usize,
    /// Bytes that it is good for.
    room: usize,
}

/// A packet that waits for buffers.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// Bytes with the header.
    bytes: usize,
    /// How many of them lie in buffers already; the others are in the spill.
    placed: usize,
}

/// A receive queue.
pub(super) struct RxQueue {
    queue: ChainQueue,
    mergeable: bool,
    /// Most bytes of a packet with its header.
    bytes_max: usize,
    /// Popped, in order, and not used yet.
    held: VecDeque<Held>,
    /// The memory of what is held.
    vectors: IoVectors,
    /// Empty until needed.
    spill: Vec<u8>,
    waiting: Option<Waiting>,
}

impl RxQueue {
    /// A queue for packets of at most `bytes_max` with their headers.
    pub(super) fn new(queue: ChainQueue, mergeable: bool, bytes_max: usize) -> Self {
        Self {
            queue,
            mergeable,
            bytes_max,
            held: VecDeque::new(),
            vectors: IoVectors::default(),
            spill: Vec::new(),
            waiting: None,
        }
    }

    /// Whether the driver wants an interrupt for what was received.
    pub(super) fn needs_interrupt(&mut self, memory: &GuestMemoryMmap) -> bool {
        self.queue.needs_interrupt(memory)
    }

    /// The queue's position for a snapshot, with what is held given back: the driver cannot reuse
    /// its places in the available ring before it is used.
    pub(super) fn state(&self) -> QueueState {
        let mut state = self.queue.state();
        state.next_avail = state.next_avail.wrapping_sub(self.held.len() as u16);
        state
    }

    /// Receives packets while there are any, and room for them.
    pub(super) fn receive(
        &mut self,
        memory: &GuestMemoryMmap,
        port: &mut dyn Port,
        mut limit: Option<&mut RateLimiter>,
        counts: &mut Counts,
    ) -> io::Result<Ended> {
        self.queue.begin_round(memory);
        for _ in 0..BATCH_PACKETS {
            if let Some(limit) = &mut limit
                && !limit.admit()?
            {
                return Ok(Ended::Limited);
            }
            let bytes = match self.find(memory, port) {
                Found::Packet(bytes) => bytes,
                Found::Dropped => {
                    counts.rx_dropped += 1;
                    continue;
                }
                Found::Nothing => continue,
                Found::End(ended) => return Ok(ended),
            };
            self.deliver(memory, bytes);
            let frame_bytes = (bytes - HEADER_BYTES) as u64;
            counts.rx_packets += 1;
            counts.rx_bytes += frame_bytes;
            if let Some(limit) = &mut limit {
                limit.charge(frame_bytes);
            }
        }
        Ok(Ended::Batch)
    }

    /// Brings the packet that waits, or else the next one, into buffers.
    fn find(&mut self, memory: &GuestMemoryMmap, port: &mut dyn Port) -> Found {
        self.gather(memory, self.bytes_max);
        if self.held.is_empty() {
            return Found::End(Ended::Starved);
        }
        if let Some(waiting) = self.waiting.take() {
            return match self.place(memory, waiting) {
                Placed::Whole => Found::Packet(waiting.bytes),
                Placed::Never => Found::Dropped,
                Placed::Later => {
                    self.waiting = Some(waiting);
                    Found::End(Ended::Starved)
                }
            };
        }
        match self.read(port) {
            Ok(bytes) => self.fit(bytes),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Found::End(Ended::Drained),
                Some(libc::EBADFD) => Found::End(Ended::Lost),
                Some(libc::EINTR) => Found::Nothing,
                // One packet that the kernel could not pass on.
                _ => Found::Dropped,
            },
        }
    }

    /// Holds buffers for `wanted` bytes, as far as the driver has offered them; but at least one.
    fn gather(&mut self, memory: &GuestMemoryMmap, wanted: usize) {
        while self.held.is_empty()
            || self.mergeable
                && self.vectors.len_bytes() < wanted
                && self.vectors.as_slice().len() < VECTORS_MAX
        {
            match self.queue.pop(memory) {
                Some(chain) => self.hold(memory, chain),
                None => return,
            }
        }
    }

    /// Holds a buffer, or returns one that is of no use.
    fn hold(&mut self, memory: &GuestMemoryMmap, chain: Chain) {
        let before = self.vectors.as_slice().len();
        // A packet that is larger than any that may come must be seen to be so.
        let room = chain.writable_len().min(self.bytes_max + 1);
        let usable = room >= HEADER_BYTES
            && chain.writable_vectors(memory, 0, room, &mut self.vectors).is_ok()
            && self.vectors.as_slice().len() - before <= VECTORS_MAX;
        if usable {
            let vectors = self.vectors.as_slice().len() - before;
            self.held.push_back(Held { chain, vectors, room });
        } else {
            self.vectors.truncate(before);
            self.queue.complete(memory, chain, 0);
        }
    }

    /// Reads a packet into what is held and, if that may be too little, the spill.
    fn read(&mut self, port: &mut dyn Port) -> io::Result<usize> {
        let held = self.vectors.as_slice().len();
        if self.vectors.len_bytes() <= self.bytes_max {
            self.spill.resize(self.bytes_max + 1, 0);
            self.vectors.push_bytes(self.spill.as_mut_ptr(), self.spill.len());
        }
        // SAFETY: the vectors name guest memory, which the caller keeps mapped, and the spill,
        // which nothing else uses.
        let result = unsafe { port.receive(&self.vectors) };
        self.vectors.truncate(held);
        result
    }

    /// What becomes of a packet of `bytes` that was just read. One that needs more buffers is made
    /// to wait.
    fn fit(&mut self, bytes: usize) -> Found {
        let placed = self.vectors.len_bytes();
        if bytes <= HEADER_BYTES || bytes > self.bytes_max || bytes > placed && !self.mergeable {
            return Found::Dropped;
        }
        if bytes > placed {
            self.waiting = Some(Waiting { bytes, placed });
            return Found::Nothing;
        }
        Found::Packet(bytes)
    }

    /// Moves the end of a packet from the spill to buffers.
    fn place(&mut self, memory: &GuestMemoryMmap, packet: Waiting) -> Placed {
        self.gather(memory, packet.bytes);
        if self.vectors.len_bytes() < packet.bytes {
            let hopeless = self.vectors.as_slice().len() >= VECTORS_MAX || self.queue.is_drained();
            return if hopeless { Placed::Never } else { Placed::Later };
        }
        let mut start = 0;
        for held in &self.held {
            let end = start + held.room;
            let (from, to) = (start.max(packet.placed), end.min(packet.bytes));
            if from < to {
                let part = &self.spill[from - packet.placed..to - packet.placed];
                if held.chain.write(memory, from - start, part).is_err() {
                    return Placed::Never;
                }
            }
            start = end;
        }
        Placed::Whole
    }

    /// Gives the driver the packet of `bytes` that lies in the first of the buffers held.
    fn deliver(&mut self, memory: &GuestMemoryMmap, bytes: usize) {
        let (mut buffers, mut vectors, mut room) = (0_u16, 0, 0);
        for held in &self.held {
            buffers += 1;
            vectors += held.vectors;
            room += held.room;
            if room >= bytes {
                break;
            }
        }
        if let Some(first) = self.held.front() {
            // The buffer has room for a header.
            let _ = first.chain.write(memory, NUM_BUFFERS_OFFSET, &buffers.to_le_bytes());
        }
        let mut left = bytes;
        for held in self.held.drain(..usize::from(buffers)) {
            let written = held.room.min(left);
            left -= written;
            // The driver must see all of them or none.
            self.queue.complete_unseen(memory, held.chain, written);
        }
        self.vectors.remove_front(vectors);
    }
}

/// What a look for a packet has led to.
enum Found {
    /// A packet of so many bytes, a header and more, lies in the first of the buffers held.
    Packet(usize),
    /// A packet that is lost.
    Dropped,
    /// Nothing yet: look again.
    Nothing,
    /// Nothing, and the reason not to look again.
    End(Ended),
}

/// What became of a packet that waits.
enum Placed {
    /// All of it lies in buffers.
    Whole,
    /// The driver has to offer more.
    Later,
    /// The driver cannot offer enough.
    Never,
}
