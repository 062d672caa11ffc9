//! The file server: shares, tables, and the dispatch of requests to operations.
//!
//! Requests are hostile. Whatever they hold, the answer is a reply or nothing, and nothing
//! outside of the shares is read or changed.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use bulkhead_protocol::limits::SHARES_OF_ALL_MAX;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::DecInt;
use thiserror::Error;

use crate::abi::{ROOT_ID, opcode};
use crate::handle::{Handle, HandleTable};
use crate::identity::Identity;
use crate::inode::{Inode, InodeTable};
use crate::reply::Reply;
use crate::request::Request;
use crate::shares::Shares;

/// Largest message in either direction: the largest value of an extended attribute with its
/// name. A socket takes such a message without contiguous memory, and the default send buffer
/// holds two of them.
pub const MESSAGE_MAX: usize = 68 << 10;

/// Why a server cannot be made.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Looking at what is to be shared.
    #[error("share {name:?}: reading attributes")]
    Share {
        /// Name of the share.
        name: String,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The name is taken.
    #[error("share {0:?} is served already")]
    Twice(String),
    /// More shares than [`SHARES_OF_ALL_MAX`].
    #[error("more than {SHARES_OF_ALL_MAX} shares")]
    TooMany,
}

/// How much the guest may keep open.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Inodes that the guest remembers.
    pub inodes: usize,
    /// Open files and directories.
    pub handles: usize,
}

impl Limits {
    /// Shares out `descriptors`, the process's limit: half for open files, the rest for inodes, a
    /// few for the process itself.
    pub fn within(descriptors: u64) -> Self {
        let all = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let handles = all / 2;
        Self { inodes: (all - handles).saturating_sub(256), handles }
    }
}

/// What is to be an entry of the root directory: name, `O_PATH` descriptor, read-only.
pub type NewShare = (String, OwnedFd, bool);

/// What a node id stands for.
pub(crate) enum Node {
    /// The directory of the shares.
    Root,
    /// Something in a share.
    Inode(Arc<Inode>),
}

/// The file server, shared by its threads.
pub struct Server {
    shares: RwLock<Shares>,
    /// `/proc/self/fd`.
    descriptors: OwnedFd,
    inodes: Mutex<InodeTable>,
    handles: Mutex<HandleTable>,
    /// `FUSE_INIT` has been answered.
    ready: AtomicBool,
    /// The guest sends the long form of `fuse_setxattr_in`.
    setxattr_ext: AtomicBool,
}

impl Server {
    /// A server of `shares`, which reopens files through `descriptors`, the process's
    /// `/proc/self/fd`.
    pub fn new(
        shares: impl IntoIterator<Item = NewShare>,
        descriptors: OwnedFd,
        limits: Limits,
    ) -> Result<Self, ServerError> {
        let server = Self {
            shares: RwLock::default(),
            descriptors,
            inodes: Mutex::new(InodeTable::new(limits.inodes)),
            handles: Mutex::new(HandleTable::new(limits.handles)),
            ready: AtomicBool::new(false),
            setxattr_ext: AtomicBool::new(false),
        };
        server.add_shares(shares)?;
        Ok(server)
    }

    /// Serves `shares` as well; all of them, or none.
    pub fn add_shares(
        &self,
        shares: impl IntoIterator<Item = NewShare>,
    ) -> Result<(), ServerError> {
        let mut all = self.shares.write().unwrap_or_else(PoisonError::into_inner);
        let numbers = all.add(shares)?;
        let mut inodes = self.inodes();
        numbers.into_iter().for_each(|number| inodes.admit(number));
        Ok(())
    }

    /// Serves the shares with these names no more. What the guest has open of them stays open;
    /// everything else it knows of them is stale.
    pub fn remove_shares(&self, names: &[String]) {
        let removed = self.shares.write().unwrap_or_else(PoisonError::into_inner).remove(names);
        for (number, share) in removed {
            let inodes = self.inodes().expel(number);
            drop((inodes, share));
        }
    }

