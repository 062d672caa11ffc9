//! Attributes of inodes and of their file systems.

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::abi::{
    Attr, AttrOut, ROOT_ID, SetattrIn, StatfsOut, StatxIn, StatxOut, StatxTime, fattr,
};
use crate::identity::Identity;
use crate::inode::Inode;
use crate::ops::entry::{ATTRIBUTES_VALID, parts};
use crate::reply::Reply;
use crate::request::{NAME_MAX, Request};
use crate::server::{Node, Server};

/// Block size told for what is on no block device.
const BLOCK_SIZE: u32 = 4096;
const NANOSECONDS: u32 = 1_000_000_000;

impl Server {
    /// `FUSE_GETATTR`
    pub(crate) fn getattr(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let attr = match self.node(request.header.nodeid)? {
            Node::Root => root_attr(self.shares().len()),
            Node::Inode(inode) => fuse_attr(&inode.attributes()?),
        };
        push_attr(reply, attr)
    }

    /// `FUSE_STATX`, which guests use where a birth time is asked for. The root directory has
    /// none, and is looked at with `FUSE_GETATTR` as well as ever.
    pub(crate) fn statx(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let _: StatxIn = request.take()?;
        let out = match self.node(request.header.nodeid)? {
            Node::Root => fuse_statx_root(&root_attr(self.shares().len())),
            Node::Inode(inode) => fuse_statx(&inode.attributes_with_birth()?),
        };
        reply.push(&out)
    }

    /// `FUSE_SETATTR`
    pub(crate) fn setattr(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
        identity: &Identity,
    ) -> Result<(), Errno> {
        let wanted: SetattrIn = request.take()?;
        let inode = self.writable(request.header.nodeid)?;
        // In this order: a change of owner clears the set-id bits that the mode may set, and
        // all of them change times.
        self.set_owner(&inode, &wanted)?;
        self.set_mode(&inode, &wanted, identity)?;
        if wanted.valid & fattr::SIZE != 0 {
            self.set_size(&inode, wanted.size)?;
        }
        set_times(&inode, &wanted)?;
        push_attr(reply, fuse_attr(&inode.attributes()?))
    }

    fn set_owner(&self, inode: &Inode, wanted: &SetattrIn) -> Result<(), Errno> {
        let given = |bit, id| match (wanted.valid & bit != 0, id) {
            (false, _) => Ok(None),
            (true, u32::MAX) => Err(Errno::INVAL),
            (true, id) => Ok(Some(id)),
        };
        let uid = given(fattr::UID, wanted.uid)?.map(Uid::from_raw);
        let gid = given(fattr::GID, wanted.gid)?.map(Gid::from_raw);
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        rustix::fs::chownat(&inode.fd, c"", uid, gid, AtFlags::EMPTY_PATH)
    }

    fn set_mode(
        &self,
        inode: &Inode,
        wanted: &SetattrIn,
        identity: &Identity,
    ) -> Result<(), Errno> {
        if wanted.valid & fattr::MODE == 0 {
            return Ok(());
        }
        if inode.kind == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        let mode = Mode::from_raw_mode(wanted.mode & 0o7777);
        // chmod does not act on O_PATH descriptors, but on what the magic link leads to.
        identity.with_fsetid(mode.contains(Mode::SGID), || {
            let name = self.name_of(inode);
            rustix::fs::chmodat(self.descriptors(), name.as_c_str(), mode, AtFlags::empty())
        })
    }

    /// Truncates or extends. Set-id bits are cleared by the kernel, always: the server is without
    /// `CAP_FSETID`, as is the VMM, which writes.
    fn set_size(&self, inode: &Inode, size: u64) -> Result<(), Errno> {
        match inode.kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        let size = i64::try_from(size).map_err(|_| Errno::FBIG)?;
        let file = self.reopen(inode, OFlags::WRONLY)?;
        rustix::fs::ftruncate(file, size as u64)
    }

    /// `FUSE_STATFS`
    pub(crate) fn statfs(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let node = self.node(request.header.nodeid)?;
        let Node::Inode(inode) = node else {
            return reply.push(&StatfsOut {
                bsize: BLOCK_SIZE,
                namelen: NAME_MAX as u32,
                frsize: BLOCK_SIZE,
                ..StatfsOut::default()
            });
        };
        let found = rustix::fs::fstatfs(&inode.fd)?;
        reply.push(&StatfsOut {
            blocks: found.f_blocks,
            bfree: found.f_bfree,
            bavail: found.f_bavail,
            files: found.f_files,
            ffree: found.f_ffree,
            bsize: found.f_bsize as u32,
            namelen: found.f_namelen as u32,
            frsize: found.f_frsize as u32,
            ..StatfsOut::default()
        })
    }
}

