//! What a block device has done, counted by queue.

use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Bytes read.
    pub read_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Requests that failed.
    pub errors: u64,
}

impl Add for BlockCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            read_bytes: self.read_bytes.wrapping_add(other.read_bytes),
            reads: self.reads.wrapping_add(other.reads),
            written_bytes: self.written_bytes.wrapping_add(other.written_bytes),
            writes: self.writes.wrapping_add(other.writes),
            errors: self.errors.wrapping_add(other.errors),
        }
    }
}

/// Counters of one queue: its worker writes, anyone reads.
#[derive(Debug, Default)]
pub(super) struct Counters {
    read_bytes: AtomicU64,
    reads: AtomicU64,
    written_bytes: AtomicU64,
    writes: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> BlockCounts {
        BlockCounts {
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            reads: self.reads.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }

    pub(super) fn count_read(&self, bytes: usize) {
        increase(&self.reads, 1);
        increase(&self.read_bytes, bytes as u64);
    }

    pub(super) fn count_write(&self, bytes: usize) {
        increase(&self.writes, 1);
        increase(&self.written_bytes, bytes as u64);
    }

    pub(super) fn count_error(&self) {
        increase(&self.errors, 1);
    }
}

/// No locked instruction: the worker of the queue is the only writer.
fn increase(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}
