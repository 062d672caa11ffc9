//! Control socket of a sandbox process: one JSON text in each packet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bulkhead_protocol::limits::CONTROL_MESSAGE_MAX;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SandboxError;
use crate::fd_message;

/// The runtime's end.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    peer: &'static str,
}

impl Channel {
    /// A channel to `peer`, and the peer's end.
    pub fn pair(peer: &'static str) -> Result<(Self, OwnedFd), SandboxError> {
        let (socket, theirs) = packet_pair("a control socket")?;
        Ok((Self { socket, peer }, theirs))
    }

    /// Sends `message`, with the descriptors that it names by index.
    pub fn send(
        &self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SandboxError> {
        let failed = |e| SandboxError::Channel(self.peer, e);
        let bytes = serde_json::to_vec(message).map_err(|e| failed(e.into()))?;
        if bytes.len() > CONTROL_MESSAGE_MAX {
            return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        fd_message::send(&self.socket, &bytes, fds).map(drop).map_err(failed)
    }

    /// The next message that has come, if any. Descriptors with it are not taken.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<T>, SandboxError> {
        let mut buffer = vec![0u8; CONTROL_MESSAGE_MAX];
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let length = match recv(&self.socket, &mut buffer[..], flags) {
            // The end; the process's own end tells more.
            Ok((_, 0)) | Err(Errno::AGAIN | Errno::CONNRESET) => return Ok(None),
            Ok((_, length)) if length > buffer.len() => {
                return Err(SandboxError::Garbage(self.peer));
            }
            Ok((_, length)) => length,
            Err(Errno::INTR) => return Ok(None),
            Err(e) => return Err(SandboxError::Channel(self.peer, e.into())),
        };
        serde_json::from_slice(&buffer[..length])
            .map(Some)
            .map_err(|_| SandboxError::Garbage(self.peer))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Two ends of a packet socket, close-on-exec.
pub(super) fn packet_pair(what: &'static str) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| SandboxError::Plumbing(what, e.into()))
}

#[cfg(test)]
mod tests {
    use bulkhead_protocol::control::{Reply, VmState};

    use super::*;

    #[test]
    fn reply_of_the_peer_is_read_without_waiting() {
        let (channel, peer) = Channel::pair("vmm").unwrap();
        assert!(channel.receive::<Reply>().unwrap().is_none());
        fd_message::send(&peer, br#"{"reply":"done","state":"ready"}"#, &[]).unwrap();
        let reply = channel.receive::<Reply>().unwrap().unwrap();
        assert_eq!(reply, Reply::Done { state: VmState::Ready });
    }

    #[test]
    fn garbage_of_the_peer_is_an_error_and_its_descriptors_are_dropped() {
        let (channel, peer) = Channel::pair("vmm").unwrap();
        let long = vec![b' '; CONTROL_MESSAGE_MAX + 1];
        for bytes in [&b"x"[..], br#"{"reply":"done"}"#, br#"{"reply":"other"}"#, &long] {
            fd_message::send(&peer, bytes, &[peer.as_fd()]).unwrap();
            let received = channel.receive::<Reply>();
            assert!(matches!(received, Err(SandboxError::Garbage("vmm"))), "{received:?}");
        }
        drop(peer);
        assert!(channel.receive::<Reply>().unwrap().is_none());
    }
}