fn set_times(inode: &Inode, wanted: &SetattrIn) -> Result<(), Errno> {
    let (set, now) = (fattr::ATIME, fattr::ATIME_NOW);
    let last_access = time(wanted.valid, set, now, wanted.atime, wanted.atimensec)?;
    let (set, now) = (fattr::MTIME, fattr::MTIME_NOW);
    let last_modification = time(wanted.valid, set, now, wanted.mtime, wanted.mtimensec)?;
    let omitted = |time: &Timespec| time.tv_nsec == rustix::fs::UTIME_OMIT;
    if omitted(&last_access) && omitted(&last_modification) {
        return Ok(());
    }
    let times = Timestamps { last_access, last_modification };
    rustix::fs::utimensat(&inode.fd, c"", &times, AtFlags::EMPTY_PATH)
}

/// The form that `utimensat` takes.
fn time(valid: u32, set: u32, now: u32, seconds: u64, nanoseconds: u32) -> Result<Timespec, Errno> {
    let special = |tv_nsec| Ok(Timespec { tv_sec: 0, tv_nsec });
    if valid & now != 0 {
        special(rustix::fs::UTIME_NOW)
    } else if valid & set == 0 {
        special(rustix::fs::UTIME_OMIT)
    } else if nanoseconds >= NANOSECONDS {
        Err(Errno::INVAL)
    } else {
        // Seconds before 1970 come as a negative number in this unsigned field.
        Ok(Timespec { tv_sec: seconds as i64, tv_nsec: nanoseconds.into() })
    }
}

fn push_attr(reply: &mut Reply<'_>, attr: Attr) -> Result<(), Errno> {
    let (attr_valid, attr_valid_nsec) = parts(ATTRIBUTES_VALID);
    reply.push(&AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr })
}

/// Attributes of the directory of `shares` shares.
fn root_attr(shares: usize) -> Attr {
    Attr {
        ino: ROOT_ID,
        mode: FileType::Directory.as_raw_mode() | 0o555,
        nlink: (shares as u32).saturating_add(2),
        blksize: BLOCK_SIZE,
        ..Attr::default()
    }
}

/// Attributes as the protocol has them.
pub(crate) fn fuse_attr(found: &Statx) -> Attr {
    let seconds = |time: StatxTimestamp| time.tv_sec as u64;
    Attr {
        ino: found.stx_ino,
        size: found.stx_size,
        blocks: found.stx_blocks,
        atime: seconds(found.stx_atime),
        mtime: seconds(found.stx_mtime),
        ctime: seconds(found.stx_ctime),
        atimensec: found.stx_atime.tv_nsec,
        mtimensec: found.stx_mtime.tv_nsec,
        ctimensec: found.stx_ctime.tv_nsec,
        mode: found.stx_mode.into(),
        nlink: found.stx_nlink,
        uid: found.stx_uid,
        gid: found.stx_gid,
        rdev: device_number(found.stx_rdev_major, found.stx_rdev_minor),
        blksize: found.stx_blksize,
        flags: 0,
    }
}

/// The longer form of attributes.
fn fuse_statx(found: &Statx) -> StatxOut {
    let (attr_valid, attr_valid_nsec) = parts(ATTRIBUTES_VALID);
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    StatxOut {
        attr_valid,
        attr_valid_nsec,
        mask: found.stx_mask & wanted.bits(),
        blksize: found.stx_blksize,
        nlink: found.stx_nlink,
        uid: found.stx_uid,
        gid: found.stx_gid,
        mode: found.stx_mode,
        ino: found.stx_ino,
        size: found.stx_size,
        blocks: found.stx_blocks,
        atime: statx_time(found.stx_atime),
        btime: statx_time(found.stx_btime),
        ctime: statx_time(found.stx_ctime),
        mtime: statx_time(found.stx_mtime),
        rdev_major: found.stx_rdev_major,
        rdev_minor: found.stx_rdev_minor,
        ..StatxOut::default()
    }
}

/// [`fuse_statx`] of the directory of shares.
fn fuse_statx_root(attr: &Attr) -> StatxOut {
    StatxOut {
        mask: StatxFlags::BASIC_STATS.bits(),
        blksize: attr.blksize,
        nlink: attr.nlink,
        mode: attr.mode as u16,
        ino: attr.ino,
        ..StatxOut::default()
    }
}

fn statx_time(time: StatxTimestamp) -> StatxTime {
    StatxTime { seconds: time.tv_sec, nanoseconds: time.tv_nsec, reserved: 0 }
}

/// The kernel's 32-bit encoding of a device number (`new_encode_dev`).
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}
