//! What a block device stands on: a regular file or a block device of the host.
//!
//! Input: checked [`Operation`]s. Trust: the file may shrink, fill up or fail at any time; that is
//! an error of the request. Opened before the seccomp filters, used by the worker alone.

mod direct;
mod ring;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;

use thiserror::Error;

use self::direct::Direct;
use self::ring::Ring;
use super::request::SECTOR_BYTES;
use crate::virtio::chain::IoVectors;

/// Most operations in flight on one backend, and the range of their tags.
pub(super) const IN_FLIGHT_MAX: u16 = 128;

/// `fallocate` mode of [`Operation::Punch`].
const PUNCH_MODE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// `fallocate` mode of [`Operation::Zero`].
const ZERO_MODE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// One system call's worth of work.
#[derive(Debug)]
pub(super) enum Operation {
    /// preadv(2).
    Read { offset: u64, vectors: IoVectors },
    /// pwritev(2).
    Write { offset: u64, vectors: IoVectors },
    /// fdatasync(2).
    Sync,
    /// fallocate(2), `FALLOC_FL_PUNCH_HOLE`: the range reads as zeroes and is freed. A block
    /// device does it with a discard that zeroes.
    Punch { offset: u64, len: u64 },
    /// fallocate(2), `FALLOC_FL_ZERO_RANGE`: the range reads as zeroes. A block device writes
    /// them itself if it has no better way.
    Zero { offset: u64, len: u64 },
}

impl Operation {
    /// The vectors' allocation, if there is one.
    fn into_vectors(self) -> IoVectors {
        match self {
            Self::Read { vectors, .. } | Self::Write { vectors, .. } => vectors,
            Self::Sync | Self::Punch { .. } | Self::Zero { .. } => IoVectors::default(),
        }
    }
}

/// The outcome of an operation.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) tag: u16,
    /// Bytes transferred, which may be fewer than asked for.
    pub(super) result: io::Result<usize>,
    /// The allocation of the operation's vectors, for the next one.
    pub(super) vectors: IoVectors,
}

/// Does operations, many at a time, in any order.
pub(super) trait Backend: Send {
    /// Takes on an operation. `tag` is below [`IN_FLIGHT_MAX`] and not in flight.
    ///
    /// # Safety
    ///
    /// The memory that the vectors name stays mapped until the operation is done or the backend
    /// has been dropped, and is such that the kernel may read or write it meanwhile.
    unsafe fn start(&mut self, tag: u16, operation: Operation) -> io::Result<()>;

    /// Makes sure that everything taken on goes ahead.
    fn submit(&mut self) -> io::Result<()>;

    /// An operation that is done, if there is one.
    fn next_done(&mut self) -> Option<Done>;

    /// Submits, and waits until an operation is done, if any is in flight.
    fn wait(&mut self) -> io::Result<()>;

    /// Readable while [`Backend::next_done`] would give something; `None` if that is only so
    /// within the call of `start`.
    fn event(&self) -> Option<RawFd>;
}

/// Why a file cannot back a device.
#[derive(Debug, Error)]
pub enum BackingError {
    /// A directory, a pipe, a character device or such.
    #[error("the backing is neither a regular file nor a block device")]
    Kind,
    /// Reading type, size or mode of the file.
    #[error("inspecting the backing")]
    Inspect(#[source] io::Error),
    /// A writable device on a descriptor that cannot write.
    #[error("the backing is open for reading only, the device is writable")]
    Mode,
    /// A backing that is writable for a device that is not, or the other way round.
    #[error("the backing and the device differ in being read-only")]
    ReadOnly,
    /// A descriptor for each queue.
    #[error("duplicating the descriptor of the backing")]
    Duplicate(#[source] io::Error),
    /// A backing for another number of queues.
    #[error("the backing serves {0} queues, the device has {1}")]
    Queues(usize, usize),
    /// The device could not go on with its new backing.
    #[error("resuming the device with its backing")]
    Resume(#[source] crate::virtio::ActivateError),
}

/// An open file or block device, ready to serve requests of several queues.
pub struct Backing {
    pub(super) file: File,
    /// One for each queue.
    pub(super) backends: Vec<Box<dyn Backend>>,
    pub(super) sectors: u64,
    pub(super) read_only: bool,
}

impl Backing {
    /// Takes over `file`, whose size is the size of the device; a part of a sector at its end is
    /// left out.
    ///
    /// Uses io_uring if the kernel lets it, else vectored system calls. Makes descriptors and
    /// mappings, so it belongs before the seccomp filters of the process.
    pub fn new(file: File, read_only: bool, queues: usize) -> Result<Self, BackingError> {
        Self::with(file, read_only, queues, |file| match Ring::new(file) {
            Ok(ring) => Box::new(ring),
            // No io_uring, or forbidden, or no memory for it: all the same to the guest.
            Err(file) => Box::new(Direct::new(file)),
        })
    }

    /// As [`Backing::new`], without io_uring.
    pub fn without_ring(file: File, read_only: bool, queues: usize) -> Result<Self, BackingError> {
        Self::with(file, read_only, queues, |file| Box::new(Direct::new(file)))
    }

    fn with(
        file: File,
        read_only: bool,
        queues: usize,
        backend: impl Fn(File) -> Box<dyn Backend>,
    ) -> Result<Self, BackingError> {
        let sectors = inspect(&file, read_only)?;
        let backends = (0..queues)
            .map(|_| file.try_clone().map(&backend).map_err(BackingError::Duplicate))
            .collect::<Result<_, _>>()?;
        Ok(Self { file, backends, sectors, read_only })
    }

    /// Whether requests go through io_uring.
    pub fn has_ring(&self) -> bool {
        self.backends.iter().all(|backend| backend.event().is_some())
    }
}

/// The size in sectors of a file that can back a device.
fn inspect(file: &File, read_only: bool) -> Result<u64, BackingError> {
    let kind = file.metadata().map_err(BackingError::Inspect)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(BackingError::Kind);
    }
    // SAFETY: the descriptor is open; F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(BackingError::Inspect(io::Error::last_os_error()));
    }
    if !read_only && flags & libc::O_ACCMODE != libc::O_RDWR {
        return Err(BackingError::Mode);
    }
    sectors(file).map_err(BackingError::Inspect)
}

/// The size of `file` in sectors now.
pub(super) fn sectors(mut file: &File) -> io::Result<u64> {
    // The end of a block device is its size; its metadata says 0.
    file.seek(SeekFrom::End(0)).map(|bytes| bytes / SECTOR_BYTES)
}
