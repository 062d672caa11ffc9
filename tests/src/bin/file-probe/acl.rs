//! Access control lists of POSIX.1e (acl(5)).

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, removexattr};
use rustix::io::Errno;

use super::attributes::{get, names_of, set};
use super::owners::{as_user, mode, set_mode};
use super::{Case, file, refused, same};

pub const CASES: &[Case] = &[
    ("access_acl_is_kept", access_acl_is_kept),
    ("access_acl_is_checked_as_it_is_set", access_acl_is_checked_as_it_is_set),
    ("access_acl_is_enforced", access_acl_is_enforced),
    ("access_acl_of_a_directory", access_acl_of_a_directory),
    ("access_acl_of_a_group", access_acl_of_a_group),
    ("access_acl_that_takes_from_a_group", access_acl_that_takes_from_a_group),
    ("access_acl_and_chmod", access_acl_and_chmod),
    ("access_acl_and_set_group_id", access_acl_and_set_group_id),
    ("access_acl_that_says_no_more_than_a_mode", access_acl_that_says_no_more_than_a_mode),
    ("default_acl_is_kept", default_acl_is_kept),
    ("default_acl_is_inherited", default_acl_is_inherited),
    ("default_acl_in_place_of_the_umask", default_acl_in_place_of_the_umask),
    ("default_acl_of_every_kind_of_file", default_acl_of_every_kind_of_file),
];

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// Of an entry for the owner, the group, the mask or others.
const NOBODY: u32 = u32::MAX;

/// An entry: whose it is, permissions, id.
type Entry = (u16, u16, u32);

const fn owner(permissions: u16) -> Entry {
    (0x01, permissions, NOBODY)
}

const fn user(id: u32, permissions: u16) -> Entry {
    (0x02, permissions, id)
}

const fn group(permissions: u16) -> Entry {
    (0x04, permissions, NOBODY)
}

const fn named_group(id: u32, permissions: u16) -> Entry {
    (0x08, permissions, id)
}

const fn mask(permissions: u16) -> Entry {
    (0x10, permissions, NOBODY)
}

const fn others(permissions: u16) -> Entry {
    (0x20, permissions, NOBODY)
}

