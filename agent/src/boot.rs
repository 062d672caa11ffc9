//! PID 1 before it serves: mounts, loopback, host name. As few system calls as will do.

use std::{ffi::CStr, fs, io, os::fd::AsRawFd, path::Path};

use bulkhead_protocol::guest::{SHARE_DIR, SHARE_TAG};
use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    mount::{MountFlags, mount, mount_bind, mount_move},
    process::{Resource, Rlimit, chdir, chroot, setrlimit},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    system::{RebootCommand, reboot, sethostname},
};
use thiserror::Error;

use crate::{cgroup, network::loopback_up};

/// Name of the guest; containers have their own.
const HOSTNAME: &[u8] = b"bulkhead";
/// Open files of the agent, and the most that a container may ask for (the kernel's own maximum).
const FILES: u64 = 65_536;
const FILES_HARD: u64 = 1 << 20;
/// Where `/` is bound before it becomes its own root. Empty in the initramfs.
const ROOT_MOUNT: &str = "/root-mount";

/// A phase of the boot that failed.
#[derive(Debug, Error)]
pub enum BootError {
    /// `/` did not become a mount that pivot_root accepts.
    #[error("make the root a mount ({step}): {source}")]
    Root {
        /// Which step.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file system is not there.
    #[error("mount {target}: {source}")]
    Mount {
        /// Where.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// No `/dev/null` for the standard streams.
    #[error("open /dev/null as standard streams: {0}")]
    Streams(#[source] io::Error),
    /// Many processes could not have their streams.
    #[error("raise the limit of open files: {0}")]
    Files(#[source] io::Error),
    /// Containers would have no limits.
    #[error("enable cgroup controllers: {0}")]
    Controllers(#[source] io::Error),
    /// The loopback interface is down.
    #[error("bring up the loopback interface: {0}")]
    Loopback(#[source] io::Error),
    /// The guest has no name.
    #[error("set the host name: {0}")]
    Hostname(#[source] io::Error),
}

/// One mount: file system, target, flags, options.
type Entry = (&'static str, &'static str, MountFlags, Option<&'static CStr>);

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// What a container host needs, in this order: later ones lie in earlier ones.
const MOUNTS: [Entry; 9] = [
    ("proc", "/proc", SAFE, None),
    ("sysfs", "/sys", SAFE, None),
    (
        "cgroup2",
        cgroup::ROOT,
        SAFE,
        // A container with a cgroup namespace must not change its own limits.
        Some(c"nsdelegate,memory_recursiveprot"),
    ),
    ("tmpfs", "/run", SAFE, Some(c"mode=0755")),
    ("tmpfs", "/tmp", SAFE, Some(c"mode=1777")),
    ("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), Some(c"ptmxmode=0666")),
    ("mqueue", "/dev/mqueue", SAFE, None),
    ("tmpfs", "/dev/shm", SAFE, Some(c"mode=1777")),
    ("virtiofs", SHARE_DIR, MountFlags::empty(), None),
];

/// Prepares the guest. Whether the share is mounted.
pub fn boot() -> Result<bool, BootError> {
    make_dir_mount("devtmpfs", "/dev", MountFlags::NOSUID, Some(c"mode=0755"))?;
    open_streams().map_err(BootError::Streams)?;
    own_root()?;
    let mut shared = false;
    for (kind, target, flags, options) in MOUNTS {
        match make_dir_mount(kind, target, flags, options) {
            Ok(()) => shared = kind == "virtiofs",
            // No such device: a sandbox without shares.
            Err(BootError::Mount { source, .. })
                if kind == "virtiofs" && Errno::from_io_error(&source) == Some(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    // Grace periods without waiting for clock ticks: making a container needs several (its cgroup,
    // its mounts), and the few CPUs of a guest are quickly asked. Missing in a kernel for one CPU.
    let _ = fs::write("/sys/kernel/rcu_expedited", "1");
    raise_file_limit().map_err(BootError::Files)?;
    enable_controllers().map_err(BootError::Controllers)?;
    loopback_up().map_err(BootError::Loopback)?;
    sethostname(HOSTNAME).map_err(|errno| BootError::Hostname(errno.into()))?;
    Ok(shared)
}

fn make_dir_mount(
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: Option<&'static CStr>,
) -> Result<(), BootError> {
    let source = if kind == "virtiofs" { SHARE_TAG } else { kind };
    let result = match mount(source, target, kind, flags, options) {
        Err(Errno::NOENT) => fs::create_dir_all(target)
            .and_then(|()| Ok(mount(source, target, kind, flags, options)?)),
        other => other.map_err(io::Error::from),
    };
    result.map_err(|source| BootError::Mount { target: target.to_owned(), source })
}

/// The kernel gives PID 1 no standard streams unless the initramfs has `/dev/console`.
fn open_streams() -> io::Result<()> {
    let null = open("/dev/null", OFlags::RDWR, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    if null.as_raw_fd() <= 2 {
        // It is one of them now, and stays.
        std::mem::forget(null);
    }
    Ok(())
}

/// The initial root has no parent mount, so pivot_root refuses it with EINVAL, here and for every
/// container inside a container. A bind of it, moved over it, has one.
fn own_root() -> Result<(), BootError> {
    let step = |step| move |source: io::Error| BootError::Root { step, source };
    fs::create_dir_all(ROOT_MOUNT).map_err(step("mkdir"))?;
    let target = Path::new(ROOT_MOUNT);
    mount_bind("/", target).map_err(|e| step("bind")(e.into()))?;
    // The bind is not recursive: what is mounted already moves along.
    let dev = target.join("dev");
    mount_move("/dev", &dev).map_err(|e| step("move /dev")(e.into()))?;
    chdir(target).map_err(|e| step("chdir")(e.into()))?;
    mount_move(".", "/").map_err(|e| step("move")(e.into()))?;
    chroot(".").map_err(|e| step("chroot")(e.into()))?;
    chdir("/").map_err(|e| step("chdir")(e.into()))
}

/// Each process costs the agent up to six descriptors. Containers inherit the hard limit.
fn raise_file_limit() -> io::Result<()> {
    let limit = Rlimit { current: Some(FILES), maximum: Some(FILES_HARD) };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Hands all controllers to the cgroup of the containers.
fn enable_controllers() -> io::Result<()> {
    let root = Path::new(cgroup::ROOT);
    let available = fs::read_to_string(root.join("cgroup.controllers"))?;
    let all: Vec<String> = available.split_whitespace().map(|c| format!("+{c}")).collect();
    let parent = root.join(cgroup::PARENT);
    fs::write(root.join("cgroup.subtree_control"), all.join(" "))?;
    fs::create_dir_all(&parent)?;
    fs::write(parent.join("cgroup.subtree_control"), all.join(" "))
}

/// Says why on the kernel's console and ends the guest, so that the host knows at once.
pub fn fatal(phase: &str, cause: &dyn std::fmt::Display) -> ! {
    kernel_log(&format!("bulkhead-agent: {phase}: {cause}"));
    restart()
}

/// Ends the guest.
pub fn restart() -> ! {
    // Fails only without the right to, which PID 1 has; then its exit panics the kernel, which
    // the host sees as well.
    let _ = reboot(RebootCommand::Restart);
    std::process::exit(1)
}

/// One line on the kernel's console, severe enough to be shown (KERN_CRIT).
pub fn kernel_log(line: &str) {
    let line = line.replace('\n', " ");
    let _ = fs::write("/dev/kmsg", format!("<2>{line}\n"));
}