    /// Answers `message`. `None` if the request is one that has no reply.
    pub fn answer<'r>(
        &self,
        message: &[u8],
        reply: &'r mut Reply<'_>,
        identity: &mut Identity,
    ) -> Option<Answer<'r>> {
        let mut request = Request::new(message)?;
        let unique = request.header.unique;
        let outcome = match request.header.opcode {
            opcode::FORGET | opcode::BATCH_FORGET => {
                // Nobody is told of a malformed one.
                let _ = self.forget(&mut request);
                return None;
            }
            opcode::INTERRUPT | opcode::NOTIFY_REPLY => return None,
            _ if !request.is_whole() => Err(Errno::INVAL),
            opcode::INIT => self.init(&mut request, reply),
            _ if !self.ready.load(Ordering::Acquire) => Err(Errno::NOTCONN),
            _ => self.dispatch(&mut request, reply, identity),
        };
        let (bytes, file) = reply.finish(unique, outcome);
        Some(Answer { bytes, file })
    }

    fn dispatch(
        &self,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
        identity: &mut Identity,
    ) -> Result<(), Errno> {
        match request.header.opcode {
            opcode::LOOKUP => self.lookup(request, reply),
            opcode::GETATTR => self.getattr(request, reply),
            opcode::SETATTR => self.setattr(request, reply, identity),
            opcode::READLINK => self.readlink(request, reply),
            opcode::SYMLINK => self.symlink(request, reply, identity),
            opcode::MKNOD => self.mknod(request, reply, identity),
            opcode::MKDIR => self.mkdir(request, reply, identity),
            opcode::UNLINK | opcode::RMDIR => self.unlink(request),
            opcode::RENAME | opcode::RENAME2 => self.rename(request, identity),
            opcode::LINK => self.link(request, reply),
            opcode::OPEN => self.open(request, reply),
            opcode::CREATE => self.create(request, reply, identity),
            opcode::TMPFILE => self.tmpfile(request, reply, identity),
            opcode::STATX => self.statx(request, reply),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(request),
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(request),
            opcode::SYNCFS => self.syncfs(request),
            opcode::FALLOCATE => self.fallocate(request),
            opcode::COPY_FILE_RANGE => self.copy_file_range(request, reply),
            opcode::OPENDIR => self.opendir(request, reply),
            opcode::READDIR => self.readdir(request, reply, false),
            opcode::READDIRPLUS => self.readdir(request, reply, true),
            opcode::STATFS => self.statfs(request, reply),
            opcode::SETXATTR => self.setxattr(request, identity),
            opcode::GETXATTR => self.getxattr(request, reply),
            opcode::LISTXATTR => self.listxattr(request, reply),
            opcode::REMOVEXATTR => self.removexattr(request),
            opcode::DESTROY => {
                self.forget_all();
                Ok(())
            }
            // The VMM serves these with the file that `open` handed to it.
            opcode::READ | opcode::WRITE | opcode::LSEEK => Err(Errno::BADF),
            // Among them FLUSH, ACCESS, IOCTL, GETLK, SETLK and POLL: the guest then has
            // a behaviour of its own, and does not ask again.
            _ => Err(Errno::NOSYS),
        }
    }

    /// Starts a session, ending the one before.
    pub(crate) fn begin(&self, setxattr_ext: bool) {
        self.forget_all();
        self.setxattr_ext.store(setxattr_ext, Ordering::Release);
        self.ready.store(true, Ordering::Release);
    }

    /// Whether the guest sends the long form of `fuse_setxattr_in`.
    pub(crate) fn has_setxattr_ext(&self) -> bool {
        self.setxattr_ext.load(Ordering::Acquire)
    }

    fn forget_all(&self) {
        self.ready.store(false, Ordering::Release);
        self.handles().clear();
        self.inodes().clear();
    }

    /// The shares.
    pub(crate) fn shares(&self) -> RwLockReadGuard<'_, Shares> {
        self.shares.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `nodeid` stands for; `ESTALE` if nothing.
    pub(crate) fn node(&self, nodeid: u64) -> Result<Node, Errno> {
        if nodeid == ROOT_ID {
            return Ok(Node::Root);
        }
        self.inodes().get(nodeid).map(Node::Inode).ok_or(Errno::STALE)
    }

    /// The inode with `nodeid`, for an operation that the root directory does not have.
    pub(crate) fn inode(&self, nodeid: u64) -> Result<Arc<Inode>, Errno> {
        match self.node(nodeid)? {
            Node::Root => Err(Errno::PERM),
            Node::Inode(inode) => Ok(inode),
        }
    }

    /// The inode with `nodeid`, to be changed: `EROFS` for the root directory and for what lies
    /// in a read-only share.
    pub(crate) fn writable(&self, nodeid: u64) -> Result<Arc<Inode>, Errno> {
        match self.node(nodeid)? {
            Node::Inode(inode) if !self.is_read_only(&inode) => Ok(inode),
            Node::Inode(_) | Node::Root => Err(Errno::ROFS),
        }
    }

    /// Whether `inode` lies in a read-only share.
    pub(crate) fn is_read_only(&self, inode: &Inode) -> bool {
        self.shares().get(inode.key.share).is_none_or(|share| share.read_only)
    }

    pub(crate) fn inodes(&self) -> MutexGuard<'_, InodeTable> {
        // A poisoned table is whole: nothing in it can panic half-way.
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn handles(&self) -> MutexGuard<'_, HandleTable> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a regular file or directory that is held by an `O_PATH` descriptor.
    ///
    /// The attack: opening a device node, FIFO or socket that the guest has made acts on the
    /// host's devices, or blocks the server. They are refused by their type, which cannot change
    /// any more as the inode is held.
    pub(crate) fn reopen(&self, inode: &Inode, flags: OFlags) -> Result<OwnedFd, Errno> {
        let kind = match inode.kind {
            FileType::RegularFile => OFlags::empty(),
            FileType::Directory => OFlags::DIRECTORY,
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        };
        let quiet = if self.is_read_only(inode) { OFlags::NOATIME } else { OFlags::empty() };
        let flags = flags | kind | quiet | OFlags::CLOEXEC;
        rustix::fs::openat(&self.descriptors, self.name_of(inode).as_c_str(), flags, Mode::empty())
    }

    /// The name in [`Server::descriptors`], a magic link, that leads to `inode`.
    pub(crate) fn name_of(&self, inode: &Inode) -> DecInt {
        DecInt::from_fd(&inode.fd)
    }

    /// `/proc/self/fd`.
    pub(crate) fn descriptors(&self) -> &OwnedFd {
        &self.descriptors
    }

    /// Adds a handle.
    pub(crate) fn add_handle(&self, handle: Handle) -> Result<(u64, Arc<Handle>), Errno> {
        let handle = Arc::new(handle);
        let fh = self.handles().insert(Arc::clone(&handle))?;
        Ok((fh, handle))
    }
}

/// A complete reply.
pub struct Answer<'r> {
    /// The message.
    pub bytes: &'r [u8],
    /// A file that goes along.
    pub file: Option<std::os::fd::BorrowedFd<'r>>,
}
