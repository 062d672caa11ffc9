//! Sets a share apart from the host's tree: makes it a mount of its own.
//!
//! Input: descriptors of the runtime, each somewhere in a file system of the host. The file server
//! does it before it is confined; for one that is confined already, the runtime does.
//!
//! The attack: a guest that runs code of its own in the server. `..` of a descriptor leads to the
//! root of the mount that it was opened on, which is the host's file system, whatever the root
//! directory of the process is; and a device node made in a share can be opened. So a share is a
//! copy of its part of the mount, mounted nowhere, where `..` of the top is the top, devices do
//! not open, and, if no change is wanted, the kernel refuses every one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};
use thiserror::Error;

/// Why a share is not a mount of its own.
#[derive(Debug, Error)]
#[error("{step}")]
pub struct ApartError {
    /// What failed.
    pub step: &'static str,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// What `source`, a directory or file, is in a mount of its own: with the mounts that lie in it
/// now, no later ones, no devices and, if `read_only`, no changes. Needs `CAP_SYS_ADMIN` and the
/// mount namespace in which `source` was opened.
pub fn set_apart(source: OwnedFd, read_only: bool) -> Result<OwnedFd, ApartError> {
    let apart = copy(source)
        .map_err(|errno| ApartError { step: "copying its mounts", source: errno.into() })?;
    let step = "restricting its mounts (mount_setattr, which needs Linux 5.12)";
    restrict(&apart, read_only).map_err(|source| ApartError { step, source })?;
    Ok(apart)
}

fn copy(source: OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    match rustix::mount::open_tree(&source, c"", flags) {
        // Mounts of no namespace are not copied. An overlay of the runtime's is one, and so is a
        // mount that it has made for this sandbox alone in another way.
        Err(Errno::INVAL) if is_top(&source)? => Ok(source),
        copied => copied,
    }
}

/// Whether nothing lies above `source`: `..` of a directory leads to itself, as at the top of a
/// mount that is mounted nowhere; a file, which leads nowhere, is all of its mount.
pub fn is_top(source: &OwnedFd) -> Result<bool, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(source, c"", AtFlags::EMPTY_PATH, wanted)?;
    if FileType::from_raw_mode(found.stx_mode.into()) != FileType::Directory {
        return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    let above = rustix::fs::statx(source, c"..", AtFlags::empty(), wanted)?;
    let identity = |of: &Statx| (of.stx_dev_major, of.stx_dev_minor, of.stx_mnt_id, of.stx_ino);
    Ok(identity(&above) == identity(&found))
}

fn restrict(apart: &OwnedFd, read_only: bool) -> io::Result<()> {
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let wanted = libc::mount_attr {
        attr_set: attributes.bits().into(),
        attr_clr: 0,
        // A mount that the host makes later must not come in.
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty string, and `wanted` is a structure of the size told; both
    // live until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            apart.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustix::fs::{CWD, Mode, OFlags};
    use rustix::thread::UnshareFlags;

    use super::*;

    /// `path` set apart; `None` without the privilege.
    fn apart(path: &Path, read_only: bool) -> Option<OwnedFd> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root copies mounts");
            return None;
        }
        let source = rustix::fs::openat(CWD, path, OFlags::PATH, Mode::empty()).unwrap();
        Some(set_apart(source, read_only).unwrap())
    }

    fn open(directory: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(directory, path, flags | OFlags::CLOEXEC, Mode::empty())
    }

    #[test]
    fn path_upwards_from_a_share_set_apart_stays_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("outside"), "secret").unwrap();
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        let Some(share) = apart(&dir.path().join("tree"), false) else { return };
        assert!(is_top(&share).unwrap());
        assert_eq!(open(&share, "../outside", OFlags::RDONLY).unwrap_err(), Errno::NOENT);
        assert_eq!(open(&share, "../../../etc", OFlags::PATH).unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn device_node_in_a_share_set_apart_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let Some(share) = apart(dir.path(), false) else { return };
        let null = rustix::fs::makedev(1, 3);
        let (kind, mode) = (FileType::CharacterDevice, Mode::RUSR | Mode::WUSR);
        rustix::fs::mknodat(&share, "null", kind, mode, null).unwrap();
        assert_eq!(open(&share, "null", OFlags::RDWR).unwrap_err(), Errno::ACCESS);
    }

    #[test]
    fn change_in_a_read_only_share_set_apart_is_refused_by_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        let Some(share) = apart(dir.path(), true) else { return };
        assert_eq!(open(&share, "f", OFlags::WRONLY).unwrap_err(), Errno::ROFS);
        assert_eq!(rustix::fs::mkdirat(&share, "d", Mode::RWXU).unwrap_err(), Errno::ROFS);
        let Some(writable) = apart(dir.path(), false) else { return };
        assert!(open(&writable, "f", OFlags::WRONLY).is_ok());
    }

    #[test]
    fn single_file_is_set_apart_too() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let Some(share) = apart(file.path(), false) else { return };
        let mode = rustix::fs::fstat(&share).unwrap().st_mode;
        assert_eq!(FileType::from_raw_mode(mode), FileType::RegularFile);
    }

    /// As the runtime makes the overlay of a container's root: in a namespace that is gone.
    #[test]
    fn mount_of_no_namespace_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let Some(expected) = apart(dir.path(), false) else { return };
        let made = std::thread::scope(|scope| {
            let make = || {
                // SAFETY: the descriptor table stays shared; the thread does nothing else.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
                let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                rustix::mount::open_tree(CWD, dir.path(), clone).unwrap()
            };
            scope.spawn(make).join().unwrap()
        });
        let share = set_apart(made, true).unwrap();
        assert!(is_top(&share).unwrap());
        let number = |fd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(number(&share), number(&expected));
        assert_eq!(rustix::fs::mkdirat(&share, "d", Mode::RWXU).unwrap_err(), Errno::ROFS);
    }

    /// As the runtime makes a mount with other owners.
    #[test]
    fn single_file_of_no_namespace_is_taken_as_it_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let Some(expected) = apart(file.path(), false) else { return };
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let made = rustix::mount::open_tree(CWD, file.path(), clone).unwrap();
        let share = set_apart(made, true).unwrap();
        let number = |fd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(number(&share), number(&expected));
    }

    #[test]
    fn directory_of_another_namespace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        if apart(dir.path(), false).is_none() {
            return;
        }
        let source = std::thread::scope(|scope| {
            let open = || {
                // SAFETY: the descriptor table stays shared; the thread does nothing else.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
                rustix::fs::openat(CWD, dir.path(), OFlags::PATH, Mode::empty()).unwrap()
            };
            scope.spawn(open).join().unwrap()
        });
        let refused = set_apart(source, false).unwrap_err();
        assert_eq!(refused.step, "copying its mounts");
    }
}
