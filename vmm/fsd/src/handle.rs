//! Open files and directories.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::table::Table;

/// Something open.
pub enum Handle {
    /// A regular file. The VMM holds the same open file description and moves the data; this
    /// one serves what the VMM does not: fsync, fallocate, copies.
    File(OwnedFd),
    /// A directory, and the offset at which its descriptor stands, if known.
    Directory(OwnedFd, Mutex<Option<u64>>),
    /// The directory of the shares.
    Root,
}

impl Handle {
    /// The regular file.
    pub fn file(&self) -> Option<&OwnedFd> {
        match self {
            Self::File(file) => Some(file),
            Self::Directory(..) | Self::Root => None,
        }
    }
}

/// Handles by `fh`.
pub struct HandleTable(Table<Arc<Handle>>);

impl HandleTable {
    /// A table of at most `capacity` handles.
    pub fn new(capacity: usize) -> Self {
        Self(Table::new(capacity))
    }

    /// Adds a handle; `ENFILE` if the table is full.
    pub fn insert(&mut self, handle: Arc<Handle>) -> Result<u64, Errno> {
        self.0.insert(handle)
    }

    /// The handle with this number; `EBADF` if there is none.
    pub fn get(&self, fh: u64) -> Result<Arc<Handle>, Errno> {
        self.0.get(fh).map(Arc::clone).ok_or(Errno::BADF)
    }

    /// Takes a handle out; the caller drops it without the lock.
    pub fn remove(&mut self, fh: u64) -> Result<Arc<Handle>, Errno> {
        self.0.remove(fh).ok_or(Errno::BADF)
    }

    /// Closes everything.
    pub fn clear(&mut self) {
        self.0.take_all().for_each(drop);
    }
}
