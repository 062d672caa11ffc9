//! Claiming, reading and listing containers.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::Process;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{Record, StateError, Status};

const RECORD: &str = "state.json";
const PROCESS: &str = "process.json";
/// Begins the name of a directory that is being made or removed. No id contains it.
const UNFINISHED: char = '~';

/// The directory of all containers.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) root: PathBuf,
}

/// A container's directory, locked by this process.
#[derive(Debug)]
pub struct ContainerDir {
    /// Whose it is.
    pub id: ContainerId,
    /// Where it will be, for messages.
    path: PathBuf,
    pub(super) dir: OwnedFd,
}

/// A container as seen from outside.
#[derive(Debug)]
pub struct View {
    /// What the supervisor has recorded.
    pub record: Record,
    pub(super) dir: OwnedFd,
    alive: bool,
}

impl Store {
    /// The store below `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes the container's directory, whole and locked, or fails because the id is taken.
    pub fn claim(&self, record: &Record, process: &Process) -> Result<ContainerDir, StateError> {
        let root = self.make_root()?;
        let id = record.id.clone();
        let unfinished = unfinished_name(&id);
        rustix::fs::mkdirat(&root, &unfinished, Mode::RWXU)
            .map_err(|e| StateError::Root(self.root.clone(), e.into()))?;
        let claimed = self.fill(&root, &unfinished, record, process);
        if claimed.is_err() {
            // Nobody else knows the name; the first error is the one to tell.
            drop(super::remove::remove_tree(&root, &unfinished));
        }
        claimed
    }

    fn fill(
        &self,
        root: &OwnedFd,
        unfinished: &str,
        record: &Record,
        process: &Process,
    ) -> Result<ContainerDir, StateError> {
        let id = record.id.clone();
        let dir = open_dir(root, unfinished).map_err(|e| StateError::Lock(id.clone(), e.into()))?;
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| StateError::Lock(id.clone(), e.into()))?;
        let path = self.root.join(id.as_str());
        let claimed = ContainerDir { id: id.clone(), path, dir };
        claimed.write_json(PROCESS, process)?;
        claimed.write_record(record)?;
        match rustix::fs::renameat_with(root, unfinished, root, id.as_str(), RenameFlags::NOREPLACE)
        {
            Ok(()) => Ok(claimed),
            Err(Errno::EXIST) => Err(StateError::Exists(id)),
            Err(e) => Err(StateError::Write(claimed.path, e.into())),
        }
    }

    /// The container `id`.
    pub fn view(&self, id: &ContainerId) -> Result<View, StateError> {
        let root = self.open_root().map_err(|error| match error {
            StateError::Root(..) => StateError::Absent(id.clone()),
            other => other,
        })?;
        let dir = open_dir(&root, id.as_str()).map_err(|_| StateError::Absent(id.clone()))?;
        View::read(id, dir)
    }

    /// Every container, by id, or why it cannot be read. One that is deleted meanwhile is left
    /// out.
    pub fn list(&self) -> Result<Vec<Result<View, StateError>>, StateError> {
        match self.open_root() {
            Err(StateError::Root(_, e)) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(vec![]);
            }
            opened => drop(opened?),
        }
        let entries = std::fs::read_dir(&self.root);
        let entries = entries.map_err(|e| StateError::Root(self.root.clone(), e))?;
        let mut ids: Vec<ContainerId> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok()?.parse().ok())
            .collect();
        ids.sort();
        let views = ids.iter().map(|id| self.view(id));
        Ok(views.filter(|view| !matches!(view, Err(StateError::Absent(_)))).collect())
    }

    fn make_root(&self) -> Result<OwnedFd, StateError> {
        std::fs::create_dir_all(&self.root).map_err(|e| StateError::Root(self.root.clone(), e))?;
        self.open_root()
    }

    /// Opens the directory, which nobody but root and the user of this process can write.
    pub(super) fn open_root(&self) -> Result<OwnedFd, StateError> {
        let failed = |e: Errno| StateError::Root(self.root.clone(), e.into());
        let root = open_dir(rustix::fs::CWD, &self.root).map_err(failed)?;
        let found = rustix::fs::fstat(&root).map_err(failed)?;
        let mode = Mode::from_raw_mode(found.st_mode);
        let own = [0, rustix::process::geteuid().as_raw()].contains(&found.st_uid);
        if own && !mode.intersects(Mode::WGRP | Mode::WOTH) {
            return Ok(root);
        }
        let path = self.root.clone();
        Err(StateError::Foreign { path, uid: found.st_uid, mode: mode.bits() })
    }
}

/// Opens a directory; never through a symbolic link in its last component.
pub(super) fn open_dir(at: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

/// Name of a directory of `id` that this process is making or removing: one that no other
/// thread or process uses, and short for the longest id.
pub(super) fn unfinished_name(id: &ContainerId) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{}{}.{count}", unfinished_prefix(id), std::process::id())
}

