//! Listings.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use crate::abi::{Dirent, EntryOut, OpenOut, ROOT_ID, ReadIn};
use crate::handle::Handle;
use crate::reply::Reply;
use crate::request::Request;
use crate::server::{Node, Server};
use crate::shares::Share;

/// Bytes of host directory entries read at a time; they lie on the stack.
const READ_AHEAD: usize = 8 << 10;

impl Server {
    /// `FUSE_OPENDIR`
    pub(crate) fn opendir(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let handle = match self.node(request.header.nodeid)? {
            Node::Root => Handle::Root,
            Node::Inode(inode) if inode.kind == FileType::Directory => {
                Handle::Directory(self.reopen(&inode, OFlags::RDONLY)?, Mutex::new(Some(0)))
            }
            Node::Inode(_) => return Err(Errno::NOTDIR),
        };
        let (fh, _) = self.add_handle(handle)?;
        reply.push(&OpenOut { fh, ..OpenOut::default() })
    }

    /// `FUSE_READDIR`, or `FUSE_READDIRPLUS` if `plus`
    pub(crate) fn readdir(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
        plus: bool,
    ) -> Result<(), Errno> {
        let wanted: ReadIn = request.take()?;
        let node = self.node(request.header.nodeid)?;
        let handle = self.handles().get(wanted.fh)?;
        let room = reply.room().min(wanted.size as usize);
        let mut listing = Listing { server: self, node, reply, room, plus, entries: 0 };
        match &*handle {
            Handle::Root => listing.list_shares(wanted.offset),
            Handle::Directory(fd, position) => {
                let mut position = position.lock().unwrap_or_else(PoisonError::into_inner);
                listing.list(fd, &mut position, wanted.offset)
            }
            Handle::File(_) => Err(Errno::NOTDIR),
        }
    }
}

/// A reply that is filled with entries.
struct Listing<'a, 'b> {
    server: &'a Server,
    node: Node,
    reply: &'a mut Reply<'b>,
    /// Bytes that the guest has room for.
    room: usize,
    plus: bool,
    entries: usize,
}

impl Listing<'_, '_> {
    fn list_shares(&mut self, offset: u64) -> Result<(), Errno> {
        let dots =
            [(c".".to_owned(), FileType::Directory), (c"..".to_owned(), FileType::Directory)];
        let named = |share: &Share| {
            let name = CString::new(share.name.as_bytes()).ok()?;
            Some((name, share.root.kind))
        };
        // Copied: each is looked up, which waits where shares are being changed.
        let named: Vec<_> = self.server.shares().iter().filter_map(named).collect();
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (name, kind)) in (1u64..).zip(dots.into_iter().chain(named)).skip(skipped) {
            if !self.add(&name, ROOT_ID, next, kind)? {
                break;
            }
        }
        Ok(())
    }

    /// Lists from `offset`. The descriptor stands at `position`; a seek is saved where the guest
    /// goes on from there.
    fn list(&mut self, fd: &OwnedFd, position: &mut Option<u64>, offset: u64) -> Result<(), Errno> {
        if *position != Some(offset) {
            i64::try_from(offset).map_err(|_| Errno::INVAL)?;
            rustix::fs::seek(fd, SeekFrom::Start(offset))?;
        }
        *position = None;
        let mut buffer = [MaybeUninit::uninit(); READ_AHEAD];
        let mut host = RawDir::new(fd, &mut buffer);
        let mut end = offset;
        while let Some(found) = host.next() {
            let found = found?;
            let (name, next) = (found.file_name(), found.next_entry_cookie());
            // What lies above a share is not the guest's to know.
            let number = if name == c".." { ROOT_ID } else { found.ino() };
            if !self.add(name, number, next, found.file_type())? {
                return Ok(());
            }
            end = next;
        }
        *position = Some(end);
        Ok(())
    }

    /// Adds an entry, after which a listing goes on at `next`. `false` if it does not fit.
    fn add(&mut self, name: &CStr, number: u64, next: u64, kind: FileType) -> Result<bool, Errno> {
        let name_bytes = name.to_bytes();
        let head = size_of::<Dirent>() + if self.plus { size_of::<EntryOut>() } else { 0 };
        let len = (head + name_bytes.len()).next_multiple_of(8);
        let Some(room) = self.room.checked_sub(len) else {
            // A buffer that takes no entry at all would look like the end of the directory.
            return if self.entries == 0 { Err(Errno::INVAL) } else { Ok(false) };
        };
        if self.plus {
            self.reply.push(&self.server.list_entry(&self.node, name))?;
        }
        let namelen = name_bytes.len() as u32;
        let kind = if kind == FileType::Unknown { 0 } else { kind.as_raw_mode() >> 12 };
        self.reply.push(&Dirent { ino: number, off: next, namelen, kind })?;
        self.reply.push_bytes(name_bytes)?;
        self.reply.push_bytes(&[0; 8][..len - head - name_bytes.len()])?;
        self.room = room;
        self.entries += 1;
        Ok(true)
    }
}
