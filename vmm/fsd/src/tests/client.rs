//! A small FUSE client.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::abi::*;
use crate::pool::{self, PoolError};
use crate::server::{Limits, MESSAGE_MAX, Server};

/// Whether the tests run as root; says so once per test if not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: file ownership needs root");
    }
    root
}

/// An `O_PATH` descriptor.
pub fn path_fd(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).unwrap()
}

/// `/proc/self/fd`
pub fn descriptors() -> OwnedFd {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    rustix::fs::openat(CWD, "/proc/self/fd", flags, Mode::empty()).unwrap()
}

pub fn socket_pair() -> (OwnedFd, OwnedFd) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
}

/// A running server and the VMM's end of its socket.
pub struct Client {
    /// Directory that holds what is shared, and what is not.
    pub dir: tempfile::TempDir,
    pub server: Arc<Server>,
    pub uid: u32,
    pub gid: u32,
    device: Option<OwnedFd>,
    control: Option<OwnedFd>,
    thread: Option<JoinHandle<Result<(), PoolError>>>,
    unique: u64,
}

/// A reply.
#[derive(Debug)]
pub struct Answered {
    pub payload: Vec<u8>,
    pub file: Option<std::fs::File>,
}

impl Answered {
    pub fn take<T: FromBytes>(&self, offset: usize) -> T {
        T::read_from_prefix(&self.payload[offset..]).unwrap().0
    }
}

pub type Outcome = Result<Answered, Errno>;

impl Client {
    /// Serves a new directory `tree` as the share `root`.
    pub fn new() -> Self {
        Self::with(false, Limits::within(4096))
    }

    pub fn read_only() -> Self {
        Self::with(true, Limits::within(4096))
    }

    pub fn with(read_only: bool, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        std::fs::write(dir.path().join("single"), "single").unwrap();
        let shares = [("root", "tree", read_only), ("file", "single", read_only)];
        let shares =
            shares.map(|(name, path, ro)| (name.into(), path_fd(&dir.path().join(path)), ro));
        let server = Arc::new(Server::new(shares, descriptors(), limits).unwrap());
        let (device, ours) = socket_pair();
        let (control, runtime) = socket_pair();
        let serving = Arc::clone(&server);
        let thread = std::thread::spawn(move || {
            // Refused where the tests are not root, who skips what would need it.
            let _ = crate::identity::keep_capabilities();
            pool::serve(&serving, device.as_fd(), control.as_fd(), &|| Ok(()))
        });
        let mut client = Self {
            dir,
            server,
            uid: 0,
            gid: 0,
            device: Some(ours),
            control: Some(runtime),
            thread: Some(thread),
            unique: 0,
        };
        client.init().unwrap();
        client
    }

    pub fn init(&mut self) -> Result<InitOut, Errno> {
        let wanted = InitIn { major: 7, minor: 41, max_readahead: 1 << 17, flags: u32::MAX };
        let answered = self.call(opcode::INIT, 0, &[wanted.as_bytes(), &[0; 48]])?;
        Ok(answered.take(0))
    }

    /// Path of `name` in the shared directory.
    pub fn host(&self, name: &str) -> PathBuf {
        self.dir.path().join("tree").join(name)
    }

    /// Sends the request and waits for its reply.
    pub fn call(&mut self, opcode: u32, nodeid: u64, body: &[&[u8]]) -> Outcome {
        let unique = self.send(opcode, nodeid, body);
        let (header, answered) = self.receive();
        assert_eq!(header.unique, unique, "reply to another request");
        match header.error {
            0 => Ok(answered),
            error => {
                assert!(answered.payload.is_empty() && answered.file.is_none());
                Err(Errno::from_raw_os_error(-error))
            }
        }
    }

