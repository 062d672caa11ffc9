//! The backend on io_uring: many operations in flight, done in any order.
//!
//! The attack that the restrictions stop: io_uring can open files, send messages and more, past
//! every seccomp filter. So the ring is created disabled, given its one file, restricted for good
//! to five operations on that file, and only then enabled. Afterwards io_uring_enter(2) is the one
//! system call that the worker needs for it.
//!
//! Writes of whole pages to the page cache are made by a system call at once. They wait for no disk
//! (but for the throttling of a writer that is faster than its disk, which is meant), and most
//! file systems have no other way to take them: the kernel would hand each to a thread of its own
//! and back, which costs more than the write.
//!
//! What would block, the kernel gives to threads of its own, which count against the process's
//! limit. Where it can make none it cancels the operation, which is then done by a system call.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};

use super::direct::Direct;
use super::{Backend, Done, IN_FLIGHT_MAX, Operation, PUNCH_MODE, ZERO_MODE};

/// The registered file.
const FILE: Fixed = Fixed(0);

/// Most kernel threads of one ring: for regular files and block devices, and for all else, of
/// which there is nothing.
const KERNEL_THREADS_MAX: [u32; 2] = [4, 1];

/// Bytes of a page of the page cache.
const PAGE_BYTES: u64 = 4096;
/// Longest write that is made at once: a reader behind it does not wait longer than for a copy of
/// this.
const AT_ONCE_MAX: usize = 64 << 10;

/// A restricted ring.
pub(super) struct Ring {
    ring: IoUring,
    /// Writes to the page cache, and does what the kernel has cancelled.
    direct: Direct,
    /// Whether the file goes through the page cache.
    cached: bool,
    /// What was done at once.
    done: VecDeque<Done>,
    /// Those in flight, by tag: the kernel may read their vectors until they are done.
    operations: Vec<Option<Operation>>,
    in_flight: usize,
}

impl Ring {
    /// A ring that can do nothing but operate on `file`. On an error the file comes back.
    pub(super) fn new(file: File) -> Result<Self, File> {
        match restricted(file.as_raw_fd()) {
            Ok(ring) => {
                // SAFETY: the descriptor is open; F_GETFL takes no argument.
                let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
                Ok(Self {
                    ring,
                    direct: Direct::new(file),
                    cached: flags & libc::O_DIRECT == 0,
                    done: VecDeque::new(),
                    operations: (0..IN_FLIGHT_MAX).map(|_| None).collect(),
                    in_flight: 0,
                })
            }
            Err(_) => Err(file),
        }
    }

    /// Whether `operation` is a short write of whole pages to the page cache.
    fn is_copy(&self, operation: &Operation) -> bool {
        let Operation::Write { offset, vectors } = operation else { return false };
        let len = vectors.len_bytes();
        self.cached
            && len <= AT_ONCE_MAX
            && offset.is_multiple_of(PAGE_BYTES)
            && (len as u64).is_multiple_of(PAGE_BYTES)
    }

    /// Enters the kernel until everything is submitted and `want` operations are done.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Backend for Ring {
    unsafe fn start(&mut self, tag: u16, operation: Operation) -> io::Result<()> {
        if self.is_copy(&operation) {
            let result = self.direct.perform(&operation);
            self.done.push_back(Done { tag, result, vectors: operation.into_vectors() });
            return Ok(());
        }
        let operation = self.operations[usize::from(tag)].insert(operation);
        let entry = entry(operation).user_data(u64::from(tag));
        // SAFETY: the vectors stay in `self.operations` until the operation is done, and what they
        // name stays mapped by the contract of this function.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(io::Error::other)?;
        self.in_flight += 1;
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() { Ok(()) } else { self.enter(0) }
    }

    fn next_done(&mut self) -> Option<Done> {
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        // The kernel gives back what `start` gave to it.
        let tag = entry.user_data() as u16;
        let Some(operation) = self.operations[usize::from(tag)].take() else {
            unreachable!("only what was started is done");
        };
        let result = match entry.result() {
            error if error == -libc::ECANCELED => self.direct.perform(&operation),
            result => usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)),
        };
        Some(Done { tag, result, vectors: operation.into_vectors() })
    }

    fn wait(&mut self) -> io::Result<()> {
        if self.in_flight == 0 || !self.done.is_empty() { Ok(()) } else { self.enter(1) }
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.ring.as_raw_fd())
    }
}

