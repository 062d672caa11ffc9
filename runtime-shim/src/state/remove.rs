//! Ending a container and removing all it left, whatever was killed at whatever moment.
//!
//! The order matters. The supervisor is killed first; its children die with it. Then the
//! directory's lock is taken: a child that was forked and has not yet become another program
//! holds a copy of it, and every other child has been recorded before, so once the lock is ours
//! the record names all that can be left. Only then files are removed, the directory by one
//! rename, so that a removal which is killed itself leaves nothing that looks like a container.
//! The poststop hooks run between that rename and the removal, each crossed off in the record
//! before it runs: whoever continues a removal that was killed runs those that are left.

use std::io;
use std::os::fd::OwnedFd;

use bulkhead_protocol::id::ContainerId;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::store::{open_dir, read_record, unfinished_name, unfinished_prefix, write_record};
use super::{CONTROL_SOCKET, ContainerDir, Record, StateError, Status, Store, View};
use crate::cgroup;
use crate::control::{self, ControlRequest};
use crate::hooks::{Runner, run_poststop};
use crate::image::remove::remove_path;
use crate::network::clean_up;
use crate::uplink;

/// Deletes the container `id`. A running one is killed only with `force`; with it, a container
/// that does not exist is a success.
pub fn delete(store: &Store, id: &ContainerId, force: bool) -> Result<(), StateError> {
    match store.view(id) {
        Ok(view) => end(store, view, force)?,
        Err(StateError::Absent(_)) if force => {}
        Err(error @ StateError::Read { .. }) if force => remove_unreadable(store, id, error)?,
        Err(e) => return Err(e),
    }
    if force {
        sweep(store, id)?;
    }
    Ok(())
}

fn end(store: &Store, mut view: View, force: bool) -> Result<(), StateError> {
    let id = view.record.id.clone();
    match view.status() {
        Status::Stopped => {}
        // As runc does: what was never started may go without force.
        Status::Created => {}
        _ if force => {}
        status => return Err(StateError::NotStopped { id, status }),
    }
    let supervisor = view.record.supervisor;
    if view.status() != Status::Stopped {
        supervisor.kill().map_err(|e| StateError::Kill(id.clone(), supervisor.pid, e))?;
    }
    lock(&id, &view.dir)?;
    if let Some(sandbox) = &view.record.sandbox {
        release(store, &id, sandbox)?;
    }
    match view.reread() {
        Ok(()) => {}
        // The supervisor, or another delete, has removed it meanwhile.
        Err(StateError::Absent(_)) => return Ok(()),
        Err(e) => return Err(e),
    }
    if let Some(namespace) = &view.record.network {
        clean_up(namespace, supervisor).map_err(|e| StateError::Network(id.clone(), e))?;
    }
    for child in &view.record.children {
        child.kill().map_err(|e| StateError::Kill(id.clone(), child.pid, e))?;
    }
    if view.record.uplink.is_some() {
        uplink::collect().map_err(|e| StateError::Uplink(id.clone(), e))?;
    }
    let root = store.open_root()?;
    if !view.is_current(&root) {
        return Ok(());
    }
    remove_cgroup(&view.record, true)?;
    remove_scratch(&view.record)?;
    retire(&root, &view.dir, &view.record, None)
}

/// Waits until the sandbox of `id`, whose supervisor has ended, has let go of what it held for it.
fn release(store: &Store, id: &ContainerId, sandbox: &ContainerId) -> Result<(), StateError> {
    let view = match store.view(sandbox) {
        Ok(view) => view,
        Err(StateError::Absent(_)) => return Ok(()),
        Err(e) => return Err(e),
    };
    match control::ask(&view.path(CONTROL_SOCKET), &ControlRequest::Release { id: id.clone() }) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(failure)) => Err(StateError::Release(id.clone(), failure.to_string())),
        // The sandbox has ended, and everything in it.
        Err(e) if e.is_end() => Ok(()),
        Err(e) => Err(StateError::Release(id.clone(), crate::failure::chain(&e))),
    }
}

/// Removes a container whose record cannot be read, unless it lives: then `error` stands.
fn remove_unreadable(store: &Store, id: &ContainerId, error: StateError) -> Result<(), StateError> {
    let root = store.open_root()?;
    let Ok(dir) = open_dir(&root, id.as_str()) else {
        return Err(error);
    };
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => remove_dir(&root, id),
        Err(_) => Err(error),
    }
}

