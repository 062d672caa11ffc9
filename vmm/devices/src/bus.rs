//! Where guest accesses to ports and device memory find their device.
//!
//! Input: the address and width of a vCPU exit, all the guest's choice. The ranges are fixed when
//! the machine is built; afterwards the bus is only read, so that vCPUs share it without a lock.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

#[cfg(test)]
mod tests;

/// What a vCPU reaches on a [`Bus`].
pub trait BusDevice: Send {
    /// Reads `data.len()` bytes at `offset` of the device's range. All of `data` is set.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset` of the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that several vCPUs and the monitor share.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Why a range cannot be added.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// An empty range, or one beyond the end of the address space.
    #[error("no {len:#x} addresses from {base:#x}")]
    Range {
        /// First address.
        base: u64,
        /// Number of addresses.
        len: u64,
    },
    /// A range that another device has claimed in part.
    #[error("the range at {base:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address of the new range.
        base: u64,
        /// First address of the old one.
        other: u64,
    },
}

struct Slot {
    base: u64,
    /// Last address, so that a range may end at the end of the address space.
    last: u64,
    device: SharedDevice,
}

/// The port space or the device memory of a machine. Ranges never overlap.
#[derive(Default)]
pub struct Bus {
    /// Sorted by address.
    slots: Vec<Slot>,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `len` addresses from `base` to `device`.
    pub fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|span| base.checked_add(span))
            .ok_or(BusError::Range { base, len })?;
        let index = self.slots.partition_point(|slot| slot.last < base);
        if let Some(next) = self.slots.get(index)
            && next.base <= last
        {
            return Err(BusError::Overlap { base, other: next.base });
        }
        self.slots.insert(index, Slot { base, last, device });
        Ok(())
    }

    /// Reads as the guest does. What no device claims reads as all ones, as an open bus does.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((slot, offset)) => lock(&slot.device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes as the guest does. What no device claims is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((slot, offset)) = self.find(address, data.len()) {
            lock(&slot.device).write(offset, data);
        }
    }

    /// The device that has all of `len` addresses, and the offset in its range. An access that
    /// crosses the end of a range belongs to nobody: no device ever sees an offset beyond it.
    fn find(&self, address: u64, len: usize) -> Option<(&Slot, u64)> {
        let last = address.checked_add((len as u64).checked_sub(1)?)?;
        let index = self.slots.partition_point(|slot| slot.last < address);
        let slot = self.slots.get(index)?;
        (slot.base <= address && last <= slot.last).then(|| (slot, address - slot.base))
    }
}

/// A panic of another holder aborts the process in what ships, so poison says nothing.
fn lock(device: &SharedDevice) -> std::sync::MutexGuard<'_, dyn BusDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
