//! Regular files: opening and creating them, and what the VMM does not do with its copy of the
//! open file.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::abi::{
    CopyFileRangeIn, CreateIn, FOPEN_KEEP_CACHE, FSYNC_FDATASYNC, FallocateIn, FsyncIn, OpenIn,
    OpenOut, ReleaseIn, WriteOut,
};
use crate::handle::Handle;
use crate::identity::Identity;
use crate::inode::Inode;
use crate::reply::Reply;
use crate::request::Request;
use crate::server::{Node, Server};

/// Flags of `open` that reach the host. Not `O_APPEND`: the guest computes where it writes, and
/// its page cache relies on that. Not `O_DIRECT`: it is between guest and VMM. Nothing that
/// concerns names or terminals.
const OPEN_FLAGS: OFlags = OFlags::ACCMODE
    .union(OFlags::TRUNC)
    .union(OFlags::NOATIME)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);

/// Bytes copied per request, so that a thread is not held long; the guest goes on by itself.
const COPY_MAX: usize = 16 << 20;

/// A file that was not changed for this long has another modification time if it is changed
/// again: file systems take times from a clock that ticks every few milliseconds, some in
/// seconds.
const SETTLED: Duration = Duration::from_secs(2);

impl Server {
    /// `FUSE_OPEN`
    pub(crate) fn open(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let OpenIn { flags, .. } = request.take()?;
        let inode = self.inode(request.header.nodeid)?;
        let file = self.open_inode(&inode, open_flags(flags)?)?;
        self.hand_over(file, &inode, reply)
    }

    fn open_inode(&self, inode: &Inode, flags: OFlags) -> Result<OwnedFd, Errno> {
        if inode.kind == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        let changes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        if changes && self.is_read_only(inode) {
            return Err(Errno::ROFS);
        }
        self.reopen(inode, flags)
    }

    /// `FUSE_CREATE`
    pub(crate) fn create(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
        identity: &mut Identity,
    ) -> Result<(), Errno> {
        let wanted: CreateIn = request.take()?;
        let name = request.name()?;
        let flags = open_flags(wanted.flags)?;
        let parent = self.writable(request.header.nodeid)?;
        // The attack: a device node or FIFO that appears under the name would be opened by a
        // plain O_CREAT. So the file is either new, or opened like any other.
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let created = self.create_as(request, identity, &wanted, |mode| {
            rustix::fs::openat(&parent.fd, name, flags | new, mode)
        });
        match created {
            Ok(file) => self.hand_over_new(file, &parent, reply),
            Err(Errno::EXIST) if wanted.flags & OFlags::EXCL.bits() == 0 => {
                let entry = self.enter(&parent, name)?;
                // The guest does not get the entry if this fails, so it cannot forget it.
                let opened = self
                    .inode(entry.nodeid)
                    .and_then(|inode| Ok((self.open_inode(&inode, flags)?, inode)));
                match opened {
                    Ok((file, inode)) => {
                        reply.push(&entry)?;
                        self.hand_over(file, &inode, reply)
                    }
                    Err(errno) => {
                        drop(self.inodes().forget(entry.nodeid, 1));
                        Err(errno)
                    }
                }
            }
            Err(errno) => Err(errno),
        }
    }

    /// `FUSE_TMPFILE`
    pub(crate) fn tmpfile(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
        identity: &mut Identity,
    ) -> Result<(), Errno> {
        let wanted: CreateIn = request.take()?;
        let flags = open_flags(wanted.flags)? | OFlags::TMPFILE | OFlags::CLOEXEC;
        let parent = self.writable(request.header.nodeid)?;
        let file = self.create_as(request, identity, &wanted, |mode| {
            rustix::fs::openat(&parent.fd, c".", flags, mode)
        })?;
        self.hand_over_new(file, &parent, reply)
    }

    fn create_as(
        &self,
        request: &Request<'_>,
        identity: &mut Identity,
        wanted: &CreateIn,
        create: impl FnOnce(Mode) -> Result<OwnedFd, Errno>,
    ) -> Result<OwnedFd, Errno> {
        let (uid, gid) = (request.header.uid, request.header.gid);
        let mode = Mode::from_raw_mode(wanted.mode & 0o7777);
        let caller = identity.create_as(uid, gid, wanted.umask)?;
        caller.with_fsetid(mode.contains(Mode::SGID), || create(mode))
    }

