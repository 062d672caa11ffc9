//! A root file system in memory that holds everything the measured programs open.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change};
use rustix::process::pivot_root;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Guest kernel, in the room.
pub const KERNEL: &str = "/bench/vmlinux";
/// Where assets are, in the room.
pub const ASSETS: &str = "/bench";
/// The agent's initial RAM file system, in the room.
const AGENT: &str = "/bench/initrd.img";
/// Where the room is mounted.
const ROOM: &str = "/run/bench";
/// Directories of firmware that QEMU reads.
const FIRMWARE: &[&str] = &["/usr/share/seabios", "/usr/share/qemu"];
/// Largest firmware file that is taken along: those of other machines are larger.
const FIRMWARE_MAX: u64 = 1 << 20;

/// What the room holds besides bulkhead, the guest kernel and QEMU's firmware.
#[derive(Debug, Clone, Copy)]
pub struct Furniture<'a> {
    /// Binaries of bulkhead.
    pub binaries: &'a [&'a str],
    /// Programs of the machine; they keep their paths.
    pub programs: &'a [&'a str],
    /// The agent's initial RAM file system.
    pub agent: bool,
    /// Directory of `assets`.
    pub from: &'a Path,
    /// Names of files that go to [`ASSETS`].
    pub assets: &'a [&'a str],
}

/// Fill the room, run `measure` in it, and come back.
pub fn in_memory<T>(furniture: &Furniture<'_>, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let libexec = variable("BULKHEAD_LIBEXEC")?;
    let guest = variable("BULKHEAD_GUEST_DIR")?;
    let room = Path::new(ROOM);
    fs::create_dir_all(room).with_context(|| format!("cannot make {ROOM}"))?;
    mount("room", room, "tmpfs", MountFlags::empty(), Some(c"size=75%"))
        .context("cannot mount the room")?;
    for name in ["proc", "sys", "dev", "run", "tmp", "var", "root", "etc", "bench/libexec"] {
        fs::create_dir_all(room.join(name)).with_context(|| format!("cannot make {name}"))?;
    }
    for program in furniture.programs {
        program_with_libraries(Path::new(program), room)?;
    }
    for directory in FIRMWARE {
        firmware(Path::new(directory), room)?;
    }
    let place = |from: PathBuf, to: &str| {
        fs::copy(&from, room.join(to.trim_start_matches('/')))
            .with_context(|| format!("cannot copy {}", from.display()))
    };
    for name in furniture.binaries {
        place(libexec.join(name), &format!("bench/libexec/{name}"))?;
    }
    for name in furniture.assets {
        place(furniture.from.join(name), &format!("{ASSETS}/{name}"))?;
    }
    place(guest.join("vmlinux"), KERNEL)?;
    if furniture.agent {
        place(guest.join("initrd.img"), AGENT)?;
    }
    for name in ["proc", "sys", "dev"] {
        mount_bind_recursive(Path::new("/").join(name), room.join(name))
            .with_context(|| format!("cannot show /{name} in the room"))?;
    }
    enter(room, measure)
}

fn variable(name: &str) -> Result<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set"))
}

/// Makes the room the root, by pivot_root and not by chroot: a process whose root is changed may
/// not create user namespaces, and so no sandbox.
fn enter<T>(room: &Path, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: this program has one thread, and its descriptor table stays as it is.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("cannot have mounts of its own")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make the mounts private")?;
    fs::create_dir(room.join("outside")).context("cannot make a place for the old root")?;
    pivot_root(room, room.join("outside")).context("cannot enter the room")?;
    rustix::process::chdir("/").context("cannot enter the room")?;
    let environment = [
        ("BULKHEAD", "/bench/libexec/bulkhead"),
        ("BULKHEAD_LIBEXEC", "/bench/libexec"),
        ("BULKHEAD_GUEST_DIR", "/bench"),
        ("TMPDIR", "/tmp"),
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ];
    for (name, value) in environment {
        // SAFETY: this program has one thread.
        unsafe { std::env::set_var(name, value) };
    }
    let outcome = measure();
    let place = format!("/outside{ROOM}");
    pivot_root("/outside", place.as_str()).context("cannot leave the room")?;
    rustix::process::chdir("/").context("cannot leave the room")?;
    outcome
}

/// Copy a program and the libraries that its loader names.
fn program_with_libraries(program: &Path, room: &Path) -> Result<()> {
    let mut files = BTreeSet::from([program.to_path_buf()]);
    let listed = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    // Of a static program ldd says so and fails.
    for word in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
        if word.starts_with('/') {
            files.insert(PathBuf::from(word));
        }
    }
    files.iter().try_for_each(|file| copy(file, room))
}

fn firmware(directory: &Path, room: &Path) -> Result<()> {
    let entries = fs::read_dir(directory);
    for entry in entries.with_context(|| format!("no {}", directory.display()))? {
        let path = entry?.path();
        let small =
            fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() <= FIRMWARE_MAX);
        if small {
            copy(&path, room)?;
        }
    }
    Ok(())
}

/// Copy the contents of `file`, links followed, to the same path in the room.
fn copy(file: &Path, room: &Path) -> Result<()> {
    let to = room.join(file.strip_prefix("/").unwrap_or(file));
    let directory = to.parent().context("a file has a directory")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    fs::copy(file, &to).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}