    pub fn send(&mut self, opcode: u32, nodeid: u64, body: &[&[u8]]) -> u64 {
        self.unique += 1;
        let body = body.concat();
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: self.unique,
            nodeid,
            uid: self.uid,
            gid: self.gid,
            ..InHeader::default()
        };
        self.send_bytes(&[header.as_bytes(), &body].concat());
        self.unique
    }

    pub fn send_bytes(&self, bytes: &[u8]) {
        let device = self.device.as_ref().unwrap();
        let mut none = rustix::net::SendAncillaryBuffer::default();
        let bytes = [IoSlice::new(bytes)];
        rustix::net::sendmsg(device, &bytes, &mut none, SendFlags::NOSIGNAL).unwrap();
    }

    pub fn receive(&self) -> (OutHeader, Answered) {
        let device = self.device.as_ref().unwrap();
        let mut bytes = vec![0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut vectors = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(device, &mut vectors, &mut ancillary, flags).unwrap();
        bytes.truncate(received.bytes);
        let mut files: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        assert!(files.len() <= 1, "more than one descriptor");
        let header = OutHeader::read_from_prefix(&bytes).unwrap().0;
        assert_eq!(header.len as usize, bytes.len());
        let file = files.pop().map(Into::into);
        (header, Answered { payload: bytes.split_off(size_of::<OutHeader>()), file })
    }

    /// Closes the device's socket and waits for the server.
    pub fn hang_up(&mut self) -> Result<(), PoolError> {
        self.device = None;
        self.thread.take().unwrap().join().unwrap()
    }

    /// Closes the runtime's socket and waits for the server.
    pub fn close_control(&mut self) -> Result<(), PoolError> {
        self.control = None;
        self.thread.take().unwrap().join().unwrap()
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, Errno> {
        self.call(opcode::LOOKUP, parent, &[&z(name)]).map(|a| a.take(0))
    }

    /// The node id of the share `root`.
    pub fn root(&mut self) -> u64 {
        self.lookup(ROOT_ID, "root").unwrap().nodeid
    }

    /// The node id of a path in the share `root`.
    pub fn walk(&mut self, path: &str) -> Result<u64, Errno> {
        let root = self.root();
        path.split('/').try_fold(root, |node, name| Ok(self.lookup(node, name)?.nodeid))
    }

    pub fn getattr(&mut self, nodeid: u64) -> Result<Attr, Errno> {
        let answered = self.call(opcode::GETATTR, nodeid, &[&[0; 16]])?;
        Ok(answered.take::<AttrOut>(0).attr)
    }

    pub fn setattr(&mut self, nodeid: u64, wanted: SetattrIn) -> Result<Attr, Errno> {
        let answered = self.call(opcode::SETATTR, nodeid, &[wanted.as_bytes()])?;
        Ok(answered.take::<AttrOut>(0).attr)
    }

    pub fn create(&mut self, parent: u64, name: &str, flags: OFlags, mode: u32) -> Outcome {
        let wanted =
            CreateIn { flags: flags.bits(), mode: mode | 0o100_000, ..CreateIn::default() };
        self.named(opcode::CREATE, parent, &wanted, name)
    }

    pub fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Result<EntryOut, Errno> {
        let wanted = MkdirIn { mode, umask: 0 };
        self.named(opcode::MKDIR, parent, &wanted, name).map(|a| a.take(0))
    }

    pub fn mknod(
        &mut self,
        parent: u64,
        name: &str,
        mode: u32,
        rdev: u32,
    ) -> Result<EntryOut, Errno> {
        let wanted = MknodIn { mode, rdev, ..MknodIn::default() };
        self.named(opcode::MKNOD, parent, &wanted, name).map(|a| a.take(0))
    }

    pub fn open(&mut self, nodeid: u64, flags: OFlags) -> Outcome {
        let wanted = OpenIn { flags: flags.bits(), open_flags: 0 };
        self.call(opcode::OPEN, nodeid, &[wanted.as_bytes()])
    }

    pub fn opendir(&mut self, nodeid: u64) -> Result<u64, Errno> {
        let answered = self.call(opcode::OPENDIR, nodeid, &[&[0; 8]])?;
        Ok(answered.take::<OpenOut>(0).fh)
    }

    pub fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<(), Errno> {
        let wanted = Rename2In { newdir: to.0, flags, padding: 0 };
        let body: [&[u8]; 3] = [wanted.as_bytes(), &z(from.1), &z(to.1)];
        self.call(opcode::RENAME2, from.0, &body).map(drop)
    }

    /// An operation whose body is a structure and a name.
    pub fn named<T: IntoBytes + Immutable>(
        &mut self,
        opcode: u32,
        nodeid: u64,
        wanted: &T,
        name: &str,
    ) -> Outcome {
        self.call(opcode, nodeid, &[wanted.as_bytes(), &z(name)])
    }

    pub fn setxattr(&mut self, nodeid: u64, name: &str, value: &[u8]) -> Result<(), Errno> {
        let wanted = SetxattrIn { size: value.len() as u32, flags: 0 };
        let ext = SetxattrExt::default();
        let body: [&[u8]; 4] = [wanted.as_bytes(), ext.as_bytes(), &z(name), value];
        self.call(opcode::SETXATTR, nodeid, &body).map(drop)
    }

    pub fn getxattr(&mut self, nodeid: u64, name: &str, size: u32) -> Result<Vec<u8>, Errno> {
        let wanted = GetxattrIn { size, padding: 0 };
        self.named(opcode::GETXATTR, nodeid, &wanted, name).map(|a| a.payload)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.device = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The name with its terminator.
pub fn z(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}