impl ContainerDir {
    /// Removes the container's directory and its scratch directory, at the end of a supervisor,
    /// and runs its poststop hooks by `runner`. The lock stays with `self`.
    pub fn remove(
        &self,
        store: &Store,
        record: &Record,
        runner: Option<&Runner>,
    ) -> Result<(), StateError> {
        let root = store.open_root()?;
        // Its processes have ended, and the caller itself has left it.
        remove_cgroup(record, false)?;
        remove_scratch(record)?;
        retire(&root, &self.dir, record, runner)
    }
}

/// Takes a container whose directory is locked out of the list, runs its poststop hooks, and
/// removes its directory.
fn retire(
    root: &OwnedFd,
    dir: &OwnedFd,
    record: &Record,
    runner: Option<&Runner>,
) -> Result<(), StateError> {
    if record.poststop.is_empty() {
        return remove_dir(root, &record.id);
    }
    let failed = |e: io::Error| StateError::Remove(record.id.clone(), e);
    // Tells a removal that was killed from a creation that was: only this one owes hooks.
    let stopped = Record { status: Status::Stopped, ..record.clone() };
    write_record(dir, &stopped).map_err(failed)?;
    let unfinished = unfinished_name(&record.id);
    match rustix::fs::renameat(root, record.id.as_str(), root, &unfinished) {
        Ok(()) => finish(root, &unfinished, dir, &stopped, runner),
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(failed(e.into())),
    }
}

/// Runs what is left of the poststop hooks of a container whose directory is `unfinished`, and
/// removes it.
fn finish(
    root: &OwnedFd,
    unfinished: &str,
    dir: &OwnedFd,
    record: &Record,
    runner: Option<&Runner>,
) -> Result<(), StateError> {
    let failed = |e: io::Error| StateError::Remove(record.id.clone(), e);
    run_poststop(runner, &record.poststop, &record.for_hooks(None), |left| {
        write_record(dir, &Record { poststop: left.to_vec(), ..record.clone() })
    })
    .map_err(failed)?;
    remove_tree(root, unfinished).map_err(failed)
}

fn remove_cgroup(record: &Record, kill: bool) -> Result<(), StateError> {
    match &record.cgroup {
        Some(made) => {
            cgroup::remove(made, kill).map_err(|e| StateError::Cgroup(record.id.clone(), e))
        }
        None => Ok(()),
    }
}

fn remove_scratch(record: &Record) -> Result<(), StateError> {
    let Some(scratch) = &record.scratch else {
        return Ok(());
    };
    // The guest has written there: directories may be nested deeper than a recursion can go.
    remove_path(scratch).map_err(|e| StateError::Remove(record.id.clone(), e))
}

fn lock(id: &ContainerId, dir: &OwnedFd) -> Result<(), StateError> {
    loop {
        match rustix::fs::flock(dir, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(StateError::Lock(id.clone(), e.into())),
        }
    }
}

fn remove_dir(root: &OwnedFd, id: &ContainerId) -> Result<(), StateError> {
    let unfinished = unfinished_name(id);
    let failed = |e: io::Error| StateError::Remove(id.clone(), e);
    match rustix::fs::renameat(root, id.as_str(), root, &unfinished) {
        Ok(()) => remove_tree(root, &unfinished).map_err(failed),
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(failed(e.into())),
    }
}

/// Removes what creations and removals of `id` have left that were killed half-way.
fn sweep(store: &Store, id: &ContainerId) -> Result<(), StateError> {
    let Ok(root) = store.open_root() else {
        return Ok(());
    };
    let failed = |e: io::Error| StateError::Remove(id.clone(), e);
    let prefix = unfinished_prefix(id);
    for entry in std::fs::read_dir(&store.root).map_err(failed)?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(&prefix)) else {
            continue;
        };
        let Ok(dir) = open_dir(&root, name) else {
            continue;
        };
        // A lock that is held belongs to a creation that is still under way.
        if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        match read_record(id, &dir) {
            Ok(record) if record.status == Status::Stopped => {
                finish(&root, name, &dir, &record, None)?;
            }
            _ => remove_tree(&root, name).map_err(failed)?,
        }
    }
    Ok(())
}

/// Removes the directory `name` with its files; there are no directories in it.
pub(super) fn remove_tree(root: &OwnedFd, name: &str) -> io::Result<()> {
    let dir = match open_dir(root, name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let file = entry.file_name();
        if file == c"." || file == c".." {
            continue;
        }
        match rustix::fs::unlinkat(&dir, file, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    match rustix::fs::unlinkat(root, name, rustix::fs::AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
