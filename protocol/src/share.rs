//! Configuration of the file server: one message on its control socket, with descriptors.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::SHARES_MAX;
use crate::vm::FdIndex;

/// What the runtime sends to `bulkhead-fsd`, as JSON with the descriptors it names attached.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawShareConfig {
    /// Socket to the VMM's virtio-fs device.
    pub device: FdIndex,
    /// Directories and single files to serve.
    pub shares: Vec<RawShare>,
}

/// What the runtime asks of a file server that serves, as JSON with the descriptors it names
/// attached; each is answered by a [`ShareReply`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum RawShareRequest {
    /// Serve these as well: all of them, or none.
    Add {
        /// Each a mount of its own already, mounted nowhere: the server cannot make it one.
        shares: Vec<RawShare>,
    },
    /// Serve these no more.
    Remove {
        /// Names of shares; one that is not served is not missed.
        names: Vec<String>,
    },
}

/// What the file server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case", deny_unknown_fields)]
pub enum ShareReply {
    /// It is done.
    Done,
    /// It is not, and nothing is changed.
    Failed {
        /// Why.
        message: String,
    },
}

/// One entry of the directory that the guest mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawShare {
    /// Name of the entry.
    pub name: String,
    /// `O_PATH` descriptor of a directory, or of a single file.
    pub source: FdIndex,
    /// Refuse every change, whatever the guest asks.
    pub read_only: bool,
}

/// Why a configuration is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ShareConfigError {
    /// More shares than [`SHARES_MAX`].
    #[error("{0} shares (at most {SHARES_MAX})")]
    TooMany(usize),
    /// A name that is not one plain path component.
    #[error("share name {0:?} is not one path component")]
    Name(String),
    /// A name twice.
    #[error("share name {0:?} is used twice")]
    Twice(String),
    /// A descriptor index beyond those that came along.
    #[error("descriptor {0} was not sent")]
    Fd(u32),
}

/// A checked [`RawShareConfig`].
#[derive(Debug, Clone)]
pub struct ShareConfig {
    raw: RawShareConfig,
}

impl ShareConfig {
    /// Checks `raw`, which came with `fds` descriptors.
    pub fn new(raw: RawShareConfig, fds: usize) -> Result<Self, ShareConfigError> {
        raw.device.check(fds).map_err(ShareConfigError::Fd)?;
        check_shares(&raw.shares, fds)?;
        Ok(Self { raw })
    }

    /// Socket to the VMM's virtio-fs device.
    pub fn device(&self) -> FdIndex {
        self.raw.device
    }

    /// Directories and single files to serve, names unique.
    pub fn shares(&self) -> &[RawShare] {
        &self.raw.shares
    }
}

/// Checks the number of `shares`, their names, and that each has one of `fds` descriptors.
pub fn check_shares(shares: &[RawShare], fds: usize) -> Result<(), ShareConfigError> {
    if shares.len() > SHARES_MAX {
        return Err(ShareConfigError::TooMany(shares.len()));
    }
    let mut names = std::collections::BTreeSet::new();
    for share in shares {
        let name = &share.name;
        if name.is_empty()
            || name.len() > 255
            || name.contains(['/', '\0'])
            || name == "."
            || name == ".."
        {
            return Err(ShareConfigError::Name(name.clone()));
        }
        if !names.insert(name.as_str()) {
            return Err(ShareConfigError::Twice(name.clone()));
        }
        share.source.check(fds).map_err(ShareConfigError::Fd)?;
    }
    Ok(())
}