/// What all names of [`unfinished_name`] for `id` begin with.
pub(super) fn unfinished_prefix(id: &ContainerId) -> String {
    let digest = Sha256::digest(id.as_str());
    let short = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{UNFINISHED}{short}{UNFINISHED}")
}

impl ContainerDir {
    /// Records `record`, in one step.
    pub fn write_record(&self, record: &Record) -> Result<(), StateError> {
        self.write_json(RECORD, record)
    }

    /// A path of `file` that is short enough for a socket address, valid in this process.
    pub fn path(&self, file: &str) -> PathBuf {
        path_through(&self.dir, file)
    }

    /// Makes and opens a file for appending.
    pub fn create(&self, file: &'static str) -> Result<std::fs::File, StateError> {
        let flags = OFlags::CREATE | OFlags::APPEND | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, file, flags, Mode::RUSR | Mode::WUSR)
            .map(std::fs::File::from)
            .map_err(|e| self.write_failed(file, e.into()))
    }

    /// Lets `file` lead to `target`.
    pub fn link(&self, file: &'static str, target: &Path) -> Result<(), StateError> {
        rustix::fs::symlinkat(target, &self.dir, file)
            .map_err(|e| self.write_failed(file, e.into()))
    }

    fn write_json(&self, file: &'static str, value: &impl Serialize) -> Result<(), StateError> {
        write_json(&self.dir, file, value).map_err(|e| self.write_failed(file, e))
    }

    fn write_failed(&self, file: &str, source: io::Error) -> StateError {
        StateError::Write(self.path.join(file), source)
    }
}

impl AsFd for ContainerDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Records `record` in the container's directory behind `dir`, whatever its name is by now.
pub(super) fn write_record(dir: &OwnedFd, record: &Record) -> io::Result<()> {
    write_json(dir, RECORD, record)
}

fn write_json(dir: &OwnedFd, file: &str, value: &impl Serialize) -> io::Result<()> {
    let unfinished = format!("{file}.new");
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, &unfinished, flags, Mode::RUSR | Mode::WUSR)?;
    std::fs::File::from(fd).write_all(&serde_json::to_vec(value)?)?;
    rustix::fs::renameat(dir, &unfinished, dir, file)?;
    Ok(())
}

/// The record of container `id` in the directory behind `dir`.
pub(super) fn read_record(id: &ContainerId, dir: &OwnedFd) -> Result<Record, StateError> {
    read_json(id, dir, RECORD)
}

/// `file` in the directory behind `dir`: socket addresses hold 107 bytes, ids more.
fn path_through(dir: &OwnedFd, file: &str) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(file)
}

impl View {
    fn read(id: &ContainerId, dir: OwnedFd) -> Result<Self, StateError> {
        // Looked at before the record: a supervisor that dies in between leaves a record that
        // is as good as it will ever be.
        let alive = is_locked(&dir).map_err(|e| StateError::Lock(id.clone(), e))?;
        let record = read_record(id, &dir)?;
        Ok(Self { record, dir, alive })
    }

    /// The record again, for what changed since.
    pub(super) fn reread(&mut self) -> Result<(), StateError> {
        self.record = read_record(&self.record.id, &self.dir)?;
        Ok(())
    }

    /// State of the container: what is recorded, or stopped if the supervisor is gone.
    pub fn status(&self) -> Status {
        if self.alive { self.record.status } else { Status::Stopped }
    }

    /// The process that the container was created with.
    pub fn process(&self) -> Result<Process, StateError> {
        read_json(&self.record.id, &self.dir, PROCESS)
    }

    /// A path of `file` that is short enough for a socket address, valid in this process for as
    /// long as this view.
    pub fn path(&self, file: &str) -> PathBuf {
        path_through(&self.dir, file)
    }

    /// Whether the directory still exists under the container's name.
    pub(super) fn is_current(&self, root: &OwnedFd) -> bool {
        let by_name = rustix::fs::statat(root, self.record.id.as_str(), AtFlags::SYMLINK_NOFOLLOW);
        match (by_name, rustix::fs::fstat(&self.dir)) {
            (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
            _ => false,
        }
    }
}

/// Whether some process holds the lock of `dir`. The probe's own shared lock goes at once.
fn is_locked(dir: &OwnedFd) -> io::Result<bool> {
    match rustix::fs::flock(dir, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            rustix::fs::flock(dir, FlockOperation::Unlock)?;
            Ok(false)
        }
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

fn read_json<T: DeserializeOwned>(
    id: &ContainerId,
    dir: &OwnedFd,
    file: &'static str,
) -> Result<T, StateError> {
    let read = || -> io::Result<T> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, file, flags, Mode::empty())?;
        let mut bytes = Vec::new();
        std::fs::File::from(fd).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    read().map_err(|source| match source.kind() {
        // Deleted while it was looked at.
        io::ErrorKind::NotFound => StateError::Absent(id.clone()),
        _ => StateError::Read { id: id.clone(), file, source },
    })
}
