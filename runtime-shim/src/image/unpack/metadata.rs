//! Owner, mode, times and extended attributes of what was unpacked.
//!
//! Order matters: a change of owner clears set-id bits and capabilities, so owner comes first,
//! then mode, then attributes, then times. Which attributes an image may set is a list; overlayfs
//! keeps its own state in `trusted.overlay.*`, and an image that brings such an attribute wants
//! to redirect a lookup: it is refused, not cleaned.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{self, AtFlags, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::{self, Errno};
use rustix::process::{Gid, Uid};

use super::tree::Place;
use crate::image::tar::{Kind, Member, Time};

/// What becomes of an extended attribute of a member.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is set.
    Keep,
    /// It means nothing on this host (labels of another security module) and is left out.
    Drop,
    /// It is an attack.
    Refuse,
}

/// Judges the attribute `name` of a member of kind `kind`.
pub fn judge(name: &[u8], kind: Kind) -> Verdict {
    let plain = matches!(kind, Kind::Regular | Kind::Directory);
    match name {
        b"security.capability" if kind == Kind::Regular => Verdict::Keep,
        b"system.posix_acl_access" if kind != Kind::Symlink => Verdict::Keep,
        b"system.posix_acl_default" if kind == Kind::Directory => Verdict::Keep,
        // The kernel refuses these on links and nodes (xattr(7)).
        _ if name.starts_with(b"user.") && plain => Verdict::Keep,
        _ if name.starts_with(b"trusted.") => Verdict::Refuse,
        _ => Verdict::Drop,
    }
}

/// Sets owner, mode and attributes of an open file or directory.
pub fn apply(file: BorrowedFd, member: &Member) -> io::Result<()> {
    let (uid, gid) = owner(member);
    fs::fchown(file, Some(uid), Some(gid))?;
    fs::fchmod(file, Mode::from_raw_mode(member.mode))?;
    each_xattr(member, |name, value| fs::fsetxattr(file, name, value, XattrFlags::empty()))
}

/// Sets everything for a link or node, which is not opened.
pub fn apply_at(place: &Place, member: &Member) -> io::Result<()> {
    let (uid, gid) = owner(member);
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    fs::chownat(&*place.parent, &place.name, Some(uid), Some(gid), nofollow)?;
    if member.kind != Kind::Symlink {
        // No call changes the mode of a node without opening it; the magic link of a
        // descriptor that only names it does.
        let node = place.open_path()?;
        let path = format!("/proc/self/fd/{}", node.as_raw_fd());
        fs::chmod(&path, Mode::from_raw_mode(member.mode))?;
        each_xattr(member, |name, value| fs::setxattr(&path, name, value, XattrFlags::empty()))?;
    }
    fs::utimensat(&*place.parent, &place.name, &times(member.mtime), nofollow)
}

/// Sets the time of last modification of an open file or directory.
pub fn set_mtime(file: BorrowedFd, mtime: Time) -> io::Result<()> {
    fs::futimens(file.as_fd(), &times(mtime))
}

fn each_xattr(
    member: &Member,
    mut set: impl FnMut(&CString, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    for (name, value) in &member.xattrs {
        if judge(name, member.kind) != Verdict::Keep {
            continue;
        }
        let name = CString::new(name.as_slice()).map_err(|_| Errno::INVAL)?;
        match set(&name, value) {
            // Not every file system has `user.*` (tmpfs before Linux 6.6) or ACLs. Capabilities
            // are not left out: a program without them would fail later and elsewhere.
            Err(Errno::OPNOTSUPP) if !name.as_bytes().starts_with(b"security.") => {}
            result => result?,
        }
    }
    Ok(())
}

fn owner(member: &Member) -> (Uid, Gid) {
    (Uid::from_raw(member.uid), Gid::from_raw(member.gid))
}

fn times(mtime: Time) -> Timestamps {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
