//! The store: layers unpacked once, by content, and the writable directories of containers.
//!
//! ```text
//! layers/sha256/DIFF_ID/   a layer; there if and only if it is complete and verified
//! images/KEY               a root file system as one EROFS image, by its layers
//! containers/ID/           upper/ and work/ of a container's overlay, `state` (see container.rs)
//! work/DIFF_ID/            a layer in the making; so work/KEY/
//! work/DIFF_ID.lock        held by who makes it; so work/KEY.lock
//! lock                     held while containers/ changes
//! ```
//!
//! The store belongs to root alone: layers have set-id programs and device nodes that no other
//! user of the host may reach. Whoever is killed at whatever moment leaves at most a directory
//! in `work` or `containers` that the next start collects; locks die with their
//! holders.

pub mod container;
pub mod images;
mod layers;
mod lock;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

pub use self::layers::Progress;
use super::layer::LayerError;
use super::unpack::UnpackError;
use super::unpack::budget::Exceeded;
use crate::failure::{EXIT_LAUNCH, Explain};

/// Where the store is unless told otherwise.
pub const DEFAULT_PATH: &str = "/var/lib/bulkhead";

/// What the name of a lock in `work` ends with.
const LOCK_SUFFIX: &str = ".lock";

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why the store failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The store cannot be opened or made.
    #[error("opening the store {path:?}")]
    Open {
        /// The store.
        path: PathBuf,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// Others than root could write to the store, or reach what layers hold.
    #[error("the store {0:?} belongs to another user or is open to others")]
    Exposed(PathBuf),
    /// A step of the store's own bookkeeping.
    #[error("{step} in the store")]
    Step {
        /// What was done.
        step: &'static str,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A layer is not what the image says.
    #[error("layer {diff_id}")]
    Layer {
        /// The layer.
        diff_id: String,
        /// What is wrong.
        #[source]
        source: LayerError,
    },
    /// A layer cannot be unpacked.
    #[error("layer {diff_id}")]
    Unpack {
        /// The layer.
        diff_id: String,
        /// What is wrong.
        #[source]
        source: UnpackError,
    },
    /// No space or no quota left.
    #[error("the file system of the store {0:?} is full")]
    Full(PathBuf),
    /// The id is taken.
    #[error("a container {0:?} exists already")]
    Exists(String),
}

impl StoreError {
    pub(super) fn step(step: &'static str) -> impl Fn(Errno) -> Self {
        move |error| Self::Step { step, source: error.into() }
    }
}

impl Explain for StoreError {
    fn phase(&self) -> &'static str {
        match self {
            Self::Layer { .. } | Self::Unpack { .. } | Self::Full(_) => "unpacking the image",
            Self::Exists(_) => "creating the container",
            _ => "preparing the store",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Exposed(path) => format!("`chown root: {0} && chmod 0700 {0}`", path.display()),
            Self::Full(_) => "free some space, or choose another place with --store".to_owned(),
            Self::Exists(id) => format!("choose another --name, or `bulkhead delete {id}`"),
            Self::Layer {
                source: LayerError::Digest { .. } | LayerError::DiffId { .. }, ..
            } => "the image is damaged or was tampered with; fetch it again".to_owned(),
            Self::Layer { source: LayerError::Budget(Exceeded::Bytes(_)), .. }
            | Self::Unpack { source: UnpackError::Budget(Exceeded::Bytes(_)), .. } => {
                "raise --unpack-max if you trust it".to_owned()
            }
            Self::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as root".to_owned()
            }
            _ => String::new(),
        }
    }

    fn code(&self) -> u8 {
        EXIT_LAUNCH
    }
}

/// An open store.
pub struct Store {
    path: PathBuf,
    root: OwnedFd,
    layers: OwnedFd,
    images: OwnedFd,
    containers: OwnedFd,
    work: OwnedFd,
}

impl Store {
    /// Opens the store at `path`, which is made if missing, and collects what killed processes
    /// left there.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let os = |error: Errno| failed(error.into());
        let root = fs::open(&path, DIRECTORY, Mode::empty()).map_err(os)?;
        close_to_others(&root, &path).map_err(os)?;
        let stat = fs::fstat(&root).map_err(os)?;
        if stat.st_mode & 0o077 != 0 || stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(StoreError::Exposed(path));
        }
        let make = |parent: &OwnedFd, name| subdirectory(parent.as_fd(), name).map_err(os);
        let layers = make(&make(&root, "layers")?, "sha256")?;
        let store = Self {
            layers,
            images: make(&root, "images")?,
            containers: make(&root, "containers")?,
            work: make(&root, "work")?,
            path,
            root,
        };
        store.collect()?;
        Ok(store)
    }

    /// Absolute path of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory of the store's file system for files without a name.
    pub fn scratch(&self) -> PathBuf {
        self.path.join("work")
    }

    /// The directory that the store is.
    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    fn collect(&self) -> Result<(), StoreError> {
        self.collect_layers()?;
        self.collect_containers()
    }
}

/// A store that was just made, or is still empty, is closed; another's mode is not touched.
fn close_to_others(root: &OwnedFd, path: &Path) -> rustix::io::Result<()> {
    let mut empty = true;
    super::remove::for_each_entry(root.as_fd(), |_, _| {
        empty = false;
        Ok(())
    })?;
    let own = fs::fstat(root)?.st_uid == rustix::process::geteuid().as_raw();
    if empty && own && path != Path::new("/") {
        fs::fchmod(root, Mode::RWXU)?;
    }
    Ok(())
}

/// Opens a directory below `parent`, making it if missing.
fn subdirectory(parent: BorrowedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    match fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    fs::openat(parent, name, DIRECTORY, Mode::empty())
}

#[cfg(test)]
mod tests;