/// The binary form (linux/posix_acl_xattr.h), for which entries must be in the order of acl(5).
fn list(entries: &[Entry]) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (whose, permissions, id) in entries {
        list.extend(whose.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

/// User 1001 may read besides the owner.
fn readable() -> Vec<u8> {
    list(&[owner(6), user(1001, 4), group(0), mask(4), others(0)])
}

/// What the second process does: lets user 1001 read.
pub fn share(path: &Path) -> Result<()> {
    set(path, ACCESS, &readable()).context("setting")
}

fn access_acl_is_kept(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    refused(get(&path, ACCESS), Errno::NODATA, "one that was never set")?;
    share(&path)?;
    same(get(&path, ACCESS).context("reading")?, readable(), "value")?;
    same(names_of(&path)?, vec![ACCESS.to_owned()], "names")?;
    same(mode(&path)?, 0o640, "the mode that the mask makes")?;
    removexattr(&path, ACCESS).context("removing")?;
    refused(get(&path, ACCESS), Errno::NODATA, "one that was removed")?;
    same(names_of(&path)?, vec![], "names without it")?;
    same(as_user(1001, "read", &path)?, false, "read without it")
}

fn access_acl_is_checked_as_it_is_set(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    let no_mask = list(&[owner(6), user(1001, 4), group(0), others(0)]);
    refused(set(&path, ACCESS, &no_mask), Errno::INVAL, "without a mask")?;
    refused(set(&path, ACCESS, &readable()[..7]), Errno::INVAL, "half an entry")?;
    refused(set(&path, DEFAULT, &readable()), Errno::ACCESS, "a file's default")?;
    same(as_user(1001, "share", &path)?, false, "set by another than the owner")?;
    chown(&path, Some(1002), None)?;
    same(as_user(1002, "share", &path)?, true, "set by the owner")?;
    same(as_user(1001, "read", &path)?, true, "read after that")
}

fn access_acl_is_enforced(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    share(&path)?;
    same(as_user(1001, "read", &path)?, true, "the user of the list may read")?;
    same(as_user(1002, "read", &path)?, false, "another may")?;
    same(as_user(1001, "append", &path)?, false, "the user of the list may write")?;
    // Less than the mode gives to others.
    let but_one = list(&[owner(6), user(1001, 0), group(4), mask(4), others(4)]);
    set(&path, ACCESS, &but_one).context("setting")?;
    same(as_user(1001, "read", &path)?, false, "the user that is left out may read")?;
    same(as_user(1002, "read", &path)?, true, "another may")
}

fn access_acl_of_a_directory(dir: &Path) -> Result<()> {
    let inside = dir.join("d");
    fs::create_dir(&inside)?;
    let entries = [owner(7), user(1001, 7), user(1002, 1), group(0), mask(7), others(0)];
    set(&inside, ACCESS, &list(&entries)).context("setting")?;
    same(as_user(1001, "append", &inside.join("made"))?, true, "a file made by the first")?;
    same(as_user(1002, "append", &inside.join("other"))?, false, "by the second")?;
    set_mode(&inside.join("made"), 0o644)?;
    same(as_user(1002, "read", &inside.join("made"))?, true, "reached by the second")?;
    same(as_user(1002, "unlink", &inside.join("made"))?, false, "removed by the second")?;
    same(as_user(1003, "read", &inside.join("made"))?, false, "reached by a third")?;
    same(as_user(1001, "unlink", &inside.join("made"))?, true, "removed by the first")
}

fn access_acl_of_a_group(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    let entries = [owner(6), group(0), named_group(1001, 4), mask(6), others(0)];
    set(&path, ACCESS, &list(&entries)).context("setting")?;
    same(as_user(1001, "read", &path)?, true, "read by who is in the group")?;
    same(as_user(1001, "append", &path)?, false, "written by who is in the group")?;
    same(as_user(1002, "read", &path)?, false, "read by another")
}

/// The mode shows the mask where it has the group's permissions: they are more than the group has.
fn access_acl_that_takes_from_a_group(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    chown(&path, None, Some(1001))?;
    let entries = [owner(6), user(1002, 6), group(0), mask(6), others(0)];
    set(&path, ACCESS, &list(&entries)).context("setting")?;
    same(mode(&path)?, 0o660, "mode")?;
    same(as_user(1001, "read", &path)?, false, "read by the owning group")?;
    same(as_user(1002, "append", &path)?, true, "written by the user of the list")
}

fn access_acl_and_chmod(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    share(&path)?;
    set_mode(&path, 0o600)?;
    let masked = list(&[owner(6), user(1001, 4), group(0), mask(0), others(0)]);
    same(get(&path, ACCESS)?, masked, "the list after chmod")?;
    same(as_user(1001, "read", &path)?, false, "read without a bit of the mask")?;
    set_mode(&path, 0o664)?;
    let open = list(&[owner(6), user(1001, 4), group(0), mask(6), others(4)]);
    same(get(&path, ACCESS)?, open, "the list after another chmod")?;
    same(as_user(1001, "read", &path)?, true, "read with the mask's bits back")?;
    same(as_user(1001, "append", &path)?, false, "written with them")
}

fn access_acl_and_set_group_id(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    for (gid, kept) in [(1001, 0o2000), (1002, 0)] {
        chown(&path, Some(1001), Some(gid))?;
        set_mode(&path, 0o2750)?;
        same(as_user(1001, "share", &path)?, true, "set by the owner")?;
        same(mode(&path)?, 0o640 | kept, &format!("the mode, in a file of group {gid}"))?;
    }
    Ok(())
}

fn access_acl_that_says_no_more_than_a_mode(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    set(&path, ACCESS, &list(&[owner(7), group(5), others(1)])).context("setting")?;
    same(mode(&path)?, 0o751, "mode")?;
    refused(get(&path, ACCESS), Errno::NODATA, "the list itself")
}

fn default_acl_is_kept(dir: &Path) -> Result<()> {
    refused(get(dir, DEFAULT), Errno::NODATA, "one that was never set")?;
    set(dir, DEFAULT, &readable()).context("setting")?;
    same(get(dir, DEFAULT).context("reading")?, readable(), "value")?;
    refused(get(dir, ACCESS), Errno::NODATA, "the directory's own")?;
    removexattr(dir, DEFAULT).context("removing")?;
    refused(get(dir, DEFAULT), Errno::NODATA, "one that was removed")?;
    refused(get(&file(dir, "file", b"")?, ACCESS), Errno::NODATA, "a file made after that")
}

fn default_acl_is_inherited(dir: &Path) -> Result<()> {
    let default = list(&[owner(7), user(1001, 5), group(0), mask(5), others(0)]);
    set(dir, DEFAULT, &default).context("setting")?;
    let path = file(dir, "file", b"content")?;
    // What the program asks for, 0666, bounds what it gets.
    let inherited = list(&[owner(6), user(1001, 5), group(0), mask(4), others(0)]);
    same(get(&path, ACCESS).context("the new file's")?, inherited, "the new file's")?;
    same(as_user(1001, "read", &path)?, true, "the user of the list may read")?;
    same(as_user(1002, "read", &path)?, false, "another may")?;
    let below = dir.join("d");
    fs::create_dir(&below)?;
    same(get(&below, DEFAULT)?, default.clone(), "a new directory's default")?;
    same(get(&below, ACCESS)?, default, "a new directory's own")?;
    same(as_user(1001, "read", &file(&below, "f", b"")?)?, true, "read two levels down")
}

/// The umask of the process counts where there is no default list, and only there.
fn default_acl_in_place_of_the_umask(dir: &Path) -> Result<()> {
    rustix::process::umask(Mode::from_raw_mode(0o077));
    same(mode(&file(dir, "before", b"")?)?, 0o600, "a file without a list")?;
    fs::create_dir(dir.join("d"))?;
    same(mode(&dir.join("d"))?, 0o700, "a directory without a list")?;
    set(dir, DEFAULT, &readable()).context("setting")?;
    same(mode(&file(dir, "after", b"")?)?, 0o640, "a file with one")?;
    fs::create_dir(dir.join("e"))?;
    same(mode(&dir.join("e"))?, 0o640, "a directory with one")
}

fn default_acl_of_every_kind_of_file(dir: &Path) -> Result<()> {
    set(dir, DEFAULT, &readable()).context("setting")?;
    let all = Mode::from_raw_mode(0o666);
    mknodat(CWD, dir.join("fifo"), FileType::Fifo, all, 0).context("a FIFO")?;
    same(get(&dir.join("fifo"), ACCESS)?, readable(), "a FIFO's")?;
    mknodat(CWD, dir.join("node"), FileType::RegularFile, all, 0).context("mknod")?;
    same(get(&dir.join("node"), ACCESS)?, readable(), "that of a file of mknod")?;
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let unnamed = rustix::fs::openat(CWD, dir, flags, all).context("O_TMPFILE")?;
    let mut value = vec![0_u8; 8192];
    let length = rustix::fs::fgetxattr(&unnamed, ACCESS, &mut value[..])?;
    same(value[..length].to_vec(), readable(), "that of a file without a name")?;
    std::os::unix::fs::symlink("file", dir.join("link"))?;
    same(fs::read_link(dir.join("link"))?, "file".into(), "a link's target")
}
