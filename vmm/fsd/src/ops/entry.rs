//! Names become inodes: lookup and forget, and how long the guest may believe them.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx};
use rustix::io::Errno;

use crate::abi::{ATTR_SUBMOUNT, BatchForgetIn, EntryOut, ForgetIn, ForgetOne, opcode};
use crate::inode::{Inode, Key, attributes_wanted};
use crate::ops::attributes::fuse_attr;
use crate::reply::Reply;
use crate::request::Request;
use crate::server::{Node, Server};

/// How long the guest believes that a directory has its name. A directory that the host renames
/// or replaces is seen that much later.
const DIRECTORY_VALID: Duration = Duration::from_secs(1);
/// How long the guest believes that anything else has its name: not at all. So each `open`,
/// `stat` and `exec` looks the last component up, which brings fresh attributes, and with them
/// the guest drops cached pages of a file that the host has changed. A change of the host is
/// seen at the next open, at the price of one request for each.
const FILE_VALID: Duration = Duration::ZERO;
/// How long the guest believes attributes, for a file that is open while the host changes it.
pub(crate) const ATTRIBUTES_VALID: Duration = Duration::from_secs(1);
/// How long the guest believes what a listing brought: long enough for the `stat` of each entry
/// that follows a listing in `ls -l`, `find` or `git status`.
const LISTED_VALID: Duration = Duration::from_millis(100);
// Names that do not exist are not believed at all: the guest is answered with ENOENT.

impl Server {
    /// `FUSE_LOOKUP`
    pub(crate) fn lookup(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let parent = self.node(request.header.nodeid)?;
        let name = request.name()?;
        let entry = match parent {
            Node::Root => self.enter_share(name)?,
            Node::Inode(parent) => self.enter(&parent, name)?,
        };
        reply.push(&entry)
    }

    /// Looks `name` up in the root directory.
    fn enter_share(&self, name: &CStr) -> Result<EntryOut, Errno> {
        let shares = self.shares();
        let root = Arc::clone(&shares.find(name.to_bytes()).ok_or(Errno::NOENT)?.root);
        // A listing looks up while it holds them, too.
        drop(shares);
        let attributes = root.attributes()?;
        let nodeid = self.inodes().insert(root)?;
        Ok(entry(nodeid, &attributes, true))
    }

    /// Looks `name` up in `parent` and counts the lookup.
    ///
    /// The attack: a symbolic link in place of what was there a moment ago. It is opened itself
    /// (`O_NOFOLLOW`), never followed; only the guest follows links, by looking up each of their
    /// components.
    pub(crate) fn enter(&self, parent: &Inode, name: &CStr) -> Result<EntryOut, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let attributes = rustix::fs::statx(&parent.fd, name, flags, attributes_wanted())?;
        let key = Key::new(parent.key.share, &attributes);
        // A known inode is held, so that its number on its mount means nothing else.
        let known = self.inodes().look_up(&key);
        if let Some(nodeid) = known {
            return Ok(entry(nodeid, &attributes, !key.same_mount(&parent.key)));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent.fd, name, flags, Mode::empty())?;
        self.register(parent, fd)
    }

    /// Makes an `O_PATH` descriptor beneath `parent` an inode and counts the lookup.
    pub(crate) fn register(&self, parent: &Inode, fd: OwnedFd) -> Result<EntryOut, Errno> {
        let (inode, attributes) = Inode::new(parent.key.share, fd)?;
        let mount_root = !inode.key.same_mount(&parent.key);
        // Another thread may have been first; then this descriptor is closed again.
        let nodeid = self.inodes().insert(Arc::new(inode))?;
        Ok(entry(nodeid, &attributes, mount_root))
    }

    /// The entry of `name` in `parent` for a listing. One that cannot be looked up any more, or
    /// for which inodes are too scarce, comes without attributes (node id 0).
    pub(crate) fn list_entry(&self, parent: &Node, name: &CStr) -> EntryOut {
        let unknown = EntryOut::default();
        if matches!(name.to_bytes(), b"." | b"..") || self.inodes().is_crowded() {
            return unknown;
        }
        let found = match parent {
            Node::Root => self.enter_share(name),
            Node::Inode(parent) => self.enter(parent, name),
        };
        match found {
            Ok(mut entry) => {
                (entry.entry_valid, entry.entry_valid_nsec) = parts(LISTED_VALID);
                (entry.attr_valid, entry.attr_valid_nsec) = parts(LISTED_VALID);
                entry
            }
            Err(_) => unknown,
        }
    }

    /// `FUSE_FORGET`, `FUSE_BATCH_FORGET`
    pub(crate) fn forget(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        if request.header.opcode == opcode::FORGET {
            let ForgetIn { nlookup } = request.take()?;
            let last = self.inodes().forget(request.header.nodeid, nlookup);
            drop(last);
            return Ok(());
        }
        let BatchForgetIn { count, .. } = request.take()?;
        for _ in 0..count {
            // Ends with the message, whatever the count.
            let ForgetOne { nodeid, nlookup } = request.take()?;
            let last = self.inodes().forget(nodeid, nlookup);
            drop(last);
        }
        Ok(())
    }
}

/// The reply that makes `nodeid` known. The root of a mount is told as such: the guest gives it
/// a device number of its own, as the host does, so that inode numbers do not collide.
fn entry(nodeid: u64, attributes: &Statx, mount_root: bool) -> EntryOut {
    let directory = FileType::from_raw_mode(attributes.stx_mode.into()) == FileType::Directory;
    let (entry_valid, entry_valid_nsec) =
        parts(if directory { DIRECTORY_VALID } else { FILE_VALID });
    let (attr_valid, attr_valid_nsec) = parts(ATTRIBUTES_VALID);
    let mut attr = fuse_attr(attributes);
    if directory && mount_root {
        attr.flags |= ATTR_SUBMOUNT;
    }
    let generation = 0;
    EntryOut {
        nodeid,
        generation,
        entry_valid,
        attr_valid,
        entry_valid_nsec,
        attr_valid_nsec,
        attr,
    }
}

/// The form in which the protocol has times to live.
pub(crate) fn parts(duration: Duration) -> (u64, u32) {
    (duration.as_secs(), duration.subsec_nanos())
}
