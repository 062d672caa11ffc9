//! Gives guest memory back to the host: whole pages, neighbours together, by
//! `madvise(MADV_DONTNEED)`.
//!
//! # What a page shows afterwards
//!
//! Guest memory is mapped privately ([vm-memory regions of the monitor]). A page of anonymous
//! memory reads as zeroes when the guest touches it again. A page over which kernel or initrd are
//! mapped shows that file again: bytes that this guest was given at its start, and no one else's.
//! Both are allowed, since a guest that gives a page away says that its contents do not matter
//! (virtio 1.2, sections 5.5.6.7 and 5.15.6.1), and Linux fills pages before it uses them. A page
//! that a transfer of another device still fills goes on existing until the transfer has ended,
//! and is then lost to the guest that gave it away too early.
//!
//! Trust: addresses and lengths are the guest's choice. Only ranges of guest memory ever reach
//! the kernel: they are pushed as guest addresses and translated here.
//!
//! [vm-memory regions of the monitor]: vm_memory::GuestMemoryMmap

use std::io;
use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::reach::{Reach, Reachable};

/// Pages of the host.
pub const PAGE_BYTES: u64 = 4096;

/// Ranges of guest memory to be given back together.
#[derive(Debug, Default)]
pub struct Reclaim {
    /// Host addresses: whole pages of guest memory.
    pages: Vec<Range<usize>>,
}

impl Reclaim {
    /// Adds the whole pages of `len` bytes at guest address `start`. False, and nothing is added,
    /// if that is not all memory of the guest's.
    pub fn push(&mut self, memory: &GuestMemoryMmap, reach: &Reach, start: u64, len: u64) -> bool {
        let Some(pages) = whole_pages(start, len) else { return true };
        let len = pages.end - pages.start;
        let (address, access) = (GuestAddress(pages.start), Permissions::ReadWrite);
        let Ok(len) = usize::try_from(len) else { return false };
        let memory = Reachable::new(memory, reach);
        if !memory.check_range(address, len, access) {
            return false;
        }
        let Ok(slices) = memory.get_slices(address, len, access) else { return false };
        let before = self.pages.len();
        for slice in slices {
            let Ok(slice) = slice else {
                self.pages.truncate(before);
                return false;
            };
            let host = slice.ptr_guard_mut().as_ptr() as usize;
            self.pages.push(host..host + slice.len());
        }
        true
    }

    /// Gives everything that was added back, and returns how many bytes that was. What the kernel
    /// does not take stays where it is; the error is the last one.
    pub fn give_back(&mut self) -> io::Result<u64> {
        self.pages.sort_unstable_by_key(|pages| pages.start);
        let mut given = 0;
        let mut outcome = Ok(());
        let mut next: Option<Range<usize>> = None;
        let mut flush = |pages: Range<usize>| match drop_pages(&pages) {
            Ok(()) => given += (pages.end - pages.start) as u64,
            Err(error) => outcome = Err(error),
        };
        for pages in self.pages.drain(..) {
            match &mut next {
                Some(run) if pages.start <= run.end => run.end = run.end.max(pages.end),
                _ => {
                    if let Some(run) = next.replace(pages) {
                        flush(run);
                    }
                }
            }
        }
        if let Some(run) = next {
            flush(run);
        }
        outcome.map(|()| given)
    }
}

/// The whole pages in `len` bytes at `start`, if there is one.
fn whole_pages(start: u64, len: u64) -> Option<Range<u64>> {
    let first = start.checked_next_multiple_of(PAGE_BYTES)?;
    let end = start.saturating_add(len);
    let end = end - end % PAGE_BYTES;
    (first < end).then_some(first..end)
}

fn drop_pages(pages: &Range<usize>) -> io::Result<()> {
    let len = pages.end - pages.start;
    let start = pages.start as *mut libc::c_void;
    // SAFETY: the range is guest memory, which stays mapped for as long as any device; nothing in
    // this process relies on what guest memory holds.
    match unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::virtio::testing::{MEMORY_BYTES, memory};

    fn filled() -> GuestMemoryMmap {
        let memory = memory();
        memory.write_slice(&vec![7; MEMORY_BYTES as usize], GuestAddress(0)).unwrap();
        memory
    }

    fn byte(memory: &GuestMemoryMmap, at: u64) -> u8 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn pages_given_back_read_as_zero_and_their_neighbours_stay() {
        let (memory, mut reclaim) = (filled(), Reclaim::default());
        for start in [0x5000, 0x3000, 0x4000] {
            assert!(reclaim.push(&memory, &Reach::default(), start, 0x1000));
        }
        assert!(reclaim.push(&memory, &Reach::default(), 0x9000, 0x2000));
        assert_eq!(reclaim.give_back().unwrap(), 0x5000);
        assert_eq!(reclaim.give_back().unwrap(), 0);
        let zeroes = [0x3000, 0x5fff, 0x9000, 0xafff];
        assert!(zeroes.iter().all(|at| byte(&memory, *at) == 0));
        assert!([0x2fff, 0x6000, 0x8fff, 0xb000].iter().all(|at| byte(&memory, *at) == 7));
    }

    #[test]
    fn page_named_twice_counts_once() {
        let (memory, mut reclaim) = (filled(), Reclaim::default());
        for _ in 0..3 {
            assert!(reclaim.push(&memory, &Reach::default(), 0x3000, 0x1000));
        }
        assert_eq!(reclaim.give_back().unwrap(), 0x1000);
    }

    #[test]
    fn parts_of_pages_are_kept() {
        let (memory, mut reclaim) = (filled(), Reclaim::default());
        assert!(reclaim.push(&memory, &Reach::default(), 0x1fff, 0x1000));
        assert!(reclaim.push(&memory, &Reach::default(), 0x3001, 0x1fff));
        assert!(reclaim.push(&memory, &Reach::default(), 0x8000, 0));
        assert_eq!(reclaim.give_back().unwrap(), 0x1000);
        assert!([0x2000, 0x3fff, 0x5000, 0x8000].iter().all(|at| byte(&memory, *at) == 7));
        assert_eq!(byte(&memory, 0x4000), 0);
    }

    #[test]
    fn range_outside_of_guest_memory_is_refused_whole() {
        let (memory, mut reclaim) = (filled(), Reclaim::default());
        let reach = Reach::new(MEMORY_BYTES / 2);
        for (start, len) in [
            (MEMORY_BYTES, 0x1000),
            (MEMORY_BYTES / 2 - 0x1000, 0x2000),
            (0, u64::MAX),
            (u64::MAX - 0x2000, 0x2000),
        ] {
            assert!(!reclaim.push(&memory, &reach, start, len), "{start:#x} {len:#x}");
        }
        assert!(!reclaim.push(&memory, &Reach::default(), MEMORY_BYTES - 0x1000, 0x2000));
        assert_eq!(reclaim.give_back().unwrap(), 0);
        assert_eq!(byte(&memory, MEMORY_BYTES / 2 - 1), 7);
    }
}
