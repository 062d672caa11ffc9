//! Copies a directory of a container's root: a volume of an image starts with what the image has
//! in its place.
//!
//! The tree is hostile, but nothing changes it now. It is walked by descriptors and plain names,
//! no link is followed and no device opened; how deep it may be is bounded. Its size was bounded
//! when it was unpacked.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::{self, Errno};
use rustix::process::{Gid, Uid};

use super::remove::for_each_entry;

/// Deepest directory that is copied: each level holds descriptors.
const DEPTH_MAX: usize = 128;
/// Largest list of attributes and largest value that Linux has.
const XATTR_MAX: usize = 64 << 10;
const LIST: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Copies all that `from` holds to `to`, an empty directory of the caller's alone, and then
/// `from`'s own owner, mode, attributes and times.
pub fn copy_directory(from: BorrowedFd, to: BorrowedFd) -> std::io::Result<()> {
    let mut copy = Copy { top: to, path: vec![], linked: BTreeMap::new() };
    copy.entries(from, to, DEPTH_MAX)?;
    let found = fs::fstat(from)?;
    copy_xattrs(from, to)?;
    set_open(to, &found)?;
    Ok(())
}

/// A copy at work.
struct Copy<'a> {
    top: BorrowedFd<'a>,
    /// Where it is, below `top`.
    path: Vec<u8>,
    /// Where the first name of a file with several was copied to, by device and inode.
    linked: BTreeMap<(u64, u64), CString>,
}

impl Copy<'_> {
    fn entries(&mut self, from: BorrowedFd, to: BorrowedFd, depth: usize) -> io::Result<()> {
        let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
        let len = self.path.len();
        for_each_entry(from, |name, _| {
            self.path.extend_from_slice(name.to_bytes());
            let copied = self.entry(from, to, name, depth);
            self.path.truncate(len);
            copied
        })
    }

    fn entry(
        &mut self,
        from: BorrowedFd,
        to: BorrowedFd,
        name: &CStr,
        depth: usize,
    ) -> io::Result<()> {
        let found = fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(found.st_mode);
        if kind == FileType::Directory {
            fs::mkdirat(to, name, Mode::RWXU)?;
            let from = fs::openat(from, name, LIST, Mode::empty())?;
            let to = fs::openat(to, name, LIST, Mode::empty())?;
            self.path.push(b'/');
            self.entries(from.as_fd(), to.as_fd(), depth)?;
            copy_xattrs(from.as_fd(), to.as_fd())?;
            return set_open(to.as_fd(), &found);
        }
        if found.st_nlink > 1 {
            let key = (found.st_dev, found.st_ino);
            if let Some(first) = self.linked.get(&key) {
                return fs::linkat(self.top, first, to, name, AtFlags::empty());
            }
            let path = CString::new(self.path.clone()).map_err(|_| Errno::INVAL)?;
            self.linked.insert(key, path);
        }
        match kind {
            FileType::RegularFile => copy_file(from, to, name, &found),
            FileType::Symlink => {
                let target = fs::readlinkat(from, name, vec![])?;
                fs::symlinkat(target, to, name)?;
                set_owner_and_times(to, name, &found)
            }
            kind => {
                fs::mknodat(to, name, kind, Mode::empty(), found.st_rdev)?;
                set_owner_and_times(to, name, &found)?;
                // Nothing but this process knows the name, and it is no link.
                fs::chmodat(to, name, mode(&found), AtFlags::empty())
            }
        }
    }
}

fn copy_file(from: BorrowedFd, to: BorrowedFd, name: &CStr, found: &Stat) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = fs::openat(from, name, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let to = fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    let (mut from, mut to) = (File::from(from), File::from(to));
    // The standard library lets the kernel copy, where it can.
    std::io::copy(&mut from, &mut to)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
    // The owner first: a change takes file capabilities away.
    fs::fchown(&to, Some(uid(found)), Some(gid(found)))?;
    copy_xattrs(from.as_fd(), to.as_fd())?;
    set_open(to.as_fd(), found)
}

