//! The requests that the file server has not answered yet.

use super::request::Effect;
use crate::virtio::chain::Chain;

/// Most requests that the server is asked at once; the device takes no more from its queues
/// before one is answered.
pub(super) const PENDING_MAX: usize = 1024;

/// Bits of a request's number that say where it is kept.
const SLOT_BITS: u32 = 16;

/// A request that waits for its reply.
pub(super) struct Waiting {
    /// The guest's number of it.
    pub(super) unique: u64,
    /// Where the reply goes.
    pub(super) chain: Chain,
    /// Index of the queue that the chain came from.
    pub(super) queue: usize,
    /// What the reply means.
    pub(super) effect: Effect,
}

/// Waiting requests by the numbers under which the server knows them.
#[derive(Default)]
pub(super) struct Pending {
    slots: Vec<Option<(u64, Waiting)>>,
    free: Vec<usize>,
    opening: usize,
}

impl Pending {
    /// Whether [`PENDING_MAX`] requests wait.
    pub(super) fn is_full(&self) -> bool {
        self.count() >= PENDING_MAX
    }

    /// How many requests wait.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many of them open a file.
    pub(super) fn opening(&self) -> usize {
        self.opening
    }

    /// The number that the request `serial` gets when it is [kept](Pending::keep) next.
    pub(super) fn number(&self, serial: u64) -> u64 {
        let slot = self.free.last().copied().unwrap_or(self.slots.len());
        (serial << SLOT_BITS) | slot as u64
    }

    /// Keeps the request whose number was asked for last.
    pub(super) fn keep(&mut self, number: u64, waiting: Waiting) {
        self.opening += usize::from(matches!(waiting.effect, Effect::Opens(_)));
        let entry = Some((number, waiting));
        match self.free.pop() {
            Some(slot) => self.slots[slot] = entry,
            None => self.slots.push(entry),
        }
    }

    /// Takes the request with this number; `None` if nobody waits for it.
    pub(super) fn take(&mut self, number: u64) -> Option<Waiting> {
        let slot = (number & ((1 << SLOT_BITS) - 1)) as usize;
        let (_, waiting) = self.slots.get_mut(slot)?.take_if(|(kept, _)| *kept == number)?;
        self.free.push(slot);
        self.opening -= usize::from(matches!(waiting.effect, Effect::Opens(_)));
        Some(waiting)
    }

    /// Takes all of them.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        let all = std::mem::take(self).slots;
        all.into_iter().flatten().map(|(_, waiting)| waiting)
    }
}
