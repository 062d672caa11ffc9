//! Whom a server thread acts for: file system user and group, umask, capabilities.
//!
//! New files must belong to the process in the guest that made them. The server creates them
//! under that process's ids rather than with `chown` afterwards, so that no other process on the
//! host ever sees a file of a wrong owner, and that quotas, set-group-id directories and default
//! ACLs work as the host's kernel has them. All of it is a property of one thread in Linux.
//!
//! The guest has checked permissions (`default_permissions`), with supplementary groups that the
//! server does not know. So the server keeps `CAP_DAC_OVERRIDE` whatever the ids are.

use std::os::fd::AsFd;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets, UnshareFlags};

/// Lets capabilities survive a change of the file system user, in this thread and in those that
/// it starts. Needs `CAP_SETPCAP`, so it comes before the jail.
pub fn keep_capabilities() -> Result<(), Errno> {
    let bits = rustix::thread::capabilities_secure_bits()?;
    rustix::thread::set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP)
}

/// The identity of the calling thread; neither sent to nor shared with another.
pub struct Identity {
    uid: u32,
    gid: u32,
    umask: u32,
    capabilities: CapabilitySets,
    not_send: std::marker::PhantomData<*const ()>,
}

impl Identity {
    /// Prepares the calling thread: a working directory and umask of its own, the former being
    /// `descriptors`, so that a descriptor's number is a path to what it refers to; and no
    /// `CAP_FSETID`, so that the kernel clears set-user-id bits when a file's content changes.
    pub fn of_this_thread(descriptors: impl AsFd) -> Result<Self, Errno> {
        // SAFETY: only the file system attributes of the thread (CLONE_FS) become its own;
        // descriptors stay shared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        rustix::process::fchdir(descriptors)?;
        rustix::process::umask(Mode::empty());
        let mut capabilities = rustix::thread::capabilities(None)?;
        capabilities.effective.remove(CapabilitySet::FSETID);
        rustix::thread::set_capabilities(None, capabilities)?;
        Ok(Self {
            uid: fs_uid(NO_ID),
            gid: fs_gid(NO_ID),
            umask: 0,
            capabilities,
            not_send: std::marker::PhantomData,
        })
    }

    /// Acts as `uid` and `gid`, with `umask`, until the result is dropped.
    pub fn create_as(&mut self, uid: u32, gid: u32, umask: u32) -> Result<Caller<'_>, Errno> {
        if uid == NO_ID || gid == NO_ID {
            return Err(Errno::INVAL);
        }
        // What is set is set back when this is dropped, also if a step fails.
        let mut caller = Caller { identity: self, uid_set: false, gid_set: false };
        if gid != caller.identity.gid {
            caller.gid_set = true;
            fs_gid(gid);
            (fs_gid(NO_ID) == gid).then_some(()).ok_or(Errno::PERM)?;
        }
        if uid != caller.identity.uid {
            caller.uid_set = true;
            fs_uid(uid);
            (fs_uid(NO_ID) == uid).then_some(()).ok_or(Errno::PERM)?;
        }
        let umask = umask & 0o777;
        if umask != 0 {
            caller.identity.umask = umask;
            rustix::process::umask(Mode::from_raw_mode(umask));
        }
        Ok(caller)
    }

    /// Runs `act` with `CAP_FSETID` if `raised`: a set-group-id bit is then given as asked,
    /// whatever the server's own groups are.
    pub fn with_fsetid<T>(
        &self,
        raised: bool,
        act: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let permitted = self.capabilities.permitted.contains(CapabilitySet::FSETID);
        if !raised || !permitted {
            return act();
        }
        let mut sets = self.capabilities;
        sets.effective.insert(CapabilitySet::FSETID);
        rustix::thread::set_capabilities(None, sets)?;
        let result = act();
        rustix::thread::set_capabilities(None, self.capabilities)?;
        result
    }
}

/// A thread that acts for a process of the guest; see [`Identity::create_as`].
pub struct Caller<'a> {
    identity: &'a mut Identity,
    uid_set: bool,
    gid_set: bool,
}

impl Caller<'_> {
    /// See [`Identity::with_fsetid`].
    pub fn with_fsetid<T>(
        &self,
        raised: bool,
        act: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.identity.with_fsetid(raised, act)
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        let identity = &mut *self.identity;
        // Going back to an id that the process has needs no capability and cannot fail.
        if self.uid_set {
            fs_uid(identity.uid);
        }
        if self.gid_set {
            fs_gid(identity.gid);
        }
        if std::mem::take(&mut identity.umask) != 0 {
            rustix::process::umask(Mode::empty());
        }
    }
}

/// No user or group has this id; setting it changes nothing.
const NO_ID: u32 = u32::MAX;

/// Sets the thread's file system user and returns the one before. Failure shows only in the
/// value that the next call returns (setfsuid(2)).
fn fs_uid(uid: u32) -> u32 {
    // SAFETY: setfsuid takes an integer and touches no memory; glibc passes it to the kernel for
    // this thread alone.
    (unsafe { libc::setfsuid(uid) }) as u32
}

/// [`fs_uid`] for the group.
fn fs_gid(gid: u32) -> u32 {
    // SAFETY: setfsgid takes an integer and touches no memory; glibc passes it to the kernel for
    // this thread alone.
    (unsafe { libc::setfsgid(gid) }) as u32
}