/// Owner, mode and times, in this order: a change of owner clears bits of the mode.
fn set_open(to: BorrowedFd, found: &Stat) -> io::Result<()> {
    let now = fs::fstat(to)?;
    if (now.st_uid, now.st_gid) != (found.st_uid, found.st_gid) {
        fs::fchown(to, Some(uid(found)), Some(gid(found)))?;
    }
    fs::fchmod(to, mode(found))?;
    fs::futimens(to, &times(found))
}

fn set_owner_and_times(to: BorrowedFd, name: &CStr, found: &Stat) -> io::Result<()> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    fs::chownat(to, name, Some(uid(found)), Some(gid(found)), nofollow)?;
    fs::utimensat(to, name, &times(found), nofollow)
}

fn uid(found: &Stat) -> Uid {
    Uid::from_raw(found.st_uid)
}

fn gid(found: &Stat) -> Gid {
    Gid::from_raw(found.st_gid)
}

fn mode(found: &Stat) -> Mode {
    Mode::from_raw_mode(found.st_mode & 0o7777)
}

fn times(found: &Stat) -> Timestamps {
    let time = |tv_sec, nanoseconds: u64| Timespec { tv_sec, tv_nsec: nanoseconds as i64 };
    Timestamps {
        last_access: time(found.st_atime, found.st_atime_nsec),
        last_modification: time(found.st_mtime, found.st_mtime_nsec),
    }
}

/// Those that an image may set; overlayfs shows none of its own.
fn copy_xattrs(from: BorrowedFd, to: BorrowedFd) -> io::Result<()> {
    let mut list = vec![0_u8; XATTR_MAX];
    let len = match fs::flistxattr(from, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        listed => listed?,
    };
    for name in list[..len].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        let known = name.to_bytes().starts_with(b"user.")
            || name.to_bytes().starts_with(b"system.posix_acl_")
            || name == c"security.capability";
        if !known {
            continue;
        }
        let mut value = vec![0_u8; XATTR_MAX];
        let len = fs::fgetxattr(from, name, &mut value[..])?;
        fs::fsetxattr(to, name, &value[..len], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn directory_is_copied_with_links_modes_and_times() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |path: &str| from.path().join(path);
        std::fs::create_dir_all(at("d/e")).unwrap();
        std::fs::write(at("d/f"), "content").unwrap();
        std::fs::hard_link(at("d/f"), at("d/e/g")).unwrap();
        symlink("/outside", at("l")).unwrap();
        std::fs::set_permissions(at("d"), std::fs::Permissions::from_mode(0o1711)).unwrap();
        std::fs::set_permissions(from.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
        let open = |path| std::fs::File::open(path).unwrap();
        copy_directory(open(from.path()).as_fd(), open(to.path()).as_fd()).unwrap();
        let copied = |path: &str| to.path().join(path);
        assert_eq!(std::fs::read(copied("d/e/g")).unwrap(), b"content");
        assert_eq!(copied("d/f").metadata().unwrap().nlink(), 2);
        assert_eq!(std::fs::read_link(copied("l")).unwrap(), std::path::Path::new("/outside"));
        for path in ["", "d", "d/e", "d/f"] {
            let (old, new) = (at(path).metadata().unwrap(), copied(path).metadata().unwrap());
            assert_eq!((old.mode(), old.mtime()), (new.mode(), new.mtime()), "{path}");
        }
    }

    #[test]
    fn directory_that_is_too_deep_is_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(from.path().join("d/".repeat(DEPTH_MAX + 1))).unwrap();
        let open = |path| std::fs::File::open(path).unwrap();
        let refused = copy_directory(open(from.path()).as_fd(), open(to.path()).as_fd());
        assert_eq!(Errno::from_io_error(&refused.unwrap_err()), Some(Errno::LOOP));
    }
}
