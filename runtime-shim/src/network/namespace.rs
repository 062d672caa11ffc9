//! The container's network namespace on the host: the one that the specification names, or a new
//! one. The supervisor lives in it, because engines look for it at `/proc/PID/ns/net` of the
//! process in the pid file.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::NetworkError;
use crate::plan::NetworkPlan;

/// This thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// That of the host's first process, as far as it can be seen.
const HOST: &str = "/proc/1/ns/net";

/// A namespace with a path that may outlive the sandbox, in the state record: what is left in it
/// after a crash is found there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRecord {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

/// Moves this thread, and whatever it starts from now on, into the container's namespace. Gives
/// what is to be recorded of it.
pub fn enter(plan: &NetworkPlan) -> Result<Option<NamespaceRecord>, NetworkError> {
    match plan {
        NetworkPlan::New => {
            // SAFETY: the network namespace is nothing that memory or descriptors depend on.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|e| NetworkError::Make(e.into()))?;
            Ok(None)
        }
        NetworkPlan::Path(path) => {
            let (file, record) = open(path)?;
            refuse_host(&record)?;
            move_in(path, &file)?;
            Ok(Some(record))
        }
    }
}

/// Moves this thread into `namespace`, that of another thread of this process.
pub fn follow(namespace: &File) -> io::Result<()> {
    let kind = Some(LinkNameSpaceType::Network);
    Ok(move_into_link_name_space(namespace.as_fd(), kind)?)
}

impl NamespaceRecord {
    /// The namespace that `path` leads to now.
    #[cfg(test)]
    pub(super) fn of(path: &Path) -> Result<Self, NetworkError> {
        open(path).map(|(_, record)| record)
    }

    /// Moves this thread into the namespace, unless it is gone: the path leads nowhere, or to
    /// another one.
    pub(super) fn enter(&self) -> Result<bool, NetworkError> {
        match open(&self.path) {
            Ok((file, record)) if record == *self => move_in(&self.path, &file).map(|()| true),
            _ => Ok(false),
        }
    }
}

fn open(path: &Path) -> Result<(File, NamespaceRecord), NetworkError> {
    let failed = |e| NetworkError::Open(path.to_owned(), e);
    // A FIFO must not hold the start up until somebody writes.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let (dev, ino) = (found.dev(), found.ino());
    Ok((file, NamespaceRecord { path: path.to_owned(), dev, ino }))
}

/// The interfaces of a namespace that is given away serve the guest alone, and the host would be
/// cut off.
fn refuse_host(record: &NamespaceRecord) -> Result<(), NetworkError> {
    let same = |path: &str| {
        std::fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (record.dev, record.ino))
    };
    match same(OWN) || same(HOST) {
        true => Err(NetworkError::Host(record.path.clone())),
        false => Ok(()),
    }
}

fn move_in(path: &Path, file: &File) -> Result<(), NetworkError> {
    follow(file).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidInput => NetworkError::NotANamespace(path.to_owned()),
        _ => NetworkError::Enter(path.to_owned(), e),
    })
}
