//! The backend without io_uring: each operation is a system call that waits.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::{Backend, Done, Operation, PUNCH_MODE, ZERO_MODE};
use crate::virtio::chain::IoVectors;

/// A file, and what was done on it.
pub(super) struct Direct {
    file: File,
    done: VecDeque<Done>,
}

impl Direct {
    pub(super) fn new(file: File) -> Self {
        Self { file, done: VecDeque::new() }
    }

    /// Does `operation`, whose vectors are as [`Backend::start`] demands.
    pub(super) fn perform(&self, operation: &Operation) -> io::Result<usize> {
        match operation {
            Operation::Read { offset, vectors } => self.read(*offset, vectors),
            Operation::Write { offset, vectors } => self.write(*offset, vectors),
            Operation::Sync => self.file.sync_data().map(|()| 0),
            Operation::Punch { offset, len } => self.allocate(PUNCH_MODE, *offset, *len),
            Operation::Zero { offset, len } => self.allocate(ZERO_MODE, *offset, *len),
        }
    }

    fn read(&self, offset: u64, vectors: &IoVectors) -> io::Result<usize> {
        let (count, offset) = arguments(offset, vectors)?;
        let vectors = vectors.as_slice().as_ptr();
        // SAFETY: pointer and count are of one live slice; what the vectors name is mapped and
        // may be written by the contract of `Backend::start`.
        checked(|| unsafe { libc::preadv(self.file.as_raw_fd(), vectors, count, offset) })
    }

    fn write(&self, offset: u64, vectors: &IoVectors) -> io::Result<usize> {
        let (count, offset) = arguments(offset, vectors)?;
        let vectors = vectors.as_slice().as_ptr();
        // SAFETY: pointer and count are of one live slice; what the vectors name is mapped by the
        // contract of `Backend::start`.
        checked(|| unsafe { libc::pwritev(self.file.as_raw_fd(), vectors, count, offset) })
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let len = i64::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let fd = self.file.as_raw_fd();
        // SAFETY: fallocate takes integers only.
        checked(|| unsafe { libc::fallocate(fd, mode, offset, len) } as isize)
    }
}

impl Backend for Direct {
    unsafe fn start(&mut self, tag: u16, operation: Operation) -> io::Result<()> {
        let result = self.perform(&operation);
        self.done.push_back(Done { tag, result, vectors: operation.into_vectors() });
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn next_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn event(&self) -> Option<RawFd> {
        None
    }
}

/// Count and offset as the vectored system calls take them.
fn arguments(offset: u64, vectors: &IoVectors) -> io::Result<(i32, i64)> {
    let count = i32::try_from(vectors.as_slice().len());
    let offset = i64::try_from(offset);
    match (count, offset) {
        (Ok(count), Ok(offset)) => Ok((count, offset)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// The result of a system call, which is made again as long as a signal interrupts it.
fn checked(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
