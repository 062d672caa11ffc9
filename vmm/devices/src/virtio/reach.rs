//! How far up guest memory goes for devices: memory that can be added lies above what is there
//! from the start, and is the guest's only after the host has given it.
//!
//! The attack that this stops: a driver that names memory which was never given to it as a buffer
//! would make a device fill it, and so have more memory than the host has agreed to.
//!
//! Trust: addresses are the guest's choice; the boundary is the monitor's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions};

/// A boundary in guest memory that only rises, shared by whoever moves it and all devices.
#[derive(Debug, Clone)]
pub struct Reach(Arc<AtomicU64>);

impl Reach {
    /// Addresses below `end` may be used.
    pub fn new(end: u64) -> Self {
        Self(Arc::new(AtomicU64::new(end)))
    }

    /// Raises the boundary; the memory up to it must be there by now.
    pub fn extend(&self, end: u64) {
        self.0.fetch_max(end, Ordering::AcqRel);
    }

    /// Whether all of `len` bytes at `address` may be used.
    pub fn covers(&self, address: u64, len: u64) -> bool {
        address.checked_add(len).is_some_and(|end| end <= self.0.load(Ordering::Acquire))
    }
}

/// Guest memory up to its [`Reach`]: whoever reads through this sees nothing of what lies beyond.
///
/// The attack that this stops where a descriptor names further descriptors: what was not given yet
/// reads as zeroes, but each page that is read there costs the host a piece of page table.
#[derive(Debug, Clone, Copy)]
pub struct Reachable<'m> {
    memory: &'m GuestMemoryMmap,
    reach: &'m Reach,
}

impl<'m> Reachable<'m> {
    /// `memory` below the boundary of `reach`.
    pub fn new(memory: &'m GuestMemoryMmap, reach: &'m Reach) -> Self {
        Self { memory, reach }
    }
}

impl GuestMemory for Reachable<'_> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = <GuestMemoryMmap as GuestMemory>::Bitmap;

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        self.reach.covers(address.0, count as u64)
            && GuestMemory::check_range(self.memory, address, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        if !self.reach.covers(address.0, count as u64) {
            return Err(GuestMemoryError::InvalidGuestAddress(address));
        }
        GuestMemory::get_slices(self.memory, address, count, access)
    }
}

impl Default for Reach {
    /// No boundary: all memory is there from the start.
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::virtio::testing::memory;

    #[test]
    fn range_beyond_the_boundary_is_not_covered_until_it_rises() {
        let reach = Reach::new(0x2000);
        let device = reach.clone();
        assert!(device.covers(0x1000, 0x1000));
        assert!(!device.covers(0x1000, 0x1001));
        assert!(!device.covers(u64::MAX, 1));
        reach.extend(0x3000);
        reach.extend(0x1000);
        assert!(device.covers(0x2000, 0x1000));
        assert!(!device.covers(0x3000, 1));
    }

    #[test]
    fn memory_beyond_the_boundary_is_not_read_until_it_rises() {
        let (memory, reach) = (memory(), Reach::new(0x2000));
        memory.write_obj(7_u32, GuestAddress(0x2000)).unwrap();
        let reachable = Reachable::new(&memory, &reach);
        let read = |address| reachable.read_obj::<u32>(GuestAddress(address)).ok();
        let access = Permissions::Read;
        assert_eq!([0x1ffc, 0x1ffe, 0x2000, u64::MAX].map(read), [Some(0), None, None, None]);
        assert!(!reachable.check_range(GuestAddress(0x1ffe), 4, access));
        reach.extend(u64::MAX);
        assert_eq!([0x2000, u64::MAX - 8].map(read), [Some(7), None]);
        assert!(reachable.check_range(GuestAddress(0x1ffe), 4, access));
        assert!(!reachable.check_range(GuestAddress(u64::MAX - 8), 4, access));
    }
}
