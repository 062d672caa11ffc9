//! A file on its way into guest memory, without a copy where that is possible.
//!
//! Where file offset and host address are both page-aligned, whole pages of the file are mapped
//! privately over guest memory: the guest shares the host's page cache until it writes, and what
//! it never touches costs nothing. Everything else is read straight into guest memory. Linux
//! patches most pages of its text while it boots and so gets its own copy of them, but even then
//! the host copies less often and never zeroes first.
//!
//! Trust: kernel and initrd come from the runtime. A file that is shorter than its headers say is
//! an error. Whoever installs such a file replaces it and never changes or truncates it in place,
//! because the pages are read when the guest first touches them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

pub(super) const PAGE: usize = 4096;

/// How the pages of kernel and initrd get into guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loading {
    /// Mapped from the file, shared with every guest of the same file until written.
    Mapped,
    /// Read into memory of the guest's own. Guests then share nothing whose cache footprint
    /// another one could watch.
    Copied,
}

/// A file with a position of its own: the descriptor's is shared with whoever sent it.
pub(super) struct Image<'a> {
    file: &'a File,
    size: u64,
    position: u64,
    loading: Loading,
}

impl<'a> Image<'a> {
    pub(super) fn new(file: &'a File, loading: Loading) -> io::Result<Self> {
        Ok(Self { file, size: file.metadata()?.len(), position: 0, loading })
    }

    /// Size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Maps or reads what can be had at once; 0 at the end of the file.
    fn load<B: BitmapSlice>(&mut self, memory: &VolatileSlice<B>) -> io::Result<usize> {
        let size = match self.map_pages(memory)? {
            0 => self.read_into(memory)?,
            size => size,
        };
        self.position += size as u64;
        Ok(size)
    }

    /// Maps as many whole pages as `memory` holds and the file has; 0 when it must be read.
    fn map_pages<B: BitmapSlice>(&self, memory: &VolatileSlice<B>) -> io::Result<usize> {
        let host = memory.ptr_guard_mut();
        let page = PAGE as u64;
        let left = self.size.saturating_sub(self.position);
        let pages = (memory.len() as u64).min(left) / page;
        let aligned =
            self.position.is_multiple_of(page) && (host.as_ptr() as usize).is_multiple_of(PAGE);
        if self.loading == Loading::Copied || !aligned || pages == 0 {
            return Ok(0);
        }
        let size = (pages * page) as usize;
        let at = host.as_ptr().cast::<libc::c_void>();
        // SAFETY: the range lies within guest memory, which the slice borrows; it was private
        // memory before and is private memory after, only its contents change, as with a read.
        let mapped = unsafe {
            libc::mmap(
                at,
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                self.file.as_raw_fd(),
                self.position as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range has just been mapped; the advice does not change what it holds.
        if unsafe { libc::madvise(at, size, libc::MADV_DONTDUMP) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(size)
    }

    fn read_into<B: BitmapSlice>(&self, memory: &VolatileSlice<B>) -> io::Result<usize> {
        let host = memory.ptr_guard_mut();
        // SAFETY: the slice borrows `len` bytes of guest memory, and the kernel writes no more.
        let read = unsafe {
            libc::pread(
                self.file.as_raw_fd(),
                host.as_ptr().cast(),
                host.len(),
                self.position as libc::off_t,
            )
        };
        // Regular files are read without interruption.
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }
}

impl Read for Image<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Image<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.position = position
            .filter(|at| i64::try_from(*at).is_ok())
            .ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

impl ReadVolatile for Image<'_> {
    /// Fills `memory` as far as the file goes: guest memory takes a short read for the end.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        memory: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut done = 0;
        while done < memory.len() {
            let rest = memory.offset(done)?;
            let read = self.load(&rest).map_err(VolatileMemoryError::IOError)?;
            if read == 0 {
                break;
            }
            done += read;
        }
        memory.bitmap().mark_dirty(0, done);
        Ok(done)
    }
}
