//! Owners and permissions, with processes of other users.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{Case, file, helper, same};

pub const CASES: &[Case] = &[
    ("owner_of_what_is_new", owner_of_what_is_new),
    ("permissions", permissions),
    ("set_id_bits", set_id_bits),
    ("set_group_id_directory", set_group_id_directory),
    ("sticky_directory", sticky_directory),
    ("device_nodes", device_nodes),
];

/// Whether the second process can do this as another user.
pub fn as_user(id: u32, what: &str, path: &Path) -> Result<bool> {
    let mut command = helper(what, path)?;
    command.uid(id).gid(id).stderr(std::process::Stdio::null());
    Ok(command.status().context("the other user's process")?.success())
}

/// `chmod`
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode)).context("chmod")
}

/// Permissions and set-id bits.
pub fn mode(path: &Path) -> Result<u32> {
    Ok(path.symlink_metadata()?.mode() & 0o7777)
}

fn owner_of_what_is_new(dir: &Path) -> Result<()> {
    set_mode(dir, 0o777)?;
    let path = dir.join("made");
    same(as_user(1001, "append", &path)?, true, "made")?;
    let made = path.metadata()?;
    same((made.uid(), made.gid()), (1001, 1001), "owner")?;
    chown(&path, Some(5), None)?;
    let made = path.metadata()?;
    same((made.uid(), made.gid()), (5, 1001), "owner after chown of the user")
}

fn permissions(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    for (mode, expected) in [(0o600, false), (0o604, true), (0o640, false)] {
        set_mode(&path, mode)?;
        same(as_user(1001, "read", &path)?, expected, &format!("read of {mode:o}"))?;
    }
    chown(&path, Some(0), Some(1001))?;
    same(as_user(1001, "read", &path)?, true, "read by the group")?;
    same(as_user(1001, "append", &path)?, false, "write by the group")?;
    set_mode(dir, 0o700)?;
    same(as_user(1001, "read", &path)?, false, "read below a closed directory")
}

fn set_id_bits(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    set_mode(&path, 0o6777)?;
    same(mode(&path)?, 0o6777, "set")?;
    same(as_user(1001, "append", &path)?, true, "a write")?;
    same(mode(&path)?, 0o777, "after another's write")?;
    set_mode(&path, 0o6755)?;
    chown(&path, Some(1), Some(1))?;
    same(mode(&path)?, 0o755, "after chown")
}

fn set_group_id_directory(dir: &Path) -> Result<()> {
    chown(dir, Some(0), Some(1002))?;
    set_mode(dir, 0o2777)?;
    let path = file(dir, "file", b"")?;
    same(path.metadata()?.gid(), 1002, "group of a file")?;
    fs::create_dir(dir.join("d"))?;
    same(dir.join("d").metadata()?.gid(), 1002, "group of a directory")?;
    same(mode(&dir.join("d"))? & 0o2000, 0o2000, "the bit is inherited")
}

fn sticky_directory(dir: &Path) -> Result<()> {
    set_mode(dir, 0o1777)?;
    let path = file(dir, "file", b"")?;
    same(as_user(1001, "unlink", &path)?, false, "another's file removed")?;
    chown(&path, Some(1001), None)?;
    same(as_user(1001, "unlink", &path)?, true, "one's own file removed")
}

fn device_nodes(dir: &Path) -> Result<()> {
    let path = dir.join("node");
    let device = rustix::fs::makedev(1, 3);
    mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR, device).context("mknod")?;
    same(path.symlink_metadata()?.rdev(), device, "numbers")
}
