//! Names come, go and move.

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use crate::abi::{LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn, opcode};
use crate::identity::Identity;
use crate::reply::Reply;
use crate::request::Request;
use crate::server::Server;

impl Server {
    /// `FUSE_READLINK`
    pub(crate) fn readlink(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let inode = self.inode(request.header.nodeid)?;
        if inode.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let len = rustix::fs::readlinkat_raw(&inode.fd, c"", reply.free())?;
        reply.advance(len);
        Ok(())
    }

    /// `FUSE_SYMLINK`
    pub(crate) fn symlink(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
        identity: &mut Identity,
    ) -> Result<(), Errno> {
        let name = request.name()?;
        let target = request.target()?;
        let parent = self.writable(request.header.nodeid)?;
        let caller = identity.create_as(request.header.uid, request.header.gid, 0)?;
        rustix::fs::symlinkat(target, &parent.fd, name)?;
        drop(caller);
        reply.push(&self.enter(&parent, name)?)
    }

    /// `FUSE_MKNOD`. A device node is made as asked, as under any runtime that leaves a
    /// container `CAP_MKNOD`; the server itself never opens one.
    pub(crate) fn mknod(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
        identity: &mut Identity,
    ) -> Result<(), Errno> {
        let wanted: MknodIn = request.take()?;
        let name = request.name()?;
        let kind = FileType::from_raw_mode(wanted.mode);
        match kind {
            FileType::RegularFile
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Fifo
            | FileType::Socket => {}
            _ => return Err(Errno::INVAL),
        }
        let parent = self.writable(request.header.nodeid)?;
        let mode = Mode::from_raw_mode(wanted.mode & 0o7777);
        let (uid, gid) = (request.header.uid, request.header.gid);
        let caller = identity.create_as(uid, gid, wanted.umask)?;
        caller.with_fsetid(mode.contains(Mode::SGID), || {
            rustix::fs::mknodat(&parent.fd, name, kind, mode, wanted.rdev.into())
        })?;
        drop(caller);
        reply.push(&self.enter(&parent, name)?)
    }

    /// `FUSE_MKDIR`
    pub(crate) fn mkdir(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
        identity: &mut Identity,
    ) -> Result<(), Errno> {
        let wanted: MkdirIn = request.take()?;
        let name = request.name()?;
        let parent = self.writable(request.header.nodeid)?;
        let (uid, gid) = (request.header.uid, request.header.gid);
        let caller = identity.create_as(uid, gid, wanted.umask)?;
        rustix::fs::mkdirat(&parent.fd, name, Mode::from_raw_mode(wanted.mode & 0o7777))?;
        drop(caller);
        reply.push(&self.enter(&parent, name)?)
    }

    /// `FUSE_UNLINK`, `FUSE_RMDIR`
    pub(crate) fn unlink(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let name = request.name()?;
        let parent = self.writable(request.header.nodeid)?;
        let flags = if request.header.opcode == opcode::RMDIR {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        rustix::fs::unlinkat(&parent.fd, name, flags)
    }

    /// `FUSE_RENAME`, `FUSE_RENAME2`
    pub(crate) fn rename(
        &self,
        request: &mut Request<'_>,
        identity: &mut Identity,
    ) -> Result<(), Errno> {
        let Rename2In { newdir, flags, .. } = if request.header.opcode == opcode::RENAME2 {
            request.take()?
        } else {
            let RenameIn { newdir } = request.take()?;
            Rename2In { newdir, ..Rename2In::default() }
        };
        let flags = RenameFlags::from_bits_retain(flags);
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | RenameFlags::WHITEOUT;
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        let (old_name, new_name) = (request.name()?, request.name()?);
        let old = self.writable(request.header.nodeid)?;
        let new = self.writable(newdir)?;
        if old.key.share != new.key.share {
            return Err(Errno::XDEV);
        }
        // A whiteout is a new file, and belongs to the caller.
        let _caller = if flags.contains(RenameFlags::WHITEOUT) {
            Some(identity.create_as(request.header.uid, request.header.gid, 0)?)
        } else {
            None
        };
        rustix::fs::renameat_with(&old.fd, old_name, &new.fd, new_name, flags)
    }

    /// `FUSE_LINK`
    pub(crate) fn link(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let LinkIn { oldnodeid } = request.take()?;
        let name = request.name()?;
        let inode = self.writable(oldnodeid)?;
        let parent = self.writable(request.header.nodeid)?;
        if inode.key.share != parent.key.share {
            return Err(Errno::XDEV);
        }
        // The magic link leads to the inode itself, even if that is a symbolic link. The other
        // way, AT_EMPTY_PATH, needs CAP_DAC_READ_SEARCH.
        let from = self.name_of(&inode);
        let flags = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(self.descriptors(), from.as_c_str(), &parent.fd, name, flags)?;
        reply.push(&self.enter(&parent, name)?)
    }
}
