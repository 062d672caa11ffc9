//! The writable directory of a container, `containers/ID/`.
//!
//! It is made before the runtime knows the container, is named in its state as `scratch`, and
//! removed with it by [`remove_path`]. In between, whoever is killed, it can be told whether it is still wanted: its
//! maker holds a lock on the directory until the runtime has taken over, and the link `state`
//! in it names the container's state directory. No lock and no state directory: nobody's.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bulkhead_protocol::id::ContainerId;
use rustix::fs::{self, FlockOperation, Mode};
use rustix::io::Errno;

use super::{DIRECTORY, Store, StoreError, lock};
use crate::image::remove::{for_each_entry, remove_path, remove_tree};

/// Where a container's own file changes go.
pub const UPPER: &CStr = c"upper";
/// What overlayfs needs besides.
pub const WORK: &CStr = c"work";
const STATE: &CStr = c"state";

/// A container directory that its maker holds: removed when dropped, unless it was handed over.
pub struct Claim {
    path: PathBuf,
    name: CString,
    /// Keeps the lock.
    directory: OwnedFd,
    handed_over: bool,
}

impl Claim {
    /// Absolute path of the directory: what [`crate::request::SandboxOptions::scratch`] names.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The id, as a name below `containers`.
    pub fn name(&self) -> &CStr {
        &self.name
    }

    /// The directory.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// What the container has of its own, without the layers below.
    pub fn own_layer(&self) -> Result<OwnedFd, StoreError> {
        fs::openat(&self.directory, UPPER, fs::OFlags::PATH | DIRECTORY, Mode::empty())
            .map_err(StoreError::step("opening the container's layer"))
    }

    /// The state directory exists: from now on the directory is removed with it.
    pub fn hand_over(mut self) {
        self.handed_over = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.handed_over {
            // What cannot be removed now has no state and is collected later.
            let _ = remove_path(&self.path);
        }
    }
}

impl Store {
    /// Makes the directory of container `id`, whose state will be in `state`.
    pub fn claim_container(&self, id: &ContainerId, state: &Path) -> Result<Claim, StoreError> {
        let step = StoreError::step("making the container's directory");
        let name = CString::new(id.as_str()).expect("an id has no NUL");
        let lock = lock::acquire(self.root.as_fd(), c"lock").map_err(&step)?;
        match fs::mkdirat(&self.containers, &name, Mode::RWXU) {
            Err(Errno::EXIST) => return Err(StoreError::Exists(id.to_string())),
            Err(Errno::NOSPC | Errno::DQUOT) => return Err(StoreError::Full(self.path.clone())),
            result => result.map_err(&step)?,
        }
        let directory = fs::openat(&self.containers, &name, DIRECTORY, Mode::empty());
        let claim = Claim {
            path: self.path.join("containers").join(id.as_str()),
            name,
            directory: directory.map_err(&step)?,
            handed_over: false,
        };
        fs::flock(&claim.directory, FlockOperation::NonBlockingLockExclusive).map_err(&step)?;
        drop(lock);
        fs::symlinkat(state.as_os_str().as_bytes(), &claim.directory, STATE).map_err(&step)?;
        for part in [UPPER, WORK] {
            fs::mkdirat(&claim.directory, part, Mode::RWXU).map_err(&step)?;
        }
        Ok(claim)
    }

    /// Removes the directories of containers that nobody holds and that have no state: their
    /// maker was killed, or the host was started anew.
    pub(super) fn collect_containers(&self) -> Result<(), StoreError> {
        let step = StoreError::step("collecting containers");
        let _lock = lock::acquire(self.root.as_fd(), c"lock").map_err(&step)?;
        let mut orphans = Vec::new();
        for_each_entry(self.containers.as_fd(), |name, _| {
            if is_orphan(self.containers.as_fd(), name)? {
                orphans.push(name.to_owned());
            }
            Ok(())
        })
        .map_err(&step)?;
        for name in orphans {
            remove_tree(self.containers.as_fd(), &name).map_err(&step)?;
        }
        Ok(())
    }
}

fn is_orphan(containers: BorrowedFd, name: &CStr) -> rustix::io::Result<bool> {
    let directory = match fs::openat(containers, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(false),
        result => result?,
    };
    match fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(false),
        result => result?,
    }
    let state = match fs::readlinkat(&directory, STATE, Vec::new()) {
        Err(Errno::NOENT) => return Ok(true),
        result => result?,
    };
    match fs::lstat(state) {
        Ok(_) => Ok(false),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(true),
        Err(error) => Err(error),
    }
}
