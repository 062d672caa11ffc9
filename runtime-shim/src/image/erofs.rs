//! A read-only EROFS image of a directory tree, written by `mkfs.erofs` of erofs-utils.
//!
//! The tree is a hostile image's, and the program that walks it was not written against those.
//! So it runs with nothing to gain: its root directory holds the system's programs and
//! libraries, the tree and the one file to write, all but the last read-only; a user id that
//! nobody else has; of capabilities only the one to read any file; no network; no new privileges;
//! no file larger than the bound. The capability would also let it open files of the host by their
//! handles, past its root directory: a filter takes that call away, and those by which a process
//! gets at others or at what few programs need of the kernel.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use bulkhead_jail::seccomp::{Filter, SeccompError};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, fchown, mkdirat, open};
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive, mount_remount};
use thiserror::Error;

/// Directories of the host that the program is made of.
const SYSTEM: [&str; 4] = ["usr", "lib", "lib64", "bin"];
/// Where the program is looked for.
const PATH: &str = "/usr/bin:/usr/sbin:/bin";
/// First of the user ids that such programs have, each the caller's pid above it: above what
/// distributions give away, and apart from those of monitors.
const ID_BASE: u32 = 0x7080_0000;
/// Most that is kept of what the program says.
const WORDS_MAX: u64 = 4096;
/// A fixed identity: the same layers make the same image.
const UUID: &str = "00000000-0000-0000-0000-000000000000";
/// `CAP_DAC_READ_SEARCH` of linux/capability.h.
const READ_SEARCH: u32 = 2;

/// System calls that no writer of images makes.
const DENIED: [i64; 17] = [
    libc::SYS_open_by_handle_at,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_io_uring_setup,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Why there is no image.
#[derive(Debug, Error)]
pub enum ErofsError {
    /// erofs-utils are not installed.
    #[error("mkfs.erofs is not installed")]
    Missing,
    /// The program's root directory.
    #[error("preparing the root directory of mkfs.erofs")]
    Room(#[source] io::Error),
    /// The file to write.
    #[error("making the image file")]
    File(#[source] io::Error),
    /// What takes system calls away from it.
    #[error(transparent)]
    Filter(#[from] SeccompError),
    /// It does not start.
    #[error("starting mkfs.erofs")]
    Start(#[source] io::Error),
    /// It fails.
    #[error("mkfs.erofs: {status}: {words}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it said last.
        words: String,
    },
}

/// Whether there is a program to make images with.
pub fn is_installed() -> bool {
    let is_program = |meta: Metadata| meta.is_file() && meta.mode() & 0o111 != 0;
    let mut places = PATH.split(':').map(|at| Path::new(at).join("mkfs.erofs"));
    places.any(|path| path.metadata().is_ok_and(is_program))
}

/// Writes an image of the directory `tree` into the empty file `image`, at most `bytes_max`
/// bytes. `room` is an empty directory. The calling thread must have a mount namespace of its
/// own, in which mounts are left.
pub fn make(tree: &Path, image: &Path, room: &Path, bytes_max: u64) -> Result<(), ErofsError> {
    furnish(tree, image, room).map_err(ErofsError::Room)?;
    let image = File::open(image).map_err(ErofsError::File)?;
    let id = ID_BASE + std::process::id();
    let owner = (Uid::from_raw(id), Gid::from_raw(id));
    fchown(&image, Some(owner.0), Some(owner.1)).map_err(|e| ErofsError::File(e.into()))?;
    let root = open(room, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| ErofsError::Room(e.into()))?;
    let result = run(&root, id, bytes_max);
    fchown(&image, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(|e| ErofsError::File(e.into()))?;
    result
}

/// Fills `room` with mounts.
fn furnish(tree: &Path, image: &Path, room: &Path) -> io::Result<()> {
    mount("tmpfs", room, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, c"size=1m,mode=0755")?;
    let make = |name: &str| -> io::Result<_> {
        let path = room.join(name);
        mkdirat(CWD, &path, Mode::from_raw_mode(0o755))?;
        Ok(path)
    };
    for name in SYSTEM {
        let system = Path::new("/").join(name);
        match system.symlink_metadata() {
            Ok(meta) if meta.is_symlink() => {
                std::os::unix::fs::symlink(std::fs::read_link(&system)?, room.join(name))?;
            }
            Ok(_) => {
                let at = make(name)?;
                mount_bind(&system, &at)?;
                read_only(&at)?;
            }
            Err(_) => {}
        }
    }
    let at = make("tree")?;
    mount_bind_recursive(tree, &at)?;
    read_only(&at)?;
    let out = room.join("image");
    File::create(&out)?;
    mount_bind(image, &out)?;
    Ok(())
}

fn read_only(at: &Path) -> io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    Ok(mount_remount(at, flags, c"")?)
}

fn run(root: &OwnedFd, id: u32, bytes_max: u64) -> Result<(), ErofsError> {
    let (mut words, writer) = io::pipe().map_err(ErofsError::Start)?;
    let mut command = Command::new("mkfs.erofs");
    command.args(["--quiet", "-U", UUID, "/image", "/tree"]);
    command.env_clear().env("PATH", PATH).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    let root = root.as_fd().as_raw_fd();
    let filter = Filter::without("mkfs.erofs", &DENIED)?;
    // SAFETY: the closure makes system calls only and allocates nothing, which is allowed between
    // fork and exec; `root` is open until the child has started.
    unsafe { command.pre_exec(move || confine(root, id, bytes_max, &filter)) };
    let child = command.spawn().map_err(ErofsError::Start);
    // Its end of the pipe is the command's, too.
    drop(command);
    let mut child = child?;
    let mut text = Vec::new();
    let read = words.by_ref().take(WORDS_MAX).read_to_end(&mut text);
    // The rest is read as well, or the program would wait for ever.
    let read = read.and_then(|_| io::copy(&mut words, &mut io::sink()));
    let status = child.wait().map_err(ErofsError::Start)?;
    read.map_err(ErofsError::Start)?;
    if status.success() {
        return Ok(());
    }
    let words = crate::failure::printable(String::from_utf8_lossy(&text).trim());
    Err(ErofsError::Failed { status, words })
}

/// In the child: gives up everything that the work does not need.
fn confine(root: RawFd, id: u32, bytes_max: u64, filter: &Filter) -> io::Result<()> {
    let check = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: integers only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC) })?;
    // SAFETY: as above.
    check(unsafe { libc::fchdir(root) })?;
    // SAFETY: the path is a constant string.
    check(unsafe { libc::chroot(c".".as_ptr()) })?;
    let bound = libc::rlimit { rlim_cur: bytes_max, rlim_max: bytes_max };
    // SAFETY: the structure is alive during the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &bound) })?;
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1) })?;
    // SAFETY: no groups are read from the null pointer.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: integers only.
    check(unsafe { libc::setresgid(id, id, id) })?;
    // SAFETY: integers only.
    check(unsafe { libc::setresuid(id, id, id) })?;
    keep_one_capability()?;
    // Last of all: a change of the user id takes it back.
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // An error of the kernel's is all that the parent can be told of here.
    filter.install().map_err(|_| io::Error::last_os_error())
}

