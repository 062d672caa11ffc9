//! Takes away a process's reach, in one fixed order, before it sees a byte of the guest.
//!
//! Input: a single-threaded process that its parent has started as root, in a PID namespace of
//! its own, with nothing but the descriptors it needs. Every step that fails ends the start.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, UnmountFlags,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags};
use thiserror::Error;

/// Why a process could not enter its jail.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The parent did not give the process a PID namespace.
    #[error("the process is not the first of its PID namespace (its parent starts it in one)")]
    PidNamespace,
    /// The process is not root and so cannot confine itself.
    #[error("setting user and group to {id} (the runtime must run as root)")]
    Identity {
        /// The id to take.
        id: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Namespaces.
    #[error("entering new namespaces (look at /proc/sys/user/max_*_namespaces)")]
    Namespaces(#[source] io::Error),
    /// The id map of the user namespace.
    #[error("mapping id {id} into the user namespace through {file}")]
    IdMap {
        /// The id to map.
        id: u32,
        /// The file that was written.
        file: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The empty root.
    #[error("changing to an empty root directory ({step})")]
    Root {
        /// The step that failed.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The procfs of the PID namespace.
    #[error("mounting a procfs of the own PID namespace ({step})")]
    Proc {
        /// The step that failed.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Capabilities.
    #[error("giving up capabilities ({step})")]
    Capabilities {
        /// The step that failed.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Resource limits.
    #[error("setting the resource limit {0}")]
    Limit(&'static str, #[source] io::Error),
    /// Process attributes.
    #[error("setting the process attribute {0}")]
    Attribute(&'static str, #[source] io::Error),
}

/// Resource limits of a jailed process; what is not listed here is set to none or zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads, counted for the user id of the process. `None` for a process that is root.
    pub threads: Option<u64>,
    /// Bytes of memory that cannot be paged out. The rings of io_uring count since Linux 6.13.
    pub locked_bytes: u64,
}

/// Confines the VMM: host user and group `id`, own user, mount, PID, network, IPC, UTS and cgroup
/// namespaces, an empty read-only root, no capability, no privilege to be gained.
///
/// `id` belongs to this sandbox alone, so that neither another sandbox's process nor a file has
/// the same owner.
pub fn enter_unprivileged(id: u32, limits: Limits) -> Result<(), ConfineError> {
    require_own_pid_namespace()?;
    limits.set()?;
    become_user(id)?;
    // A change of ids makes the process non-dumpable, which hands /proc/self/uid_map to root.
    set_dumpable(DumpableBehavior::Dumpable)?;
    // The user namespace comes first, within one call: the others then belong to it, and the
    // capabilities that set them up are worth nothing outside.
    unshare(ISOLATION | UnshareFlags::NEWUSER)?;
    map_own_id(id)?;
    enter_empty_root()?;
    drop_capabilities(CapabilitySet::empty())?;
    seal()
}

/// Confines the file server: root on the host, since it must set owners, but with `keep` as its
/// only capabilities, own mount, PID, network, IPC, UTS and cgroup namespaces and an empty
/// read-only root.
///
/// Returns `/proc/self/fd` of a procfs that shows the own PID namespace alone and nothing but
/// processes (`subset=pid`): the descriptors of this process can be reopened through it, the
/// host's `/proc/sys` and `/proc/1/root` cannot be reached.
pub fn enter_file_server(keep: CapabilitySet, limits: Limits) -> Result<OwnedFd, ConfineError> {
    require_own_pid_namespace()?;
    limits.set()?;
    unshare(ISOLATION)?;
    let descriptors = own_descriptors()?;
    enter_empty_root()?;
    drop_capabilities(keep)?;
    seal()?;
    Ok(descriptors)
}

const ISOLATION: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWCGROUP);

fn require_own_pid_namespace() -> Result<(), ConfineError> {
    // A process cannot move itself into a PID namespace, only its children.
    if std::process::id() == 1 { Ok(()) } else { Err(ConfineError::PidNamespace) }
}

fn become_user(id: u32) -> Result<(), ConfineError> {
    let failed = |source: Errno| ConfineError::Identity { id, source: source.into() };
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[]).map_err(failed)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed)
}

fn unshare(flags: UnshareFlags) -> Result<(), ConfineError> {
    // SAFETY: the process has one thread, and the descriptor table (CLONE_FILES) stays as it is.
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .map_err(|source| ConfineError::Namespaces(source.into()))
}

/// Maps the own id onto itself, the one mapping that needs no privilege outside
/// (user_namespaces(7)). It is not mapped onto 0: nothing inside should look like root.
fn map_own_id(id: u32) -> Result<(), ConfineError> {
    let map = format!("{id} {id} 1\n");
    let files = [
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", map.as_str()),
        ("/proc/self/gid_map", map.as_str()),
    ];
    for (file, text) in files {
        File::options()
            .write(true)
            .open(file)
            .and_then(|mut open| open.write_all(text.as_bytes()))
            .map_err(|source| ConfineError::IdMap { id, file, source })?;
    }
    Ok(())
}

/// A procfs that is mounted nowhere; its `self/fd` directory.
fn own_descriptors() -> Result<OwnedFd, ConfineError> {
    let failed = |step| move |source: Errno| ConfineError::Proc { step, source: source.into() };
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(failed("opening procfs"))?;
    rustix::mount::fsconfig_set_string(&context, "subset", "pid")
        .map_err(failed("setting subset=pid, which needs Linux 5.8"))?;
    rustix::mount::fsconfig_create(&context).map_err(failed("creating it"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(failed("mounting it"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&mount, "self/fd", flags, Mode::empty()).map_err(failed("opening self/fd"))
}

/// Replaces the root by an empty tmpfs that cannot be written.
fn enter_empty_root() -> Result<(), ConfineError> {
    let failed = |step| move |source: Errno| ConfineError::Root { step, source: source.into() };
    // The new tree must not send its mounts back to the host.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(failed("making mounts private"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Any directory will do as a place for the new root; /proc exists wherever KVM does.
    rustix::mount::mount("none", "/proc", "tmpfs", flags, c"size=4k,nr_inodes=1,mode=555")
        .map_err(failed("mounting a tmpfs"))?;
    rustix::process::chdir("/proc").map_err(failed("entering it"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("leaving the old root"))?;
    rustix::process::chdir("/").map_err(failed("entering the new root"))?;
    rustix::mount::mount_remount("/", flags | MountFlags::RDONLY, c"")
        .map_err(failed("making it read-only"))
}

/// Leaves `keep` as permitted and effective capabilities, and nothing as inheritable, ambient or
/// in the bounding set.
fn drop_capabilities(keep: CapabilitySet) -> Result<(), ConfineError> {
    let failed =
        |step| move |source: Errno| ConfineError::Capabilities { step, source: source.into() };
    for number in 0..=63u32 {
        // prctl refuses numbers beyond the kernel's last capability.
        // SAFETY: PR_CAPBSET_DROP takes an integer and touches no memory.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number)) };
        if result != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) && number > 0 {
                break;
            }
            return Err(ConfineError::Capabilities { step: "bounding set", source: error });
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(failed("ambient set"))?;
    let sets =
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(failed("permitted set"))
}

impl Limits {
    /// Sets the limits, hard and soft alike. Raising one needs privilege, so this comes first.
    fn set(self) -> Result<(), ConfineError> {
        limit("NOFILE", Resource::Nofile, self.descriptors)?;
        // A core file would hold guest memory.
        limit("CORE", Resource::Core, 0)?;
        limit("MEMLOCK", Resource::Memlock, self.locked_bytes)?;
        match self.threads {
            Some(threads) => limit("NPROC", Resource::Nproc, threads),
            None => Ok(()),
        }
    }
}

fn seal() -> Result<(), ConfineError> {
    rustix::thread::set_no_new_privs(true)
        .map_err(|source| ConfineError::Attribute("no_new_privs", source.into()))?;
    set_dumpable(DumpableBehavior::NotDumpable)?;
    // Last, since a change of credentials clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|source| ConfineError::Attribute("parent-death signal", source.into()))
}

fn limit(name: &'static str, resource: Resource, value: u64) -> Result<(), ConfineError> {
    let both = Rlimit { current: Some(value), maximum: Some(value) };
    rustix::process::setrlimit(resource, both)
        .map_err(|source| ConfineError::Limit(name, source.into()))
}

fn set_dumpable(behavior: DumpableBehavior) -> Result<(), ConfineError> {
    rustix::process::set_dumpable_behavior(behavior)
        .map_err(|source| ConfineError::Attribute("dumpable", source.into()))
}

#[cfg(test)]
mod tests;
