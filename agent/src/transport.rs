//! Where the agent listens and dials: vsock in a guest, UNIX sockets of a directory elsewhere.
//!
//! Only the host may talk to the agent. Containers can open vsock sockets too, so every accepted
//! peer must have the host's context id.

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bulkhead_protocol::guest::HOST_CID;
use futures_core::Stream;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with,
        addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque},
        bind, connect, listen, socket_with,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::channel::{Channel, register};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// How the agent reaches its host.
#[derive(Clone, Debug)]
pub enum Transport {
    /// virtio sockets; the peer is the host.
    Vsock,
    /// `DIR/PORT` for the guest's ports and `DIR/host-PORT` for the host's.
    Unix(PathBuf),
}

impl Transport {
    /// Listens on a port of the guest.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        let socket = match self {
            Self::Vsock => {
                let socket = open(AddressFamily::VSOCK)?;
                bind(&socket, &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
                socket
            }
            Self::Unix(directory) => {
                let socket = open(AddressFamily::UNIX)?;
                bind(&socket, &SocketAddrUnix::new(directory.join(port.to_string()))?)?;
                socket
            }
        };
        listen(&socket, BACKLOG)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Listener {
            socket: register(socket, Interest::READABLE)?,
            any_peer: matches!(self, Self::Unix(_)),
        })
    }

    /// Connects to a port of the host. Waits for the answer: nothing else can run before it.
    pub fn dial(&self, port: u32) -> io::Result<OwnedFd> {
        match self {
            Self::Vsock => {
                let socket = open(AddressFamily::VSOCK)?;
                connect(&socket, &VsockAddr::new(HOST_CID, port))?;
                Ok(socket)
            }
            Self::Unix(directory) => {
                let socket = open(AddressFamily::UNIX)?;
                let path = directory.join(format!("host-{port}"));
                connect(&socket, &SocketAddrUnix::new(path)?)?;
                Ok(socket)
            }
        }
    }
}

fn open(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// A listening socket that drops peers other than the host.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    any_peer: bool,
}

impl Listener {
    /// The next connection of the host.
    pub async fn accept(&self) -> io::Result<Channel> {
        std::future::poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            let accepted =
                ready.try_io(|socket| Ok(acceptfrom_with(socket, SocketFlags::CLOEXEC)?));
            match accepted {
                Ok(Ok((socket, peer))) if self.any_peer || is_host(peer.as_ref()) => {
                    return Poll::Ready(Channel::new(socket));
                }
                Ok(Ok(_refused)) => {}
                Ok(Err(error)) if is_transient(&error) => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

/// Errors of one connection, not of the listener (accept(2)).
fn is_transient(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INTR | Errno::CONNABORTED | Errno::CONNRESET | Errno::PROTO)
    )
}

impl Stream for Listener {
    type Item = io::Result<Channel>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_accept(context).map(Some)
    }
}

fn is_host(peer: Option<&SocketAddrAny>) -> bool {
    peer.is_some_and(|peer| VsockAddr::from_any(peer).is_some_and(|a| a.0.svm_cid == HOST_CID))
}

/// `struct sockaddr_vm`.
struct VsockAddr(libc::sockaddr_vm);

impl VsockAddr {
    fn new(cid: u32, port: u32) -> Self {
        Self(libc::sockaddr_vm {
            svm_family: libc::AF_VSOCK as libc::sa_family_t,
            svm_reserved1: 0,
            svm_port: port,
            svm_cid: cid,
            svm_zero: [0; 4],
        })
    }

    fn from_any(any: &SocketAddrAny) -> Option<Self> {
        let is_vsock = any.address_family() == AddressFamily::VSOCK
            && any.addr_len() as usize >= size_of::<libc::sockaddr_vm>();
        // SAFETY: the kernel wrote at least a whole sockaddr_vm, for which every bit pattern is
        // valid; the storage may be less aligned than the structure.
        is_vsock.then(|| Self(unsafe { any.as_ptr().cast::<libc::sockaddr_vm>().read_unaligned() }))
    }
}

// SAFETY: the closure gets a pointer to a whole sockaddr_vm, borrowed from `self`, and its size.
unsafe impl SocketAddrArg for VsockAddr {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        f((&raw const self.0).cast(), size_of::<libc::sockaddr_vm>() as SocketAddrLen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_other_than_the_host_is_refused() {
        let any = |cid| VsockAddr::new(cid, 7).as_any();
        assert!(is_host(Some(&any(HOST_CID))));
        for cid in [0, 1, 3, libc::VMADDR_CID_ANY] {
            assert!(!is_host(Some(&any(cid))), "{cid}");
        }
        assert!(!is_host(None));
        let unix = SocketAddrUnix::new("/x").unwrap().as_any();
        assert!(!is_host(Some(&unix)));
    }
}
