//! Disks of a sandbox: from what the plan says to open files for the VMM and orders for the
//! agent.
//!
//! A file is opened by its path once, its kind checked before it is opened for reading or
//! writing, and locked: whoever writes is alone, readers share. The lock is part of the open
//! file, which the VMM holds, so that it lasts as long as the machine, however that ends.
//!
//! Trust: paths are the caller's. What is in an image may be anybody's, so nothing of it is
//! believed but the magic number and the size in its superblock, and those only to say early and
//! clearly what the guest's kernel would refuse.

mod guest;
mod open;
mod superblock;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use bulkhead_protocol::vm::RawRateLimit;
use thiserror::Error;

use crate::failure::Explain;
use crate::plan::FileSystem;

pub use self::guest::GuestDisks;
pub use self::open::open_disks;

/// A disk, opened and locked.
#[derive(Debug)]
pub struct OpenDisk {
    /// Serial number, at most 20 bytes.
    pub serial: String,
    /// Regular file or block device.
    pub file: File,
    /// Refuse every change.
    pub read_only: bool,
    /// Request queues.
    pub queues: u32,
    /// Limit of reads and writes.
    pub rate: Option<RawRateLimit>,
}

/// Why a disk cannot be had.
#[derive(Debug, Error)]
pub enum BlockError {
    /// It does not open.
    #[error("{field}: {path}")]
    Open {
        /// Field of the specification.
        field: String,
        /// What it leads to.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is neither an image nor a block device.
    #[error("{field}: {path} is neither a regular file nor a block device")]
    Kind {
        /// Field of the specification.
        field: String,
        /// What it leads to.
        path: PathBuf,
    },
    /// No node of the host has these numbers.
    #[error("{field}: this host has no block device {major}:{minor}")]
    Number {
        /// Field of the specification.
        field: String,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Another sandbox or mount has it.
    #[error("{field}: {path} is in use")]
    InUse {
        /// Field of the specification.
        field: String,
        /// What it leads to.
        path: PathBuf,
        /// Whether it was to be written to.
        writer: bool,
    },
    /// Not whole sectors.
    #[error("{field}: {path} has {bytes} bytes, not a multiple of 512")]
    Sectors {
        /// Field of the specification.
        field: String,
        /// What it leads to.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// No known file system.
    #[error(
        "{field}: {path} holds no file system that the guest can mount (erofs, ext4, squashfs){hint}"
    )]
    Unknown {
        /// Field of the specification.
        field: String,
        /// What it leads to.
        path: PathBuf,
        /// What it holds, if that is known.
        hint: String,
    },
    /// Another file system than the specification says.
    #[error("{field}: {path} holds {found}, not {wanted}")]
    Type {
        /// Field of the specification.
        field: String,
        /// What it leads to.
        path: PathBuf,
        /// What the specification says.
        wanted: FileSystem,
        /// What the superblock says.
        found: FileSystem,
    },
    /// Shorter than its file system.
    #[error("{field}: {path} is truncated: its file system has {wanted} bytes, the image {bytes}")]
    Truncated {
        /// Field of the specification.
        field: String,
        /// What it leads to.
        path: PathBuf,
        /// Size of the file system.
        wanted: u64,
        /// Size of the image.
        bytes: u64,
    },
}

impl Explain for BlockError {
    fn phase(&self) -> &'static str {
        "opening the container's disks"
    }

    fn fix(&self) -> String {
        match self {
            Self::Open { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
                ) =>
            {
                "let it be written to, or give it read-only".into()
            }
            Self::Open { .. } | Self::Kind { .. } => "correct the path".into(),
            Self::Number { .. } => "load its driver, or remove it from config.json".into(),
            Self::InUse { writer: true, .. } => {
                "end the container that has it, unmount it, or give it read-only".into()
            }
            Self::InUse { writer: false, .. } => "end the container that writes to it".into(),
            Self::Sectors { bytes: 0, .. } => "put something into it".into(),
            Self::Sectors { .. } => "lengthen it with `truncate --size %512`".into(),
            Self::Unknown { .. } => "make one with mkfs.erofs, mke2fs or mksquashfs".into(),
            Self::Type { found, .. } => format!("say type {found}"),
            Self::Truncated { .. } => "copy the image again".into(),
        }
    }
}
