//! Removing a sandbox's cgroup by its record, whoever made it and however far that came.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::systemd::{self, UnitRecord};
use super::{CgroupError, CgroupRecord};
use crate::vsock::until;

/// How long the last processes of a cgroup may take to be gone.
const EMPTY_LIMIT: Duration = Duration::from_secs(60);

/// Removes the directories that were made for the sandbox. With `kill`, processes that are left
/// in them are killed first; whoever asks for that is not one of them. A parent that others use
/// by now stays.
pub fn remove(record: &CgroupRecord, kill: bool) -> Result<(), CgroupError> {
    if let Some(unit) = &record.unit {
        return remove_unit(&record.path, unit, kill);
    }
    // Only what was missing is the sandbox's own; perhaps not the cgroup, but a parent of it.
    let (leaf, parents) = match record.missing.split_last() {
        Some((last, parents)) if *last == record.path => (Some(last), parents),
        _ => (None, &record.missing[..]),
    };
    if let Some(leaf) = leaf.filter(|leaf| leaf.exists()) {
        if kill {
            kill_all(leaf)?;
        }
        remove_tree(leaf).map_err(|e| CgroupError::Remove(leaf.clone(), e))?;
    }
    remove_parents(parents.iter().rev())
}

/// Lets systemd remove a scope, if it is the one that was recorded. It does that by itself when
/// the last process has ended; only a moment later than that ends.
fn remove_unit(path: &Path, unit: &UnitRecord, kill: bool) -> Result<(), CgroupError> {
    if !path.exists() {
        return Ok(());
    }
    if kill && systemd::is_current(unit)? {
        match kill_all(path) {
            Err(_) if !path.exists() => {}
            killed => killed?,
        }
    }
    match systemd::stop(unit)? {
        true => remove_tree(path).map_err(|e| CgroupError::Remove(path.to_owned(), e)),
        // Another one's by now.
        false => Ok(()),
    }
}

fn remove_parents<'a>(dirs: impl Iterator<Item = &'a PathBuf>) -> Result<(), CgroupError> {
    for dir in dirs {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // In use: another container's parent, too.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                return Ok(());
            }
            result => result.map_err(|e| CgroupError::Remove(dir.clone(), e))?,
        }
    }
    Ok(())
}

/// Kills what is in the cgroup and below, and waits until it is gone.
fn kill_all(dir: &Path) -> Result<(), CgroupError> {
    let failed = |e: io::Error| CgroupError::Remove(dir.to_owned(), e);
    let events = fs::File::open(dir.join("cgroup.events")).map_err(failed)?;
    if !populated(&events).map_err(failed)? {
        return Ok(());
    }
    fs::write(dir.join("cgroup.kill"), "1").map_err(failed)?;
    let deadline = Instant::now() + EMPTY_LIMIT;
    while populated(&events).map_err(failed)? {
        if Instant::now() >= deadline {
            return Err(CgroupError::Populated(dir.to_owned()));
        }
        // A change polls as urgent data.
        let mut fds = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
        match poll(&mut fds, Some(&until(deadline))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    Ok(())
}

fn populated(events: &fs::File) -> io::Result<bool> {
    let mut text = [0u8; 256];
    let count = rustix::io::pread(events, &mut text[..], 0)?;
    Ok(text[..count].split(|b| *b == b'\n').any(|line| line == b"populated 1"))
}

/// Removes a directory with the ones in it: files of a cgroup are the kernel's.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_were_made_go_and_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let dir = |path: &str| root.path().join(path);
        fs::create_dir_all(dir("old/a/b/child")).unwrap();
        let missing = vec![dir("old/a"), dir("old/a/b")];
        let record = CgroupRecord { path: dir("old/a/b"), missing, unit: None };
        remove(&record, false).unwrap();
        assert!(dir("old").is_dir() && !dir("old/a").exists());
        remove(&record, true).unwrap();
        fs::create_dir(dir("old/a")).unwrap();
        let not_ours = CgroupRecord { path: dir("old/a"), missing: vec![], unit: None };
        remove(&not_ours, true).unwrap();
        assert!(dir("old/a").is_dir());
    }

    #[test]
    fn cgroup_of_another_in_a_parent_that_was_made_stays() {
        let root = tempfile::tempdir().unwrap();
        let dir = |path: &str| root.path().join(path);
        fs::create_dir_all(dir("a/b")).unwrap();
        let record = CgroupRecord { path: dir("a/b"), missing: vec![dir("a")], unit: None };
        remove(&record, true).unwrap();
        assert!(dir("a/b").is_dir());
        fs::remove_dir(dir("a/b")).unwrap();
        remove(&record, true).unwrap();
        assert!(!dir("a").exists());
    }
}
