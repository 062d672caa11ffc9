//! The two processes of a sandbox and what connects them: opening what they are given,
//! starting them jailed, configuring them, and watching them until they end.
//!
//! The VMM and the file server may have been taken over by the guest. Their messages are
//! bounded, what they print is made printable, and descriptors that they send are never taken.

mod ask;
mod boot;
mod capacity;
mod channel;
mod cmdline;
mod console_tail;
mod detach;
mod machine;
mod mount_points;
mod resize;
mod sources;
mod view;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::failure::Explain;

pub use boot::{BOOT_TIMEOUT_ENV, Prepared, boot_limit, prepare};
pub use capacity::Capacity;
pub use machine::{End, Event, Machine};
pub use resize::{Size, resize};
pub(crate) use sources::{OpenShare, open_apart};
pub use view::View;

/// Why a sandbox does not come up, or ended.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// `/dev/kvm` does not open.
    #[error("/dev/kvm cannot be opened")]
    Kvm(#[source] io::Error),
    /// `/dev/kvm` is another device.
    #[error("/dev/kvm is not the device of KVM")]
    KvmDevice,
    /// A directory or file of the specification does not open.
    #[error("{field}: {path}")]
    Source {
        /// Field of the specification.
        field: String,
        /// What it leads to.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is neither directory nor regular file.
    #[error("{field}: {path} is {reason}")]
    SourceKind {
        /// Field of the specification.
        field: String,
        /// What it leads to.
        path: PathBuf,
        /// What it is, and why that is no use.
        reason: &'static str,
    },
    /// A mount of the host's cannot be made from it.
    #[error("{field}: {path}: {step}")]
    Detach {
        /// Field of the specification.
        field: String,
        /// What it leads to.
        path: PathBuf,
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A mount point that a read-only root lacks.
    #[error("making mount point {0} in the root file system")]
    MountPoint(PathBuf, #[source] io::Error),
    /// A socket or pipe between the processes.
    #[error("making {0}")]
    Plumbing(&'static str, #[source] io::Error),
    /// A process does not start.
    #[error("starting {0}")]
    Spawn(&'static str, #[source] io::Error),
    /// How soon the kernel may end a process.
    #[error("process.oomScoreAdj: setting it")]
    OomScore(#[source] io::Error),
    /// Talking to a process.
    #[error("talking to {0}")]
    Channel(&'static str, #[source] io::Error),
    /// A process says what the protocol does not allow.
    #[error("{0} answers with garbage")]
    Garbage(&'static str),
    /// A process refuses a request.
    #[error("{0}")]
    Refused(String),
    /// The machine ended.
    #[error("{0}")]
    Ended(End),
    /// Nothing comes from the guest.
    #[error("the guest agent has not answered for {} s", .0.as_secs())]
    Silent(Duration),
    /// A process does not answer.
    #[error("{name} has not answered for {} s", .limit.as_secs())]
    Unanswered {
        /// Its name.
        name: &'static str,
        /// How long it may take.
        limit: Duration,
    },
    /// The agent speaks another version of the API.
    #[error("the agent speaks version {0} of the API, not {expected}", expected = bulkhead_protocol::guest::READY)]
    Version(u8),
    /// A signal came first.
    #[error("interrupted by signal {0}")]
    Interrupted(u32),
    /// Watching descriptors.
    #[error("waiting for the microVM")]
    Poll(#[source] io::Error),
}

impl Explain for SandboxError {
    fn phase(&self) -> &'static str {
        match self {
            Self::Kvm(_) | Self::KvmDevice => "opening KVM",
            Self::Source { .. }
            | Self::SourceKind { .. }
            | Self::Detach { .. }
            | Self::MountPoint(..) => "opening the container's files",
            _ => "booting the microVM",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Kvm(e) => match e.kind() {
                io::ErrorKind::NotFound => {
                    "load kvm_intel or kvm_amd; `bulkhead doctor` tells more".into()
                }
                io::ErrorKind::PermissionDenied => "run as root, or join group kvm".into(),
                _ => "`bulkhead doctor` tells more".into(),
            },
            Self::KvmDevice => "make it with `mknod /dev/kvm c 10 232`".into(),
            Self::Source { .. } => "correct the path in config.json".into(),
            Self::SourceKind { .. } => {
                "share a directory, or serve it to the container over its network".into()
            }
            Self::Detach { step: "mapping its owners", .. } => {
                "the host's file system must support it (ext4, xfs, btrfs; tmpfs since Linux 6.3)"
                    .into()
            }
            Self::Detach { .. } => "correct the mount in config.json".into(),
            Self::MountPoint(..) => "make it, or let root.readonly be false".into(),
            Self::Spawn(_, e) if e.kind() == io::ErrorKind::PermissionDenied => {
                "run as root: each process gets namespaces of its own".into()
            }
            Self::Ended(end) => end.fix().to_owned(),
            Self::Silent(_) => format!(
                "bulkhead --debug shows its console; a slow host sets {}",
                boot::BOOT_TIMEOUT_ENV
            ),
            Self::Version(_) => "build agent and runtime from one source".into(),
            _ => String::new(),
        }
    }

    fn code(&self) -> u8 {
        match self {
            Self::Interrupted(signal) => crate::signal::exit_code(*signal),
            _ => crate::failure::EXIT_FAILURE,
        }
    }
}
