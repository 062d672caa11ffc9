//! Files in memory: shared and private mappings, seen by other processes and by `read`.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

use super::{Case, file, help, same};

pub const CASES: &[Case] = &[
    ("mmap_shared", mmap_shared),
    ("mmap_private", mmap_private),
    ("mmap_of_a_file_that_grows", mmap_of_a_file_that_grows),
];

const PAGE: usize = 4096;

/// A mapping of the first bytes of a file.
pub struct Mapping {
    at: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes for reading and writing.
    pub fn new(file: impl AsFd, length: usize, flags: MapFlags) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place, so that nothing of this program lies there.
        let at = unsafe { rustix::mm::mmap(null_mut(), length, access, flags, file, 0) };
        let at = NonNull::new(at.context("mmap")?.cast()).context("mmap gave no address")?;
        Ok(Self { at, length })
    }

    /// A byte, which other processes may change at any moment.
    pub fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.length, "beyond the mapping");
        // SAFETY: within the mapping, as was just checked.
        let byte = unsafe { self.at.add(at) };
        // SAFETY: a mapped byte, used by atomic operations alone as long as the mapping lives.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }

    /// Puts what was changed into the file.
    pub fn sync(&self) -> Result<()> {
        // SAFETY: the range is the mapping's; nothing of it is unmapped.
        unsafe { rustix::mm::msync(self.at.as_ptr().cast(), self.length, MsyncFlags::SYNC) }
            .context("msync")
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from the mapping any more.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

fn writable(path: &Path) -> Result<File> {
    File::options().read(true).write(true).open(path).context("opening")
}

fn mmap_shared(dir: &Path) -> Result<()> {
    let path = file(dir, "file", &[1; 3 * PAGE])?;
    let open = writable(&path)?;
    let mapping = Mapping::new(&open, 3 * PAGE, MapFlags::SHARED)?;
    mapping.byte(PAGE).store(2, Ordering::Relaxed);
    same(fs::read(&path)?[PAGE], 2, "read after a change in memory")?;
    open.write_all_at(&[3], 5)?;
    same(mapping.byte(5).load(Ordering::Relaxed), 3, "memory after a write")?;
    // It looks for the 2, and changes byte 7.
    help("map", &path)?;
    same(mapping.byte(7).load(Ordering::Relaxed), 4, "memory after another process's change")?;
    mapping.sync()?;
    drop(mapping);
    let content = fs::read(&path)?;
    same([content[5], content[7], content[PAGE]], [3, 4, 2], "content at the end")
}

fn mmap_private(dir: &Path) -> Result<()> {
    let path = file(dir, "file", &[1; PAGE])?;
    let open = writable(&path)?;
    let mapping = Mapping::new(&open, PAGE, MapFlags::PRIVATE)?;
    mapping.byte(0).store(2, Ordering::Relaxed);
    same(fs::read(&path)?[0], 1, "the file after a private change")?;
    same(mapping.byte(0).load(Ordering::Relaxed), 2, "the private change")
}

fn mmap_of_a_file_that_grows(dir: &Path) -> Result<()> {
    let path = file(dir, "file", &[1; 10])?;
    let open = writable(&path)?;
    let mapping = Mapping::new(&open, 2 * PAGE, MapFlags::SHARED)?;
    same(mapping.byte(10).load(Ordering::Relaxed), 0, "after the end, in its page")?;
    open.set_len(2 * PAGE as u64)?;
    mapping.byte(PAGE + 1).store(5, Ordering::Relaxed);
    same(fs::read(&path)?[PAGE + 1], 5, "in the page that is new")
}
