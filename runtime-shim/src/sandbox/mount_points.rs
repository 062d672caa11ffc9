//! Mount points that a read-only root file system lacks. runc makes them on the host before it
//! makes the root read-only; here the root is read-only on the host's side from the beginning,
//! so they are made before it is served.
//!
//! The tree is hostile (an image's links lead anywhere), but nothing changes it now: every
//! component is resolved with the tree as its root, so no link leads out of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

use super::SandboxError;

/// Makes the mount point `point` below `root` if it does not exist: a directory, or an empty
/// file if that is what will be mounted.
pub(super) fn make(root: impl AsFd, point: &Path, file: bool) -> Result<(), SandboxError> {
    make_path(root.as_fd(), point, file).map_err(|e| SandboxError::MountPoint(point.to_owned(), e))
}

fn make_path(root: impl AsFd, point: &Path, file: bool) -> io::Result<()> {
    if open_in(&root, point).is_ok() {
        return Ok(());
    }
    let mut parent = PathBuf::from("/");
    for component in point.iter().skip(1) {
        let child = parent.join(component);
        match open_in(&root, &child) {
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let dir = open_in(&root, &parent)?;
                make_entry(&dir, component, file && child == point)?;
            }
            Err(e) => return Err(e.into()),
        }
        parent = child;
    }
    Ok(())
}

fn make_entry(dir: &OwnedFd, name: &OsStr, file: bool) -> rustix::io::Result<()> {
    if !file {
        return mkdirat(dir, name, Mode::from_raw_mode(0o755));
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

pub(super) fn open_in(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn missing_mount_points_are_made_inside_the_root_only() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../../..", root.path().join("up")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let fd = fs::File::open(root.path()).unwrap();
        for point in ["/proc", "/a/b/c", "/file", "/up/d"] {
            make(&fd, Path::new(point), false).unwrap();
        }
        make(&fd, Path::new("/etc/hosts"), true).unwrap();
        assert!(root.path().join("etc/hosts").is_file());
        assert!(root.path().join("a/b/c").is_dir() && root.path().join("d").is_dir());
        assert!(root.path().join("file").is_file());
        // The link leads to a path that does not exist inside the root.
        assert!(make(&fd, Path::new("/out/x"), false).is_err());
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
    }
}
