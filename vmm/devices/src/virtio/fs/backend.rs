//! The socket to the file server, and the files that the server has handed over.
//!
//! Trust: the server may be taken over by a guest. What it sends is bounded here and checked by
//! the queue; a descriptor that is no regular file is dropped, since reading a FIFO or a device
//! would block the thread.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

/// Largest message in either direction; the file server has the same limit. It holds the largest
/// extended attribute, and a socket takes it without contiguous memory.
pub(super) const MESSAGE_MAX: usize = 68 << 10;

/// Why a socket cannot be a backend.
#[derive(Debug, Error)]
pub enum BackendError {
    /// Asking for its type.
    #[error("reading the type of the file server's socket")]
    Type(#[source] io::Error),
    /// Not a socket that keeps messages apart.
    #[error("the file server's socket is not SOCK_SEQPACKET")]
    NotSeqPacket,
}

/// A connection to the file server. It keeps its numbering over resets of the device, so that a
/// late reply is known as such.
pub struct Backend {
    socket: OwnedFd,
    gone: EventFd,
    /// Requests sent.
    pub(super) serial: u64,
}

/// What a message of the server brought.
pub(super) struct Received {
    pub(super) len: usize,
    pub(super) file: Option<OwnedFd>,
}

impl Backend {
    /// `socket` is connected to the file server (`SOCK_SEQPACKET`). `gone` is signalled once when
    /// the server has gone or sent nonsense; every request is an I/O error from then on.
    pub fn new(socket: OwnedFd, gone: EventFd) -> Result<Self, BackendError> {
        let mut kind: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: `kind` and `len` are live and `len` is the size of `kind`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_TYPE,
                (&raw mut kind).cast(),
                &mut len,
            )
        };
        if result != 0 {
            return Err(BackendError::Type(io::Error::last_os_error()));
        }
        if kind != libc::SOCK_SEQPACKET {
            return Err(BackendError::NotSeqPacket);
        }
        Ok(Self { socket, gone, serial: 0 })
    }

    /// Tells the monitor that the server is of no more use.
    pub(super) fn give_up(self) {
        // The counter cannot overflow by one signal for each backend.
        let _ = self.gone.write(1);
    }

    /// Sends one message; `WouldBlock` if the server has too many unread ones.
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        retry(|| {
            // SAFETY: `message` is readable for its length.
            unsafe {
                libc::send(self.socket.as_raw_fd(), message.as_ptr().cast(), message.len(), flags)
            }
        })
        .map(drop)
    }

    /// Receives one message into `buffer`, with at most one descriptor; `WouldBlock` if there is
    /// none. A message that does not fit is an error, and so is the end of the connection.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut vector =
            libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut control = OneDescriptor::default();
        // SAFETY: all-zero bytes are a value of this C structure.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &mut vector;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = ONE_DESCRIPTOR_BYTES;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        let len = retry(|| {
            // SAFETY: `message` points to a live vector and a live control buffer, each writable
            // for the length given.
            unsafe { libc::recvmsg(self.socket.as_raw_fd(), &mut message, flags) }
        })?;
        // First of all, so that no descriptor is lost.
        let file = control.take(message.msg_controllen);
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if message.msg_flags & libc::MSG_TRUNC != 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Received { len, file })
    }
}

impl AsRawFd for Backend {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A control message with one descriptor, as the kernel writes it (cmsg(3)).
#[repr(C)]
struct OneDescriptor {
    header: libc::cmsghdr,
    descriptor: RawFd,
}

/// Not rounded up, or the kernel would put a second descriptor into the padding.
const ONE_DESCRIPTOR_BYTES: usize = size_of::<libc::cmsghdr>() + size_of::<RawFd>();

impl Default for OneDescriptor {
    fn default() -> Self {
        let header = libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 };
        Self { header, descriptor: -1 }
    }
}

impl OneDescriptor {
    /// The descriptor, if the kernel has written one.
    fn take(&self, written: usize) -> Option<OwnedFd> {
        let header = &self.header;
        let present = written >= ONE_DESCRIPTOR_BYTES
            && header.cmsg_len == ONE_DESCRIPTOR_BYTES
            && header.cmsg_level == libc::SOL_SOCKET
            && header.cmsg_type == libc::SCM_RIGHTS;
        // SAFETY: the kernel has just made this descriptor for this process, and nobody else
        // knows it.
        present.then(|| unsafe { OwnedFd::from_raw_fd(self.descriptor) })
    }
}

/// The files that the server has handed over, by `fh`.
pub(super) struct Files {
    files: BTreeMap<u64, File>,
    max: usize,
}

impl Files {
    /// At most `max` files.
    pub(super) fn new(max: usize) -> Self {
        Self { files: BTreeMap::new(), max }
    }

    /// Whether another `opening` files have a place.
    pub(super) fn has_room(&self, opening: usize) -> bool {
        self.files.len().saturating_add(opening) <= self.max
    }

    /// Keeps `file` as `fh`, if it is a regular file.
    pub(super) fn insert(&mut self, fh: u64, file: OwnedFd) -> bool {
        let file = File::from(file);
        let regular = file.metadata().is_ok_and(|found| found.is_file());
        if regular {
            self.files.insert(fh, file);
        }
        regular
    }

    pub(super) fn get(&self, fh: u64) -> Option<&File> {
        self.files.get(&fh)
    }

    pub(super) fn remove(&mut self, fh: u64) {
        self.files.remove(&fh);
    }

    pub(super) fn clear(&mut self) {
        self.files.clear();
    }

    /// The numbers of all files.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.files.keys().copied().collect()
    }
}

/// Calls until no signal interrupts.
pub(super) fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
