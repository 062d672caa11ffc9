//! Extended attributes.
//!
//! They are reached by a descriptor's number as a path in the thread's working directory,
//! `/proc/self/fd` (see [`crate::identity`]): the system calls that take a descriptor refuse
//! `O_PATH` ones, and opening the file proper is impossible for a symbolic link and dangerous
//! for a device.

use std::ffi::CStr;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::abi::{GetxattrIn, GetxattrOut, SETXATTR_ACL_KILL_SGID, SetxattrExt, SetxattrIn};
use crate::identity::Identity;
use crate::reply::{PAYLOAD_MAX, Reply};
use crate::request::Request;
use crate::server::{Node, Server};

const ACCESS_ACL: &CStr = c"system.posix_acl_access";
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";
const FILE_CAPABILITIES: &CStr = c"security.capability";

impl Server {
    /// `FUSE_SETXATTR`
    pub(crate) fn setxattr(
        &self,
        request: &mut Request<'_>,
        identity: &Identity,
    ) -> Result<(), Errno> {
        let SetxattrIn { size, flags } = request.take()?;
        let ext = if self.has_setxattr_ext() { request.take()? } else { SetxattrExt::default() };
        let name = request.attribute_name()?;
        let size = usize::try_from(size).map_err(|_| Errno::TOOBIG)?;
        if size > PAYLOAD_MAX {
            return Err(Errno::TOOBIG);
        }
        let value = request.bytes(size)?;
        let inode = self.writable(request.header.nodeid)?;
        check(name)?;
        let flags = XattrFlags::from_bits_retain(flags);
        if !(XattrFlags::CREATE | XattrFlags::REPLACE).contains(flags) {
            return Err(Errno::INVAL);
        }
        // An access ACL sets the mode too. Who is in the group keeps the set-group-id bit.
        let kills = ext.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0;
        identity.with_fsetid(name == ACCESS_ACL && !kills, || {
            rustix::fs::setxattr(self.name_of(&inode).as_c_str(), name, value, flags)
        })
    }

    /// `FUSE_GETXATTR`
    pub(crate) fn getxattr(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let GetxattrIn { size, .. } = request.take()?;
        let name = request.attribute_name()?;
        let node = self.node(request.header.nodeid)?;
        check(name)?;
        let Node::Inode(inode) = node else {
            return Err(Errno::NODATA);
        };
        let path = self.name_of(&inode);
        if size == 0 {
            let size = rustix::fs::getxattr_query(path.as_c_str(), name)
                .map_err(|errno| why_unread(name, errno))?;
            return push_size(reply, size);
        }
        let free = reply.free();
        let room = free.len().min(size as usize);
        let len = rustix::fs::getxattr(path.as_c_str(), name, &mut free[..room])
            .map_err(|errno| why_unread(name, errno))?;
        reply.advance(len);
        Ok(())
    }

    /// `FUSE_LISTXATTR`
    pub(crate) fn listxattr(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let GetxattrIn { size, .. } = request.take()?;
        let len = match self.node(request.header.nodeid)? {
            Node::Root => 0,
            Node::Inode(inode) => {
                let names = reply.free();
                let path = self.name_of(&inode);
                let len = rustix::fs::listxattr(path.as_c_str(), &mut names[..])?;
                keep_allowed(&mut names[..len])
            }
        };
        if size == 0 {
            return push_size(reply, len);
        }
        if len > size as usize {
            return Err(Errno::RANGE);
        }
        reply.advance(len);
        Ok(())
    }

    /// `FUSE_REMOVEXATTR`
    pub(crate) fn removexattr(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let name = request.attribute_name()?;
        let inode = self.writable(request.header.nodeid)?;
        check(name)?;
        rustix::fs::removexattr(self.name_of(&inode).as_c_str(), name)
    }
}

/// What the guest is told when `name` could not be read. Its kernel reads the access list of a file
/// whenever another than the owner opens it, and goes by the mode where there is none. It makes any
/// other answer the outcome of the open: `EOPNOTSUPP` of a file system without lists would keep
/// all but owners out.
fn why_unread(name: &CStr, errno: Errno) -> Errno {
    let list = [ACCESS_ACL, DEFAULT_ACL].contains(&name);
    if list && errno == Errno::OPNOTSUPP { Errno::NODATA } else { errno }
}

fn push_size(reply: &mut Reply<'_>, size: usize) -> Result<(), Errno> {
    let size = u32::try_from(size).map_err(|_| Errno::OVERFLOW)?;
    reply.push(&GetxattrOut { size, padding: 0 })
}

/// Refuses attributes by which a container could speak to the host.
///
/// The attack: `trusted.overlay.redirect` or `trusted.overlay.opaque` set within a directory that
/// the host later takes as a layer of an overlay (a committed or snapshotted root file system).
/// The host's overlay believes them, as only its root can set them, and shows files of other
/// layers or hides them. In the same way `security.selinux`, `security.ima` and others are labels
/// that the host's security modules believe. File capabilities have no more power than a
/// set-user-id bit, and packages need them.
fn check(name: &CStr) -> Result<(), Errno> {
    let allowed = name.to_bytes().starts_with(b"user.")
        || [ACCESS_ACL, DEFAULT_ACL, FILE_CAPABILITIES].contains(&name);
    if allowed { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

/// Moves the allowed ones of the NUL-terminated `names` to the front; returns their length.
fn keep_allowed(names: &mut [u8]) -> usize {
    let (mut from, mut to) = (0, 0);
    while let Ok(name) = CStr::from_bytes_until_nul(&names[from..]) {
        let len = name.count_bytes() + 1;
        if check(name).is_ok() {
            names.copy_within(from..from + len, to);
            to += len;
        }
        from += len;
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_names_keeps_only_allowed_ones() {
        let mut names = *b"security.selinux\0user.a\0trusted.overlay.opaque\0security.capability\0";
        let len = keep_allowed(&mut names);
        assert_eq!(&names[..len], b"user.a\0security.capability\0");
    }
}
