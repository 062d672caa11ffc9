//! Attributes: times, extended attributes, inode flags, figures of the file system.

use std::fs::{self, File, FileTimes};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, StatxFlags, Timespec, Timestamps, XattrFlags, utimensat};
use rustix::io::Errno;

use super::{Case, file, help, refused, same};

pub const CASES: &[Case] = &[
    ("times", times),
    ("times_before_1970", times_before_1970),
    ("time_of_birth", time_of_birth),
    ("times_follow_changes", times_follow_changes),
    ("user_attributes", user_attributes),
    ("large_attribute", large_attribute),
    ("trusted_attributes", trusted_attributes),
    ("file_capabilities", file_capabilities),
    ("inode_flags", inode_flags),
    ("figures_of_the_file_system", figures_of_the_file_system),
];

fn times(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    let wanted = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000, 123_456_789);
    let later = wanted + Duration::from_secs(5);
    let open = File::options().write(true).open(&path)?;
    open.set_times(FileTimes::new().set_accessed(later).set_modified(wanted))?;
    let found = path.metadata()?;
    same((found.modified()?, found.accessed()?), (wanted, later), "both times")?;
    open.set_times(FileTimes::new().set_modified(later))?;
    same(path.metadata()?.accessed()?, later, "the one that was left out")
}

fn times_before_1970(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    let early = Timespec { tv_sec: -1_000_000, tv_nsec: 5 };
    let times = Timestamps { last_access: early, last_modification: early };
    utimensat(CWD, &path, &times, AtFlags::empty())?;
    let found = path.metadata()?;
    same((found.mtime(), found.mtime_nsec()), (-1_000_000, 5), "modification")
}

fn time_of_birth(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    let found = rustix::fs::statx(CWD, &path, AtFlags::empty(), StatxFlags::BTIME)?;
    ensure!(found.stx_mask & StatxFlags::BTIME.bits() != 0, "no time of birth");
    let modified = path.metadata()?.mtime();
    same(found.stx_btime.tv_sec.abs_diff(modified) < 5, true, "birth near modification")
}

fn times_follow_changes(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    let set = || File::options().write(true).open(&path)?.set_modified(old);
    set()?;
    ensure!(path.metadata()?.ctime() > 1_000_000, "ctime is not the clock's");
    fs::write(&path, "new")?;
    ensure!(path.metadata()?.modified()? > old, "mtime after a write");
    set()?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    same(path.metadata()?.modified()?, old, "mtime after chmod")?;
    File::options().write(true).open(&path)?.set_len(0)?;
    ensure!(path.metadata()?.modified()? > old, "mtime after truncation");
    File::open(dir)?.set_modified(old)?;
    file(dir, "another", b"")?;
    ensure!(dir.metadata()?.modified()? > old, "mtime of a directory that got a name");
    Ok(())
}

/// Names of the extended attributes.
pub fn names_of(path: &Path) -> Result<Vec<String>> {
    let mut list = vec![0_u8; 4096];
    let length = rustix::fs::listxattr(path, &mut list[..])?;
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

/// Value of one.
pub fn get(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0_u8; 8192];
    let length = rustix::fs::getxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

/// Sets one, which may be there.
pub fn set(path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty())
}

fn user_attributes(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    set(&path, "user.one", b"1")?;
    rustix::fs::setxattr(&path, "user.two", b"", XattrFlags::CREATE)?;
    let mut names = names_of(&path)?;
    names.sort();
    same(names, vec!["user.one".to_owned(), "user.two".to_owned()], "names")?;
    let again = rustix::fs::setxattr(&path, "user.one", b"2", XattrFlags::CREATE);
    refused(again, Errno::EXIST, "CREATE")?;
    rustix::fs::setxattr(&path, "user.one", b"3", XattrFlags::REPLACE)?;
    same(get(&path, "user.one")?, b"3".to_vec(), "value")?;
    same(rustix::fs::getxattr_query(&path, "user.one")?, 1, "its size")?;
    rustix::fs::removexattr(&path, "user.one")?;
    refused(get(&path, "user.one"), Errno::NODATA, "one that was removed")?;
    set(dir, "user.of.a.directory", b"x")?;
    same(get(dir, "user.of.a.directory")?, b"x".to_vec(), "a directory's")
}

fn large_attribute(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    let value: Vec<u8> = (0..3_000_u32).map(|i| i as u8).collect();
    set(&path, "user.large", &value)?;
    same(get(&path, "user.large")?, value, "value")?;
    let small = rustix::fs::getxattr(&path, "user.large", &mut [0_u8; 10][..]);
    refused(small, Errno::RANGE, "a buffer that is too small")
}

fn trusted_attributes(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    set(&path, "trusted.one", b"1")?;
    same(get(&path, "trusted.one")?, b"1".to_vec(), "value")
}

fn file_capabilities(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    // VFS_CAP_REVISION_2 with CAP_CHOWN permitted (linux/capability.h).
    let value: Vec<u8> =
        [0x0200_0000_u32, 1, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
    set(&path, "security.capability", &value)?;
    same(get(&path, "security.capability")?, value, "value")?;
    fs::write(&path, "changed")?;
    refused(get(&path, "security.capability"), Errno::NODATA, "after a write")
}

/// `chattr` and `lsattr`.
fn inode_flags(dir: &Path) -> Result<()> {
    let open = File::open(file(dir, "file", b"")?)?;
    let flags = rustix::fs::ioctl_getflags(&open).context("reading")?;
    rustix::fs::ioctl_setflags(&open, flags | rustix::fs::IFlags::NOATIME).context("setting")?;
    let found = rustix::fs::ioctl_getflags(&open)?;
    ensure!(found.contains(rustix::fs::IFlags::NOATIME), "not set");
    Ok(())
}

fn figures_of_the_file_system(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    let before = rustix::fs::statvfs(dir)?;
    ensure!(before.f_blocks > 0 && before.f_bavail > 0 && before.f_files > 0, "no figures");
    same(before.f_namemax, 255, "longest name")?;
    let open = File::options().write(true).open(&path)?;
    rustix::fs::fallocate(&open, rustix::fs::FallocateFlags::empty(), 0, 8 << 20)?;
    let after = rustix::fs::statvfs(format!("/proc/self/fd/{}", open.as_raw_fd()))?;
    // What was removed before is given back a moment later, when the guest has let go of it.
    let blocks = before.f_bfree.cast_signed() - after.f_bfree.cast_signed();
    let used = blocks * after.f_frsize.cast_signed();
    ensure!((7 << 20..12 << 20).contains(&used), "8 MiB were {used} bytes less");
    help("read", &path)
}
