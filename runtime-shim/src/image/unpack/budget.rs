//! What unpacking one image may cost, shared by the threads that unpack its layers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use thiserror::Error;

/// Most files, directories and nodes of one image. Large real images have half a million.
pub const NODES_MAX: u64 = 4 << 20;
/// Default for the bytes of one image when unpacked: the layers as tar streams.
pub const BYTES_DEFAULT: u64 = 32 << 30;
/// Most bytes of directory names of one image that are remembered while it is unpacked.
const NAMES_MAX: u64 = 256 << 20;

/// Which bound an image breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Exceeded {
    /// More files than [`NODES_MAX`].
    #[error("the image has more than {NODES_MAX} files")]
    Nodes,
    /// More data than allowed.
    #[error("the image is larger than {0} bytes when unpacked")]
    Bytes(u64),
    /// More directory names than are remembered.
    #[error("the image has more than {NAMES_MAX} bytes of directory names")]
    Names,
    /// Another layer failed; this one was given up.
    #[error("given up because another layer failed")]
    Cancelled,
}

/// What is left of the bounds.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    bytes: AtomicU64,
    nodes: AtomicU64,
    names: AtomicU64,
    cancelled: AtomicBool,
}

impl Budget {
    /// A full budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        Self {
            limit: bytes,
            bytes: AtomicU64::new(bytes),
            nodes: AtomicU64::new(NODES_MAX),
            names: AtomicU64::new(NAMES_MAX),
            cancelled: AtomicBool::new(false),
        }
    }

    /// Counts one file, directory or node.
    pub fn take_node(&self) -> Result<(), Exceeded> {
        take(&self.nodes, 1).ok_or(Exceeded::Nodes)
    }

    /// Counts bytes of an unpacked stream; also where a layer that was cancelled stops.
    pub fn take_bytes(&self, bytes: u64) -> Result<(), Exceeded> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Exceeded::Cancelled);
        }
        take(&self.bytes, bytes).ok_or(Exceeded::Bytes(self.limit))
    }

    /// Counts the name of a directory that is remembered.
    pub fn take_name(&self, length: usize) -> Result<(), Exceeded> {
        take(&self.names, length as u64).ok_or(Exceeded::Names)
    }

    /// Makes every other layer stop.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

fn take(left: &AtomicU64, amount: u64) -> Option<()> {
    let less = |left: u64| left.checked_sub(amount);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok().map(drop)
}
