//! The used ring: what goes back to the driver (virtio 1.2, section 2.7.8).
//!
//! An entry is written and then shown, and several can be shown at once: a driver that looks at the
//! ring from another CPU meanwhile sees all of them or none. The network device needs that for a
//! packet that lies in several chains.
//!
//! Trust: the ring lies in guest memory and the transport has checked that it does. What the driver
//! says about interrupts is a wish that costs only itself.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// `flags` and `idx` come before the entries of both rings.
const RING_HEADER_BYTES: u64 = 4;
/// Offset of `idx` in both rings.
const INDEX_OFFSET: u64 = 2;
/// Bytes of `struct virtq_used_elem`.
const USED_ELEMENT_BYTES: u64 = 8;
/// Bytes of an entry of the available ring.
const AVAILABLE_ELEMENT_BYTES: u64 = 2;

/// The device's side of a used ring.
pub(super) struct UsedRing {
    ring: GuestAddress,
    available: GuestAddress,
    size: u16,
    event_idx: bool,
    /// Index of the next entry.
    next: Wrapping<u16>,
    /// Index up to which the driver can see entries.
    shown: Wrapping<u16>,
    /// Index up to which the driver was interrupted, or wanted no interrupt.
    told: Wrapping<u16>,
}

impl UsedRing {
    pub(super) fn new(queue: &Queue) -> Self {
        let next = Wrapping(queue.next_used());
        Self {
            ring: GuestAddress(queue.used_ring()),
            available: GuestAddress(queue.avail_ring()),
            size: queue.size(),
            event_idx: queue.event_idx_enabled(),
            next,
            shown: next,
            told: next,
        }
    }

    /// Index of the next entry.
    pub(super) fn next(&self) -> u16 {
        self.next.0
    }

    /// Writes the next entry, for the chain at `head`, which has come from the available ring.
    pub(super) fn push(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        written: u32,
    ) -> Result<(), GuestMemoryError> {
        let slot = u64::from(self.next.0 % self.size);
        let entry = u64::from(head).to_le() | u64::from(written).to_le() << 32;
        let at = at(self.ring, RING_HEADER_BYTES + slot * USED_ELEMENT_BYTES);
        memory.write_obj(entry, at)?;
        self.next += 1;
        Ok(())
    }

    /// Shows the driver every entry written so far.
    pub(super) fn show(&mut self, memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
        if self.shown != self.next {
            memory.store(self.next.0.to_le(), at(self.ring, INDEX_OFFSET), Ordering::Release)?;
            self.shown = self.next;
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for the entries shown since the last call.
    pub(super) fn needs_interrupt(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, GuestMemoryError> {
        let (old, new) = (std::mem::replace(&mut self.told, self.shown), self.shown);
        if old == new {
            return Ok(false);
        }
        // The driver asks for an interrupt and looks at the index again; this writes the index and
        // looks at what is asked for. One of the two sees the other.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags: u16 = memory.load(self.available, Ordering::Relaxed)?;
            return Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let events = RING_HEADER_BYTES + u64::from(self.size) * AVAILABLE_ELEMENT_BYTES;
        let event: u16 = memory.load(at(self.available, events), Ordering::Relaxed)?;
        // Section 2.7.7: the event lies in what was just shown.
        Ok(new - Wrapping(u16::from_le(event)) - Wrapping(1) < new - old)
    }
}

/// Cannot overflow: the transport has seen that the whole ring lies in guest memory.
fn at(ring: GuestAddress, offset: u64) -> GuestAddress {
    GuestAddress(ring.0.wrapping_add(offset))
}
