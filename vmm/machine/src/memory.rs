//! Guest memory: its layout, its backing and the panic mark.
//!
//! # Backing
//!
//! Guest memory is private and anonymous (`MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE`), for what
//! comes later as much as for now. A template is a memfd mapped `MAP_PRIVATE` over the same range:
//! the monitor and KVM see copy-on-write memory in both cases, only the pages that nobody has
//! written differ. The boot loader uses the same property today: it maps the pages of the kernel
//! file over guest memory, so that all guests share them until they write ([`crate::boot`]).
//! A shared mapping would have to be copied to become a template, counts as shared memory in
//! every report of what a guest costs, and gets huge pages only where shmem has them turned on.
//!
//! The kernel may not merge equal pages (`MADV_MERGEABLE` is not set): the time of a write tells a
//! guest whether another guest holds the same page. Pages come from the kernel zeroed, and go to
//! no core dump.
//!
//! # Huge pages
//!
//! The first touch of a page is a nested page fault, an exit to the host. With huge pages there
//! are 512 times fewer, but each zeroes 2 MiB, and a small guest keeps memory that it never asked
//! for. Who starts the guest chooses ([`HugePages`]). Ranges are aligned so that KVM can map huge
//! pages either way: guest and host address agree modulo 2 MiB.
//!
//! Trust: whatever is read from guest memory is the guest's choice.

use std::io;
use std::ptr::{NonNull, null_mut};

use thiserror::Error;
use vm_memory::mmap::{GuestRegionMmap, MmapRegionError};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, MmapRegion,
};

use crate::layout::{GAP_END, GAP_START, REBOOT_MODE};

const HUGE_PAGE: usize = 2 << 20;
const MIB: u64 = 1 << 20;
const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// How guest memory is paged in.
///
/// Booting Linux 6.12 with 128 MiB to its first program, counted in instructions of the whole host
/// (where zeroing a byte counts one): [`HugePages::Never`] 113 million and 21 MiB of memory,
/// [`HugePages::Transparent`] 119 million and 29 MiB, with the kernel mapped from its file. With
/// the kernel copied: 122 million and 26 MiB, 134 million and 35 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePages {
    /// 2 MiB at a time where the host can: fewest exits, more memory.
    Transparent,
    /// 4 KiB at a time: least memory, most exits.
    Never,
}

/// Why there is no guest memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size is 0.
    #[error("guest memory of 0 MiB")]
    Empty,
    /// Mapping a range.
    #[error("mapping {mib} MiB of guest memory")]
    Map {
        /// Size of the range.
        mib: u64,
        /// What the kernel said.
        #[source]
        source: MmapRegionError,
    },
    /// Reserving address space to find an aligned range.
    #[error("reserving address space for {mib} MiB of guest memory")]
    Reserve {
        /// Size of the range.
        mib: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Setting how a range is paged or dumped.
    #[error("madvise on guest memory")]
    Advise(#[source] io::Error),
    /// Joining the ranges.
    #[error("joining the ranges of guest memory")]
    Join(#[source] GuestRegionCollectionError),
    /// The end of a range does not fit into 64 bits.
    #[error("guest memory beyond the address space")]
    Range,
}

/// Guest-physical ranges (start and size in bytes) of a guest with `mem_mib` MiB: one below the
/// 32-bit gap and, when it does not fit there, one from 4 GiB.
pub fn ranges(mem_mib: u32) -> Vec<(u64, u64)> {
    let size = u64::from(mem_mib) * MIB;
    let low = size.min(GAP_START);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((GAP_END, size - low));
    }
    ranges
}

/// Allocates `mem_mib` MiB of zeroed guest memory.
pub fn allocate(mem_mib: u32, huge: HugePages) -> Result<GuestMemoryMmap, MemoryError> {
    if mem_mib == 0 {
        return Err(MemoryError::Empty);
    }
    let mut regions = Vec::new();
    for (start, size) in ranges(mem_mib) {
        let region = map_aligned(size as usize, PROTECTION)?;
        advise(&region, huge)?;
        let region = GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::Range)?;
        regions.push(region);
    }
    GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Join)
}

/// Reserves `size` bytes that can be read, as zeroes, and become memory by mprotect.
pub(crate) fn reserve(size: usize, huge: HugePages) -> Result<MmapRegion, MemoryError> {
    let region = map_aligned(size, libc::PROT_READ)?;
    advise(&region, huge)?;
    Ok(region)
}

/// Tells whether the guest has left its panic mark: Linux with `reboot=warm` or
/// `reboot=panic_warm` writes 0x1234 into the BIOS reboot-mode word before it resets.
pub fn panic_mark(memory: &GuestMemoryMmap) -> bool {
    memory.read_obj::<u16>(GuestAddress(REBOOT_MODE)).is_ok_and(|mode| mode == 0x1234)
}

/// First byte behind RAM below the 32-bit gap.
pub(crate) fn low_end(memory: &GuestMemoryMmap) -> u64 {
    memory
        .iter()
        .map(|region| region.start_addr().0 + region.len())
        .filter(|end| *end <= GAP_START)
        .max()
        .unwrap_or(0)
}

fn map(size: usize, protection: i32) -> Result<MmapRegion, MemoryError> {
    MmapRegion::build(None, size, protection, FLAGS)
        .map_err(|source| MemoryError::Map { mib: size as u64 / MIB, source })
}

