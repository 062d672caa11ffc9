//! Requests to the kernel's rtnetlink (rtnetlink(7)): one at a time, each acknowledged.

use std::os::fd::OwnedFd;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
};
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
};

/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Largest packet of a dump.
const PACKET_MAX: usize = 32 << 10;

/// A socket.
pub struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    pub fn open() -> Result<Self, Errno> {
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        // No protocol is number 0, NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, None)?;
        Ok(Self { socket })
    }

    /// Carries out a request.
    pub fn execute(&self, kind: u16, flags: u16, message: &dyn Emitable) -> Result<(), Errno> {
        self.call(kind, flags | NLM_F_ACK, message, |_| {})
    }

    /// Hands out the payload of each answer.
    pub fn dump(
        &self,
        kind: u16,
        message: &dyn Emitable,
        each: impl FnMut(&[u8]),
    ) -> Result<(), Errno> {
        self.call(kind, NLM_F_DUMP, message, each)
    }

    fn call(
        &self,
        kind: u16,
        flags: u16,
        message: &dyn Emitable,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Errno> {
        send(&self.socket, &frame(kind, flags | NLM_F_REQUEST, message), SendFlags::empty())?;
        let mut packet = vec![0u8; PACKET_MAX];
        loop {
            let length = match recv(&self.socket, &mut packet[..], RecvFlags::TRUNC) {
                Err(Errno::INTR) => continue,
                result => result?.1,
            };
            let mut rest = packet.get(..length).ok_or(Errno::MSGSIZE)?;
            while let Ok(buffer) = NetlinkBuffer::new_checked(rest) {
                let whole = buffer.length() as usize;
                let payload = &rest[HEADER..whole];
                match buffer.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => return acknowledged(payload),
                    _ => each(payload),
                }
                rest = rest.get(whole.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn frame(kind: u16, flags: u16, message: &dyn Emitable) -> Vec<u8> {
    let length = HEADER + message.buffer_len();
    let mut bytes = vec![0; length];
    bytes[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    message.emit(&mut bytes[HEADER..]);
    bytes
}

/// What the first number of `struct nlmsgerr`, or of the end of a dump, says.
fn acknowledged(payload: &[u8]) -> Result<(), Errno> {
    match payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes)) {
        0.. => Ok(()),
        error => Err(Errno::from_raw_os_error(error.saturating_neg())),
    }
}