    /// Replies with a file that did not exist: entry, handle, descriptor.
    fn hand_over_new(
        &self,
        file: OwnedFd,
        parent: &Inode,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        // Through the open file, not by name, which may mean something else by now.
        let number = rustix::path::DecInt::from_fd(&file);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path = rustix::fs::openat(self.descriptors(), number.as_c_str(), flags, Mode::empty())?;
        let entry = self.register(parent, path)?;
        reply.push(&entry)?;
        let handed = self.inode(entry.nodeid).and_then(|inode| self.hand_over(file, &inode, reply));
        if handed.is_err() {
            drop(self.inodes().forget(entry.nodeid, 1));
        }
        handed
    }

    /// Replies with an open file: handle and descriptor.
    fn hand_over(&self, file: OwnedFd, inode: &Inode, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let open_flags = if is_settled(inode) { FOPEN_KEEP_CACHE } else { 0 };
        let (fh, handle) = self.add_handle(Handle::File(file))?;
        reply.push(&OpenOut { fh, open_flags, backing_id: 0 })?;
        reply.attach(handle);
        Ok(())
    }

    /// `FUSE_RELEASE`, `FUSE_RELEASEDIR`
    pub(crate) fn release(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let ReleaseIn { fh, .. } = request.take()?;
        let last = self.handles().remove(fh)?;
        drop(last);
        Ok(())
    }

    /// `FUSE_FSYNC`, `FUSE_FSYNCDIR`
    pub(crate) fn fsync(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let FsyncIn { fh, fsync_flags, .. } = request.take()?;
        let handle = self.handles().get(fh)?;
        match &*handle {
            Handle::File(fd) | Handle::Directory(fd, _) => {
                if fsync_flags & FSYNC_FDATASYNC != 0 {
                    rustix::fs::fdatasync(fd)
                } else {
                    rustix::fs::fsync(fd)
                }
            }
            Handle::Root => Ok(()),
        }
    }

    /// `FUSE_SYNCFS`. The guest sends one for each mount that it knows.
    pub(crate) fn syncfs(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        match self.node(request.header.nodeid)? {
            // What the guest cannot change it has not to wait for.
            Node::Inode(inode) if self.is_read_only(&inode) => Ok(()),
            Node::Inode(inode) => rustix::fs::syncfs(self.reopen(&inode, OFlags::RDONLY)?),
            Node::Root => Ok(()),
        }
    }

    /// `FUSE_FALLOCATE`
    pub(crate) fn fallocate(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let wanted: FallocateIn = request.take()?;
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits_retain(wanted.mode);
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        let handle = self.handles().get(wanted.fh)?;
        let file = handle.file().ok_or(Errno::BADF)?;
        rustix::fs::fallocate(file, mode, wanted.offset, wanted.length)
    }

    /// `FUSE_COPY_FILE_RANGE`
    pub(crate) fn copy_file_range(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let wanted: CopyFileRangeIn = request.take()?;
        if wanted.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = {
            let handles = self.handles();
            (handles.get(wanted.fh_in)?, handles.get(wanted.fh_out)?)
        };
        let from = from.file().ok_or(Errno::BADF)?;
        let to = to.file().ok_or(Errno::BADF)?;
        let (mut off_in, mut off_out) = (wanted.off_in, wanted.off_out);
        let len = usize::try_from(wanted.len).unwrap_or(COPY_MAX).min(COPY_MAX);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), len)?;
        reply.push(&WriteOut { size: copied as u32, padding: 0 })
    }
}

/// The flags that reach the host.
fn open_flags(flags: u32) -> Result<OFlags, Errno> {
    let flags = OFlags::from_bits_retain(flags) & OPEN_FLAGS;
    // The fourth access mode allows ioctl only.
    if flags & OFlags::ACCMODE == OFlags::ACCMODE { Err(Errno::INVAL) } else { Ok(flags) }
}

/// Whether the guest can tell by modification time and size, which it has looked up a moment
/// ago, that its cached pages are still those of the file.
fn is_settled(inode: &Inode) -> bool {
    let Ok(found) = inode.attributes() else {
        return false;
    };
    let Ok(seconds) = u64::try_from(found.stx_mtime.tv_sec) else {
        return false;
    };
    let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    // A time in the future makes an error.
    changed
        .and_then(|changed| SystemTime::now().duration_since(changed).ok())
        .is_some_and(|age| age > SETTLED)
}
