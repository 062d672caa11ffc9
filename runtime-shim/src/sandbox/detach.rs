//! Mounts that the runtime makes for one sandbox: copies of a part of the host's tree without
//! what is mounted below, with other owners, and overlays.
//!
//! None of them has a place in any tree. The descriptor is all there is of such a mount, and the
//! kernel ends it with the last copy of that: nothing can be left behind, whoever is killed.

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

use crate::plan::{IdMap, IdRange};

/// What no mount of a sandbox is for on the host.
const NOTHING_RUNS: MountFlags =
    MountFlags::NODEV.union(MountFlags::NOSUID).union(MountFlags::NOEXEC);

/// A copy of the mount at `source`, from there downwards.
pub(super) fn copy(source: &OwnedFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(source, c"", flags)?)
}

/// Mounts an overlay with the options `data`, one of whose directories is `at`: one overlay, two
/// mounts, since a mount without a place cannot be copied.
pub(super) fn overlay(at: &Path, data: &str) -> io::Result<[OwnedFd; 2]> {
    let (at, data) = (CString::new(at.as_os_str().as_bytes())?, CString::new(data)?);
    // The thread's mount namespace cannot be given back.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mount".to_owned());
        let thread = thread.spawn_scoped(scope, || overlay_apart(&at, &data))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn overlay_apart(at: &CStr, data: &CStr) -> io::Result<[OwnedFd; 2]> {
    // SAFETY: the file descriptor table stays shared; mount namespace, root and working directory
    // become this thread's own, and nothing else runs on it afterwards.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", private)?;
    rustix::mount::mount(c"overlay", at, c"overlay", NOTHING_RUNS, data)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok([rustix::mount::open_tree(CWD, at, flags)?, rustix::mount::open_tree(CWD, at, flags)?])
}

/// Lets the detached mounts `mounts` show owners as `map` says.
pub(super) fn set_id_map(mounts: &[&OwnedFd], map: &IdMap) -> io::Result<()> {
    let namespace = user_namespace(map)?;
    mounts.iter().try_for_each(|mount| map_owners(mount, &namespace, map.recursive))
}

fn map_owners(mount: &OwnedFd, namespace: &OwnedFd, recursive: bool) -> io::Result<()> {
    let wanted = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string, and `wanted` is a structure of the size told; both
    // live until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A user namespace with this map; it lives as long as its descriptor.
fn user_namespace(map: &IdMap) -> io::Result<OwnedFd> {
    let (mut ended, writer) = io::pipe()?;
    let member = member(writer.into())?;
    let set = |file: &str, ranges: &[IdRange]| {
        std::fs::write(format!("/proc/{}/{file}", member.pid), table(ranges))
    };
    set("uid_map", &map.uids)?;
    set("gid_map", &map.gids)?;
    let path = format!("/proc/{}/ns/user", member.pid);
    let namespace = std::fs::File::open(path)?;
    drop(member);
    // Its copy of the pipe is closed only when it has ended.
    ended.read_to_end(&mut Vec::new())?;
    Ok(namespace.into())
}

fn table(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.size);
    ranges.iter().map(line).collect()
}

/// The one process of a new user namespace: it waits to be killed.
struct Member {
    pid: libc::pid_t,
}

impl Drop for Member {
    fn drop(&mut self) {
        // SAFETY: a child of this process that nobody else waits for, so the number is its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // SAFETY: as above; no status is asked for.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// Starts it; `writer` is closed in this process, and in it when it ends.
fn member(writer: OwnedFd) -> io::Result<Member> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: no stack means that memory is copied as by fork(2). The child makes system calls
    // only: it neither allocates nor takes a lock.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => wait_for_death(),
        pid => {
            drop(writer);
            Ok(Member { pid: pid as libc::pid_t })
        }
    }
}

/// The body of the child.
fn wait_for_death() -> ! {
    // SAFETY: asks to be killed with the thread that made it.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        // SAFETY: waits for a signal; whatever comes, it waits on.
        unsafe { libc::pause() };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::privilege::is_root;

    #[test]
    fn user_namespace_leaves_no_process() {
        if !is_root() {
            return;
        }
        let range = IdRange { inside: 0, outside: 100_000, size: 1000 };
        let map = IdMap { uids: vec![range], gids: vec![range], recursive: false };
        let namespace = user_namespace(&map).unwrap();
        let own = std::fs::metadata("/proc/self/ns/user").unwrap();
        let made = rustix::fs::fstat(&namespace).unwrap();
        assert_ne!((made.st_dev, made.st_ino), (own.dev(), own.ino()));
        let link = format!("user:[{}]", made.st_ino);
        let members = std::fs::read_dir("/proc").unwrap().flatten().filter(|process| {
            std::fs::read_link(process.path().join("ns/user"))
                .is_ok_and(|at| at.to_str() == Some(&link))
        });
        assert_eq!(members.count(), 0, "a process is left in {link}");
    }

    #[test]
    fn overlay_shows_both_layers_and_is_mounted_nowhere() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("lower/a"), "").unwrap();
        let data = ["lower", "upper", "work"].map(|n| format!("{n}dir={}", at(n).display()));
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounted = match overlay(&at("upper"), &data.join(",")) {
            // Not on every file system, nor in every container.
            Err(error) => return println!("skipped: overlayfs: {error}"),
            Ok([mounted, _]) => mounted,
        };
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        rustix::fs::openat(&mounted, "b", flags, mode).unwrap();
        assert!(rustix::fs::statat(&mounted, "a", rustix::fs::AtFlags::empty()).is_ok());
        assert!(at("upper/b").exists() && !at("lower/b").exists());
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }
}
