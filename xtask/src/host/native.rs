//! A command on this machine's own KVM, under the same rules as in the emulated host: namespaces
//! of its own, memory over every file system, only `target/` written back.
//!
//! `run` starts this program again as the first process of new namespaces; that process arranges
//! the mounts and becomes the command. When it ends, the kernel ends all that it left running.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, unmount,
};
use rustix::process::{Pid, PidfdFlags, chdir, pidfd_open};

use super::Request;
use super::signals::Signals;
use crate::checkout;

/// File systems that show the kernel rather than hold files: used as they are.
const KERNEL_FILE_SYSTEMS: &[&str] = &[
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "bpf",
    "tracefs",
    "debugfs",
    "securityfs",
    "configfs",
    "fusectl",
    "binfmt_misc",
    "hugetlbfs",
    "pstore",
    "efivarfs",
    "autofs",
    "nsfs",
    "rpc_pipefs",
    "selinuxfs",
];
/// An overlay cannot be the upper layer of another: stores and scratch lie on plain memory.
const PLAIN: &[&str] =
    &["var/lib/bulkhead", "var/lib/containerd", "var/lib/containers", "var/lib/docker", "var/tmp"];
/// Scratch place for the new root; it exists on every Debian machine.
const SCRATCH: &str = "/mnt";

/// Run the request on this machine.
pub fn run(request: &Request) -> Result<u8> {
    let mut signals = Signals::watch()?;
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--pid",
        "--fork",
        "--net",
        "--ipc",
        "--cgroup",
        "--kill-child",
        "--",
    ]);
    command.arg(checkout::this_program()?).arg("host-native-inside").arg("--");
    let mut child = command
        .args(&request.command)
        .spawn()
        .context("cannot make namespaces (unshare): this needs root")?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let ended = pidfd_open(pid.context("a child has a process id")?, PidfdFlags::empty())
        .context("cannot watch the command")?;
    let deadline = request.timeout.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let mut polled = [
            PollFd::new(&ended, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN),
        ];
        let limit = left.map(Timespec::try_from).transpose().context("the limit is in range")?;
        match poll(&mut polled, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the command"),
        }
        let [exit, signal] = polled.map(|polled| !polled.revents().is_empty());
        if exit {
            return Ok(status(child.wait().context("cannot wait for the command")?));
        }
        let end = if signal {
            match signals.next()? {
                // The terminal tells the command itself.
                libc::SIGWINCH => continue,
                other => u8::try_from(128 + other).unwrap_or(255),
            }
        } else if left == Some(Duration::ZERO) {
            eprintln!("xtask host: out of time: ended the command");
            124
        } else {
            continue;
        };
        child.kill().context("cannot end the command")?;
        child.wait().context("cannot wait for the command")?;
        return Ok(end);
    }
}

fn status(status: ExitStatus) -> u8 {
    let signalled = || status.signal().map_or(255, |signal| 128 + signal);
    u8::try_from(status.code().unwrap_or_else(signalled)).unwrap_or(255)
}

/// `xtask host-native-inside`: process 1 of the new namespaces. Arranges the mounts and becomes
/// `command`.
pub fn inside(command: &[String]) -> Result<()> {
    let directory = std::env::current_dir().context("there is no working directory")?;
    let (program, arguments) = command.split_first().context("there is no command")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot detach from the machine's mounts")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    cover(&points(&mounts))?;
    chdir(&directory).context("the working directory is gone")?;
    // Process 1 must reap what the command leaves behind, which `busybox` or any shell does not
    // promise: a child runs the command, the kernel reaps the rest when this process ends.
    let mut child = Command::new(program)
        .args(arguments)
        .env("TMPDIR", std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into()))
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let status = child.wait().context("cannot wait for the command")?;
    std::process::exit(i32::from(self::status(status)));
}

/// One mount that holds files.
#[derive(Debug, PartialEq, Eq)]
struct Point {
    path: PathBuf,
    kernel: bool,
    directory: bool,
}

/// Mount points in the order of mounting, the root first (proc_pid_mountinfo(5)).
fn points(mountinfo: &str) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(path), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else {
            continue;
        };
        let path = PathBuf::from(path.replace("\\040", " "));
        // A later mount at the same place hides the earlier one.
        points.retain(|point| point.path != path);
        let kernel = KERNEL_FILE_SYSTEMS.contains(&kind);
        points.push(Point { directory: path.is_dir(), path, kernel });
    }
    points.sort_by(|a, b| a.path.cmp(&b.path));
    points
}

/// Build a root of overlays, and move into it.
fn cover(points: &[Point]) -> Result<()> {
    let scratch = Path::new(SCRATCH);
    let flags = MountFlags::empty();
    mount("layer", scratch, "tmpfs", flags, None).context("cannot mount a tmpfs")?;
    let root = scratch.join("root");
    fs::create_dir(&root).context("cannot make the new root")?;
    let mut kernel_tops: Vec<&Path> = Vec::new();
    for (index, point) in points.iter().enumerate() {
        if kernel_tops.iter().any(|top| point.path.starts_with(top)) {
            continue;
        }
        let at = root.join(point.path.strip_prefix("/").unwrap_or(&point.path));
        if point.kernel || !point.directory {
            kernel_tops.push(&point.path);
            mount_bind_recursive(&point.path, &at)
                .with_context(|| format!("cannot bind {}", point.path.display()))?;
        } else {
            overlay(&point.path, &at, &scratch.join(index.to_string()))?;
        }
    }
    for name in PLAIN {
        let (plain, at) = (scratch.join("plain").join(name), root.join(name));
        for directory in [&plain, &at] {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        mount_bind(&plain, &at).with_context(|| format!("cannot mount /{name}"))?;
    }
    let target = checkout::target();
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    let at = root.join(target.strip_prefix("/").unwrap_or(&target));
    mount_bind(&target, &at).context("cannot bind target/")?;
    enter(&root)
}

fn overlay(lower: &Path, at: &Path, layer: &Path) -> Result<()> {
    let (upper, work) = (layer.join("upper"), layer.join("work"));
    fs::create_dir_all(&upper).context("cannot make an upper directory")?;
    fs::create_dir(&work).context("cannot make a work directory")?;
    let options = std::ffi::CString::new(format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    ))
    .context("a path holds a zero byte")?;
    mount("layer", at, "overlay", MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("cannot put an overlay over {}", lower.display()))
}

/// Make `root` the root, with `/proc` of the new process namespace and cgroup 2 alone.
fn enter(root: &Path) -> Result<()> {
    chdir(root).context("cannot enter the new root")?;
    rustix::process::pivot_root(".", ".").context("cannot change the root")?;
    unmount(".", UnmountFlags::DETACH).context("cannot leave the old root")?;
    let flags = MountFlags::empty();
    mount("proc", "/proc", "proc", flags, None).context("cannot mount /proc")?;
    let unified = Path::new("/sys/fs/cgroup");
    if !unified.join("cgroup.controllers").exists() {
        mount("cgroup2", unified, "cgroup2", flags, None).context("cannot mount cgroup2")?;
    }
    let loopback = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !loopback.context("cannot start ip")?.success() {
        bail!("cannot bring the loopback device up");
    }
    Ok(())
}