impl Drop for Ring {
    /// The kernel must be done with guest memory before its owner may unmap it.
    fn drop(&mut self) {
        while self.in_flight > 0 && self.wait().is_ok() {
            while self.next_done().is_some() {}
        }
    }
}

/// A ring with `file` registered, restricted, and enabled.
fn restricted(file: RawFd) -> io::Result<IoUring> {
    let ring = IoUring::builder().dontfork().setup_r_disabled().build(u32::from(IN_FLIGHT_MAX))?;
    let submitter = ring.submitter();
    submitter.register_files(&[file])?;
    // Kernels before 5.15 lack this; their threads are then bounded by the process's limit alone.
    let _ = submitter.register_iowq_max_workers(&mut KERNEL_THREADS_MAX.clone());
    let fixed = Flags::FIXED_FILE.bits();
    submitter.register_restrictions(&mut [
        Restriction::sqe_op(opcode::Read::CODE),
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_op(opcode::Fallocate::CODE),
        Restriction::sqe_flags_allowed(fixed),
        Restriction::sqe_flags_required(fixed),
    ])?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

fn entry(operation: &Operation) -> Entry {
    match operation {
        Operation::Read { offset, vectors } => {
            let vectors = vectors.as_slice();
            // One buffer is the rule; the kernel need not copy a list of one.
            if let [vector] = vectors
                && let Ok(len) = u32::try_from(vector.iov_len)
            {
                let base = vector.iov_base.cast();
                return opcode::Read::new(FILE, base, len).offset(*offset).build();
            }
            opcode::Readv::new(FILE, vectors.as_ptr(), vectors.len() as u32).offset(*offset).build()
        }
        Operation::Write { offset, vectors } => {
            let vectors = vectors.as_slice();
            opcode::Writev::new(FILE, vectors.as_ptr(), vectors.len() as u32)
                .offset(*offset)
                .build()
        }
        Operation::Sync => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        Operation::Punch { offset, len } => {
            opcode::Fallocate::new(FILE, *len).offset(*offset).mode(PUNCH_MODE).build()
        }
        Operation::Zero { offset, len } => {
            opcode::Fallocate::new(FILE, *len).offset(*offset).mode(ZERO_MODE).build()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::types::Fd;

    fn ring() -> Option<(Ring, File)> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        match Ring::new(file.try_clone().unwrap()) {
            Ok(ring) => Some((ring, file)),
            Err(_) => {
                eprintln!("skipped: io_uring is not usable here");
                None
            }
        }
    }

    /// The result of `entry`, pushed past every check of [`Ring`], as an attacker would.
    fn result_of(ring: &mut Ring, entry: &Entry) -> i32 {
        // SAFETY: the entry names no memory that could go away: none at all, or a constant.
        unsafe { ring.ring.submission().push(entry).unwrap() };
        ring.ring.submit_and_wait(1).unwrap();
        ring.ring.completion().next().unwrap().result()
    }

    #[test]
    fn ring_refuses_all_but_its_operations_on_its_file() {
        let Some((mut ring, file)) = ring() else { return };
        let path = c"/";
        let refused = [
            opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            opcode::Nop::new().build(),
            opcode::Close::new(Fixed(0)).build(),
            opcode::Fsync::new(Fd(file.as_raw_fd())).build(),
        ];
        for entry in &refused {
            assert_eq!(result_of(&mut ring, entry), -libc::EACCES);
        }
        assert_eq!(result_of(&mut ring, &super::entry(&Operation::Sync)), 0);
    }

    #[test]
    fn ring_cannot_be_given_another_file() {
        let Some((ring, file)) = ring() else { return };
        let submitter = ring.ring.submitter();
        assert!(submitter.unregister_files().is_err());
        assert!(submitter.register_files_update(0, &[file.as_raw_fd()]).is_err());
        assert!(submitter.register_restrictions(&mut []).is_err());
    }

    #[test]
    fn dropped_ring_waits_for_what_is_in_flight() {
        let Some((mut ring, file)) = ring() else { return };
        let (offset, len) = (0, 512);
        // SAFETY: the operation names no memory.
        unsafe { ring.start(0, Operation::Punch { offset, len }).unwrap() };
        drop(ring);
        assert_eq!(file.metadata().unwrap().len(), 512);
    }
}
