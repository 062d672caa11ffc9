//! The socket to the runtime: one JSON text per message, descriptors attached to the first.
//!
//! Trust: the runtime is trusted; its messages are bounded and checked all the same, because a
//! mistake there must end in an error here. Nothing of the guest arrives on this socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use bulkhead_protocol::control::{CONTROL_FD, Reply, Request};
use bulkhead_protocol::limits::{CONTROL_FDS_MAX, CONTROL_MESSAGE_MAX};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags,
};
use thiserror::Error;

/// Why a message could not be received or sent.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The descriptor is missing: the program was started by hand.
    #[error("descriptor {CONTROL_FD} is not a socket (bulkhead-vmm is started by bulkhead)")]
    Inherit(#[source] io::Error),
    /// Receiving.
    #[error("receiving from the runtime")]
    Receive(#[source] io::Error),
    /// Longer than the limit, or with more descriptors.
    #[error("a message of the runtime is too long")]
    Long,
    /// Not a request.
    #[error("a message of the runtime is not a request")]
    Parse(#[source] serde_json::Error),
    /// Sending.
    #[error("sending to the runtime")]
    Send(#[source] io::Error),
}

/// The monitor's end of the control socket.
pub struct Control {
    socket: OwnedFd,
}

impl Control {
    /// Takes the inherited descriptor.
    pub fn inherit() -> Result<Self, ControlError> {
        // SAFETY: called once, first thing in `main`; nothing else owns this number.
        let socket = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
            .and_then(|()| rustix::net::sockopt::socket_type(&socket))
            .map_err(|source| ControlError::Inherit(source.into()))?;
        Ok(Self { socket })
    }

    /// Waits for the next request and the descriptors that came with it; `None` when the runtime
    /// is gone.
    pub fn receive(&self) -> Result<Option<(Request, Vec<OwnedFd>)>, ControlError> {
        let mut bytes = vec![0u8; CONTROL_MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CONTROL_FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match rustix::net::recvmsg(&self.socket, &mut parts, &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                other => break other.map_err(|source| ControlError::Receive(source.into()))?,
            }
        };
        let fds: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if message.bytes == 0 {
            return Ok(None);
        }
        if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(ControlError::Long);
        }
        let request =
            serde_json::from_slice(&bytes[..message.bytes]).map_err(ControlError::Parse)?;
        Ok(Some((request, fds)))
    }

    /// Sends one reply.
    pub fn send(&self, reply: &Reply) -> Result<(), ControlError> {
        let text = serde_json::to_vec(reply)
            .map_err(|source| ControlError::Send(io::Error::other(source)))?;
        let mut none = SendAncillaryBuffer::default();
        let parts = [IoSlice::new(&text)];
        rustix::net::sendmsg(&self.socket, &parts, &mut none, SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(|source| ControlError::Send(source.into()))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