fn is_aligned(region: &MmapRegion) -> bool {
    (region.as_ptr() as usize).is_multiple_of(HUGE_PAGE)
}

/// Tries to find a place at a multiple of 2 MiB before memory without huge pages will do.
const ATTEMPTS: usize = 4;

/// Maps `size` bytes, at a multiple of 2 MiB if at all possible.
///
/// Kernels since 6.7 align by themselves. For older ones all but an aligned hole of `size` bytes
/// in a larger range is held while the region is mapped: the hole is where the kernel looks first,
/// unless there is a smaller one that fits, which the misfit then occupies for the next try.
fn map_aligned(size: usize, protection: i32) -> Result<MmapRegion, MemoryError> {
    let mut region = map(size, protection)?;
    let mut misfits = Vec::new();
    while !is_aligned(&region) && misfits.len() < ATTEMPTS {
        misfits.push(region);
        let _around = Reservation::around_hole(size)
            .map_err(|source| MemoryError::Reserve { mib: size as u64 / MIB, source })?;
        region = map(size, protection)?;
    }
    Ok(region)
}

/// Address space without memory.
struct Reservation {
    start: NonNull<u8>,
    size: usize,
}

impl Reservation {
    /// Reserves what lies around an aligned hole of `size` bytes.
    fn around_hole(size: usize) -> io::Result<[Option<Self>; 2]> {
        let mut head = Self::new(size + HUGE_PAGE)?;
        let skip = head.start.as_ptr().align_offset(HUGE_PAGE);
        if skip == 0 {
            let tail = head.split_off(size);
            return Ok([None, tail]);
        }
        let mut hole = head.split_off(skip);
        let tail = hole.as_mut().and_then(|hole| hole.split_off(size));
        Ok([Some(head), tail])
    }

    fn new(size: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let start = unsafe { libc::mmap(null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(at) if start != libc::MAP_FAILED => Ok(Self { start: at, size }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Keeps the first `at` bytes and returns the rest, if neither is empty.
    fn split_off(&mut self, at: usize) -> Option<Self> {
        if at == 0 || at >= self.size {
            return None;
        }
        // SAFETY: `at` lies within the mapping that `self` owns.
        let start = unsafe { self.start.add(at) };
        let rest = Self { start, size: self.size - at };
        self.size = at;
        Some(rest)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range is a mapping that only `self` owns; nothing refers to it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

fn advise(region: &MmapRegion, huge: HugePages) -> Result<(), MemoryError> {
    let paging = match huge {
        HugePages::Transparent => libc::MADV_HUGEPAGE,
        HugePages::Never => libc::MADV_NOHUGEPAGE,
    };
    for advice in [libc::MADV_DONTDUMP, paging] {
        // SAFETY: the range is a mapping that `region` owns, and no advice given here changes
        // what it holds.
        let status = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
        if status != 0 {
            let error = io::Error::last_os_error();
            // EINVAL: a kernel without transparent huge pages.
            if advice == paging && error.raw_os_error() == Some(libc::EINVAL) {
                continue;
            }
            return Err(MemoryError::Advise(error));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_around_the_gap_leave_it_free() {
        let gap_mib = (GAP_START / MIB) as u32;
        assert_eq!(ranges(1), [(0, MIB)]);
        assert_eq!(ranges(gap_mib - 1), [(0, GAP_START - MIB)]);
        assert_eq!(ranges(gap_mib), [(0, GAP_START)]);
        assert_eq!(ranges(gap_mib + 1), [(0, GAP_START), (GAP_END, MIB)]);
        assert_eq!(ranges(1 << 20), [(0, GAP_START), (GAP_END, (1 << 40) - GAP_START)]);
    }

    #[test]
    fn memory_of_any_size_is_aligned_and_zero() {
        for mem_mib in [1, 3, 48, 129, (GAP_START / MIB) as u32 + 5] {
            let memory = allocate(mem_mib, HugePages::Transparent).unwrap();
            let size: u64 = memory.iter().map(|region| region.len()).sum();
            assert_eq!(size, u64::from(mem_mib) * MIB);
            for region in memory.iter() {
                let host = region.get_host_address(vm_memory::MemoryRegionAddress(0)).unwrap();
                assert_eq!(host as usize % HUGE_PAGE, 0);
            }
            assert_eq!(memory.read_obj::<u64>(GuestAddress(0x8000)).unwrap(), 0);
        }
    }

    #[test]
    fn memory_of_no_size_is_refused() {
        assert!(matches!(allocate(0, HugePages::Never), Err(MemoryError::Empty)));
    }

    #[test]
    fn low_end_is_the_end_of_the_low_range() {
        let memory = |mib| allocate(mib, HugePages::Never).unwrap();
        assert_eq!(low_end(&memory(64)), 64 * MIB);
        assert_eq!(low_end(&memory((GAP_START / MIB) as u32 + 1)), GAP_START);
    }

    #[test]
    fn panic_mark_is_the_warm_reboot_word() {
        let memory = allocate(1, HugePages::Never).unwrap();
        assert!(!panic_mark(&memory));
        memory.write_obj(0x1234_u16, GuestAddress(REBOOT_MODE)).unwrap();
        assert!(panic_mark(&memory));
        memory.write_obj(0x1235_u16, GuestAddress(REBOOT_MODE)).unwrap();
        assert!(!panic_mark(&memory));
    }
}
