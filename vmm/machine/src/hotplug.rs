//! Memory that a guest can be given while it runs.
//!
//! # What it costs while it is not used
//!
//! A reservation of address space, and nothing else. It is mapped for reading only, which no
//! kernel counts as committed memory, whatever its overcommit policy, and KVM does not know of it:
//! KVM keeps up to 8 bytes for each page of a slot. When the runtime first asks for so much, a part
//! becomes writable and a slot of its own. Slots stay: removing one takes away every translation
//! that KVM has made for the guest.
//!
//! # Where it lies
//!
//! Above all boot memory, at a multiple of 2 GiB: Linux adds memory in blocks of 128 MiB, and of
//! up to 2 GiB to a guest that has 64 GiB already.
//!
//! Trust: sizes are the runtime's. What the guest writes there is as hostile as all its memory.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::mmap::GuestRegionMmap;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};

use crate::layout::GAP_END;
use crate::memory::{HugePages, MemoryError, reserve};
use crate::vm::{VmError, add_slot};

/// Memory is given in multiples of this: the memory block of Linux on x86-64.
pub const STEP_BYTES: u64 = 128 << 20;

const ALIGNMENT: u64 = 2 << 30;
const MIB: u64 = 1 << 20;

/// Why memory could not be given.
#[derive(Debug, Error)]
pub enum HotplugError {
    /// More than was reserved.
    #[error("{asked} MiB of memory to add ({most} at most)")]
    Size {
        /// MiB asked for.
        asked: u64,
        /// MiB reserved.
        most: u64,
    },
    /// `mprotect`: also what a host says that does not overcommit.
    #[error("making {mib} MiB of guest memory usable")]
    Protect {
        /// MiB.
        mib: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The slot.
    #[error(transparent)]
    Slot(#[from] VmError),
}

/// Address space for memory that may be added; reserved before the machine is made.
#[derive(Debug, Clone)]
pub struct Reserved {
    region: Arc<GuestRegionMmap>,
}

impl Reserved {
    /// Reserves `mib` MiB, rounded up to whole steps, above `boot`.
    pub fn new(boot: &GuestMemoryMmap, mib: u32, huge: HugePages) -> Result<Self, MemoryError> {
        let ends = boot.iter().map(|region| region.start_addr().0 + region.len());
        let start = ends.max().unwrap_or(0).max(GAP_END).next_multiple_of(ALIGNMENT);
        let size = (u64::from(mib) * MIB).next_multiple_of(STEP_BYTES);
        let region = reserve(size as usize, huge)?;
        let region = GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::Range)?;
        Ok(Self { region: Arc::new(region) })
    }

    /// First guest address.
    pub fn start(&self) -> u64 {
        self.region.start_addr().0
    }

    /// Bytes reserved.
    pub fn size(&self) -> u64 {
        self.region.len()
    }

    /// `boot` and this, as devices see it. What was not given yet can be read, as zeroes, but not
    /// written: a device must keep away from it.
    pub fn join(&self, boot: &GuestMemoryMmap) -> Result<GuestMemoryMmap, MemoryError> {
        boot.insert_region(Arc::clone(&self.region)).map_err(MemoryError::Join)
    }
}

/// Gives reserved memory to a machine, from its start on.
#[derive(Debug)]
pub struct Hotplug {
    vm: Arc<VmFd>,
    reserved: Reserved,
    given_bytes: u64,
    next_slot: u32,
}

impl Hotplug {
    /// The machine holds `reserved` too, for as long as its vCPUs can run.
    pub(crate) fn new(vm: Arc<VmFd>, reserved: Reserved, next_slot: u32) -> Self {
        Self { vm, reserved, given_bytes: 0, next_slot }
    }

    /// Sees to it that the guest has at least the first `bytes`; returns how many it has, in whole
    /// steps. What it was given once stays (mprotect, `KVM_SET_USER_MEMORY_REGION`).
    pub fn give(&mut self, bytes: u64) -> Result<u64, HotplugError> {
        let size = self.reserved.size();
        if bytes > size {
            return Err(HotplugError::Size { asked: bytes / MIB, most: size / MIB });
        }
        let wanted = bytes.next_multiple_of(STEP_BYTES);
        if wanted > self.given_bytes {
            self.add(wanted)?;
        }
        Ok(self.given_bytes)
    }

    /// First guest address behind what was given.
    pub fn end(&self) -> u64 {
        self.reserved.start() + self.given_bytes
    }

    fn add(&mut self, wanted: u64) -> Result<(), HotplugError> {
        let (start, len) = (self.reserved.start() + self.given_bytes, wanted - self.given_bytes);
        let host = self
            .reserved
            .region
            .get_host_address(MemoryRegionAddress(self.given_bytes))
            .map_err(|error| VmError::HostAddress(start, error))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range is the part of the reserved mapping behind what was given: `size` was
        // checked. Nothing refers to it as memory of this program.
        if unsafe { libc::mprotect(host.cast(), len as usize, protection) } != 0 {
            let source = io::Error::last_os_error();
            return Err(HotplugError::Protect { mib: len / MIB, source });
        }
        add_slot(&self.vm, self.next_slot, start, len, host)?;
        self.next_slot += 1;
        self.given_bytes = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::layout::GAP_START;
    use crate::memory::allocate;

    fn reserved(boot_mib: u32, mib: u32) -> (GuestMemoryMmap, Reserved) {
        let boot = allocate(boot_mib, HugePages::Never).unwrap();
        let reserved = Reserved::new(&boot, mib, HugePages::Never).unwrap();
        (boot, reserved)
    }

    #[test]
    fn region_lies_above_boot_memory_where_linux_can_add_it() {
        let (_, small) = reserved(64, 1);
        assert_eq!((small.start(), small.size()), (GAP_END, STEP_BYTES));
        let (_, large) = reserved((GAP_START / MIB) as u32 + 5, 300);
        assert_eq!((large.start(), large.size()), (GAP_END + ALIGNMENT, 3 * STEP_BYTES));
    }

    #[test]
    fn joined_memory_reads_as_zero_where_nothing_was_given() {
        let (boot, reserved) = reserved(1, 128);
        let joined = reserved.join(&boot).unwrap();
        assert_eq!(joined.read_obj::<u64>(GuestAddress(reserved.start())).unwrap(), 0);
        assert_eq!(boot.num_regions() + 1, joined.num_regions());
        assert!(joined.read_obj::<u64>(GuestAddress(reserved.start() + STEP_BYTES)).is_err());
    }
}
