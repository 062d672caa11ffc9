//! What is known of the containers of this machine: one directory per container below
//! `--root`, holding `state.json`, `process.json`, `control.sock`, `vsock.sock` and `log`.
//!
//! A directory appears and disappears by one rename, so it is always whole. Its supervisor
//! holds a `flock` on it for as long as it lives: the kernel drops that lock however the
//! supervisor ends, so whether a container is alive is never a guess from a pid.
//!
//! Trust: the directories belong to the user who runs bulkhead, and nobody else can enter them.
//!
//! The attack: a record made by somebody else, which names processes to kill, cgroups to remove and
//! programs to run as poststop hooks. So a state directory that others can write is not used.

mod record;
mod remove;
mod store;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use thiserror::Error;

use crate::cgroup::CgroupError;
use crate::failure::Explain;
use crate::network::NetworkError;
use crate::uplink::UplinkError;

pub use record::{Record, Status, timestamp};
pub use remove::delete;
pub use store::{ContainerDir, Store, View};

/// The supervisor's listening socket.
pub const CONTROL_SOCKET: &str = "control.sock";
/// The VMM's listening socket.
pub const VSOCK_SOCKET: &str = "vsock.sock";
/// What the sandbox's processes and the guest's console said.
pub const LOG: &str = "log";

/// Why the state cannot be read or changed.
#[derive(Debug, Error)]
pub enum StateError {
    /// The directory of all containers.
    #[error("state directory {0}")]
    Root(PathBuf, #[source] io::Error),
    /// Somebody else can have written what is in it.
    #[error(
        "state directory {path} belongs to user {uid} with mode {mode:o}, and others than the user \
         of bulkhead could change it"
    )]
    Foreign {
        /// The directory of all containers.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The id is taken; runc's words.
    #[error("container with given ID already exists: {0}")]
    Exists(ContainerId),
    /// The id is free; runc's words.
    #[error("container does not exist: {0}")]
    Absent(ContainerId),
    /// A container that is not stopped is not deleted; runc's words.
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped {
        /// The container.
        id: ContainerId,
        /// Its state.
        status: Status,
    },
    /// Locking the container's directory.
    #[error("locking the state of {0}")]
    Lock(ContainerId, #[source] io::Error),
    /// Writing one of its files.
    #[error("writing {0}")]
    Write(PathBuf, #[source] io::Error),
    /// Reading one of its files.
    #[error("reading {file} of {id}")]
    Read {
        /// The container.
        id: ContainerId,
        /// The file.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Removing its directory.
    #[error("removing the state of {0}")]
    Remove(ContainerId, #[source] io::Error),
    /// Removing what connected its network namespace with the host's.
    #[error("removing what connected {0} with the network")]
    Uplink(ContainerId, #[source] UplinkError),
    /// Removing what it put into its network namespace.
    #[error("removing what {0} left in its network namespace")]
    Network(ContainerId, #[source] NetworkError),
    /// Removing what its sandbox holds for it.
    #[error("removing {0} from its sandbox: {1}")]
    Release(ContainerId, String),
    /// Removing its cgroup.
    #[error("removing the cgroup of {0}")]
    Cgroup(ContainerId, #[source] CgroupError),
    /// Killing one of its processes.
    #[error("killing process {1} of {0}")]
    Kill(ContainerId, u32, #[source] io::Error),
}

impl Explain for StateError {
    fn phase(&self) -> &'static str {
        match self {
            Self::Exists(_) | Self::Absent(_) | Self::NotStopped { .. } => {
                "looking up the container"
            }
            Self::Remove(..)
            | Self::Release(..)
            | Self::Network(..)
            | Self::Cgroup(..)
            | Self::Kill(..) => "deleting the container",
            _ => "keeping the container's state",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Exists(id) => format!("choose another id, or `bulkhead delete {id}`"),
            Self::Absent(_) => "`bulkhead list` shows those that do, under the same --root".into(),
            Self::NotStopped { id, .. } => format!("`bulkhead kill {id} KILL`, or delete --force"),
            Self::Root(..) => "give a directory that can be written with --root".into(),
            Self::Foreign { path, .. } => {
                format!("give another with --root, or chmod go-w {}", path.display())
            }
            Self::Read { id, .. } => format!("`bulkhead delete --force {id}` removes it"),
            Self::Write(..) => "is the file system of --root full?".into(),
            _ => String::new(),
        }
    }
}