/// Only [`READ_SEARCH`], and that across exec.
fn keep_one_capability() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two words each of effective, permitted, inheritable.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let sets: [[u32; 3]; 2] = [[1 << READ_SEARCH; 3], [0; 3]];
    // SAFETY: header and sets have the layout that this version of capset(2) reads.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: integers only.
    let raised =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, READ_SEARCH, 0, 0) };
    if raised == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::privilege::is_root;

    #[test]
    fn confined_program_ends_with_the_thread_that_started_it() {
        if !is_root() {
            return;
        }
        let root = File::open("/").unwrap();
        let fd = root.as_raw_fd();
        let start = move || {
            let mut command = Command::new("sleep");
            let filter = Filter::without("test", &DENIED).unwrap();
            command.arg("1000");
            // SAFETY: system calls only, and `root` is open until the child has started.
            unsafe { command.pre_exec(move || confine(fd, ID_BASE, 1 << 20, &filter)) };
            command.spawn().unwrap()
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        let ended = loop {
            let ended = child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                break ended;
            }
            std::thread::yield_now();
        };
        let _ = child.kill();
        assert_eq!(ended.and_then(|status| status.signal()), Some(libc::SIGKILL));
    }

    #[test]
    fn confined_program_that_opens_a_file_by_its_handle_is_killed() {
        if !is_root() {
            return;
        }
        let root = File::open("/").unwrap();
        let fd = root.as_raw_fd();
        // The number, and that of the same call in the x32 ABI.
        for call in [libc::SYS_open_by_handle_at, 0x4000_0000 | libc::SYS_open_by_handle_at] {
            let filter = Filter::without("test", &DENIED).unwrap();
            let mut command = Command::new("true");
            let open = move || {
                confine(fd, ID_BASE + 1, 1 << 20, &filter)?;
                // SAFETY: the call reads no handle at the null pointer, but fails.
                let _ = unsafe { libc::syscall(call, fd, 0, 0) };
                Ok(())
            };
            // SAFETY: system calls only, and `root` is open until the child has ended.
            unsafe { command.pre_exec(open) };
            let status = command.spawn().unwrap().wait().unwrap();
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{call:#x}");
        }
    }
}
