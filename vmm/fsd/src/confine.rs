//! The server's jail.

use std::os::fd::OwnedFd;

use bulkhead_jail::confine::{ConfineError, Limits, enter_file_server};
use bulkhead_jail::policy::FSD;
use bulkhead_jail::seccomp::{Filter, SeccompError};
use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;
use thiserror::Error;

/// Descriptors that the server should be able to have open: an inode that the guest remembers
/// takes one, an open file another. This is the kernel's own limit (`fs.nr_open`) where nobody
/// changed it.
const DESCRIPTORS_WANTED: u64 = 1 << 20;

/// Capabilities that ownership of files needs. Never `CAP_DAC_READ_SEARCH`, with which file
/// handles open anything on the file system, whatever the tree.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Why the server is not confined.
#[derive(Debug, Error)]
pub enum JailError {
    /// Namespaces, root, capabilities, limits.
    #[error("entering the jail")]
    Enter(#[source] ConfineError),
    /// The system call filter.
    #[error("compiling the system call filter")]
    Filter(#[source] SeccompError),
}

/// What is left to a confined process.
pub struct Jail {
    /// Its `/proc/self/fd`.
    pub descriptors: OwnedFd,
    /// How many descriptors it may have open.
    pub descriptors_max: u64,
    /// What each of its threads installs before it serves.
    pub filter: Filter,
}

/// Confines the process, which has one thread.
pub fn confine() -> Result<Jail, JailError> {
    let filter = Filter::new(&FSD).map_err(JailError::Filter)?;
    let descriptors_max = raise_descriptor_limit();
    let limits = Limits { descriptors: descriptors_max, threads: None, locked_bytes: 0 };
    let descriptors = enter_file_server(CAPABILITIES, limits).map_err(JailError::Enter)?;
    Ok(Jail { descriptors, descriptors_max, filter })
}

/// Raises the limit of open descriptors as far as it goes and returns it. A low one is no error:
/// the guest then remembers fewer inodes.
fn raise_descriptor_limit() -> u64 {
    let wanted = Rlimit { current: Some(DESCRIPTORS_WANTED), maximum: Some(DESCRIPTORS_WANTED) };
    match rustix::process::setrlimit(Resource::Nofile, wanted) {
        Ok(()) => DESCRIPTORS_WANTED,
        Err(_) => {
            let granted = rustix::process::getrlimit(Resource::Nofile).maximum;
            granted.unwrap_or(DESCRIPTORS_WANTED).min(DESCRIPTORS_WANTED)
        }
    }
}
