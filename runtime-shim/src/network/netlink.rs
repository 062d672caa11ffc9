//! A synchronous rtnetlink socket of this thread's network namespace: requests with their
//! acknowledgement, dumps, and notices of changes (rtnetlink(7)).
//!
//! The kernel is trusted, but what it sends is bounded and lengths are checked all the same.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer,
};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Largest packet of a dump, the kernel's own bound (`NLMSG_GOODSIZE` of large buffers).
const PACKET_MAX: usize = 32 << 10;
/// Most messages of one dump that are taken.
const MESSAGES_MAX: usize = 4096;
/// How often a dump is made anew that a change interrupted. The change brings a notice as well.
const DUMPS_MAX: u32 = 4;
/// Notices that are taken at once.
const NOTICES_MAX: u32 = 256;

/// Everything that changes what a [`super::Snapshot`] holds.
const GROUPS: u32 = (libc::RTMGRP_LINK
    | libc::RTMGRP_NEIGH
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE) as u32;

/// One request.
pub(crate) struct Packet<'a> {
    /// `RTM_…`.
    pub kind: u16,
    /// `NLM_F_…` besides those that every request has.
    pub flags: u16,
    /// What is asked.
    pub message: &'a dyn Emitable,
}

/// A socket for requests.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// The answers to a dump as they come.
#[derive(Debug, Default)]
struct Dump {
    payloads: Vec<Vec<u8>>,
    /// A change has come in between.
    interrupted: bool,
    end: Option<Result<(), Errno>>,
}

/// A socket that becomes readable when the namespace changes.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: OwnedFd,
}

impl Netlink {
    pub fn open() -> Result<Self, Errno> {
        Ok(Self { socket: open(0, SocketFlags::CLOEXEC)?, sequence: 0 })
    }

    /// Carries out one request.
    pub fn execute(&mut self, kind: u16, flags: u16, message: &dyn Emitable) -> Result<(), Errno> {
        let results = self.execute_all(&[Packet { kind, flags, message }])?;
        results.into_iter().next().unwrap_or(Ok(()))
    }

    /// Carries out requests in one system call: whoever is killed has made none or all of them.
    pub fn execute_all(&mut self, packets: &[Packet<'_>]) -> Result<Vec<Result<(), Errno>>, Errno> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for packet in packets {
            self.sequence = self.sequence.wrapping_add(1);
            let flags = packet.flags | (NLM_F_REQUEST | NLM_F_ACK);
            frame(&mut bytes, packet.kind, flags, self.sequence, packet.message);
        }
        send(&self.socket, &bytes, SendFlags::empty())?;
        // Acknowledgements come in the order of the requests.
        let mut results = Vec::with_capacity(packets.len());
        while results.len() < packets.len() {
            self.receive(|kind, sequence, _, payload| {
                if kind == NLMSG_ERROR && sequence == first.wrapping_add(results.len() as u32) {
                    results.push(acknowledged(payload));
                }
            })?;
        }
        Ok(results)
    }

    /// The payloads of the answers to a dump, in the kernel's order.
    pub fn dump(&mut self, kind: u16, message: &dyn Emitable) -> Result<Vec<Vec<u8>>, Errno> {
        for _ in 1..DUMPS_MAX {
            if let (payloads, false) = self.dump_once(kind, message)? {
                return Ok(payloads);
            }
        }
        Ok(self.dump_once(kind, message)?.0)
    }

    /// A dump, and whether a change has interrupted it.
    fn dump_once(
        &mut self,
        kind: u16,
        message: &dyn Emitable,
    ) -> Result<(Vec<Vec<u8>>, bool), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let wanted = self.sequence;
        let mut bytes = Vec::new();
        frame(&mut bytes, kind, NLM_F_REQUEST | NLM_F_DUMP, wanted, message);
        send(&self.socket, &bytes, SendFlags::empty())?;
        let mut dump = Dump::default();
        loop {
            self.receive(|kind, sequence, flags, payload| {
                if sequence == wanted {
                    dump.take(kind, flags, payload);
                }
            })?;
            if let Some(end) = dump.end {
                return end.map(|()| (dump.payloads, dump.interrupted));
            }
        }
    }

    /// Waits for one packet and hands out its messages: type, sequence, flags, payload.
    fn receive(&self, mut each: impl FnMut(u16, u32, u16, &[u8])) -> Result<(), Errno> {
        let mut packet = vec![0u8; PACKET_MAX];
        let length = loop {
            match recv(&self.socket, &mut packet[..], RecvFlags::TRUNC) {
                Err(Errno::INTR) => {}
                result => break result?.1,
            }
        };
        if length > packet.len() {
            return Err(Errno::MSGSIZE);
        }
        let mut rest = &packet[..length];
        while let Ok(buffer) = NetlinkBuffer::new_checked(rest) {
            let whole = buffer.length() as usize;
            each(
                buffer.message_type(),
                buffer.sequence_number(),
                buffer.flags(),
                &rest[HEADER..whole],
            );
            rest = rest.get(whole.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Dump {
    /// Takes one message. Nothing comes behind the end, or behind one too many.
    fn take(&mut self, kind: u16, flags: u16, payload: &[u8]) {
        if self.end.is_some() {
            return;
        }
        self.interrupted |= flags & NLM_F_DUMP_INTR != 0;
        match kind {
            NLMSG_DONE | NLMSG_ERROR => self.end = Some(acknowledged(payload)),
            _ if self.payloads.len() < MESSAGES_MAX => self.payloads.push(payload.to_vec()),
            _ => self.end = Some(Err(Errno::OVERFLOW)),
        }
    }
}

impl Monitor {
    pub fn open() -> Result<Self, Errno> {
        Ok(Self { socket: open(GROUPS, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)? })
    }

    /// Takes notices that have come, at most a bounded number of them. Whether there was one.
    pub fn drain(&self) -> bool {
        let mut notice = [0u8; 64];
        for taken in 0..NOTICES_MAX {
            // What a notice says does not matter, nor that some were dropped: all is read anew.
            match recv(&self.socket, &mut notice[..], RecvFlags::TRUNC) {
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(_) => return taken > 0,
            }
        }
        true
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(groups: u32, flags: SocketFlags) -> Result<OwnedFd, Errno> {
    // No protocol is number 0, NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Appends a message with its `struct nlmsghdr`.
fn frame(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, message: &dyn Emitable) {
    let start = bytes.len();
    let length = HEADER + message.buffer_len();
    bytes.extend_from_slice(&(length as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.resize(start + length.next_multiple_of(4), 0);
    message.emit(&mut bytes[start + HEADER..start + length]);
}

/// What the first number of `struct nlmsgerr`, or of the end of a dump, says.
fn acknowledged(payload: &[u8]) -> Result<(), Errno> {
    let number = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    match number {
        0.. => Ok(()),
        error => Err(Errno::from_raw_os_error(error.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dump_with_one_message_too_many_stays_an_error_behind_its_end() {
        let mut dump = Dump::default();
        for _ in 0..MESSAGES_MAX {
            dump.take(libc::RTM_NEWROUTE, 0, &[]);
        }
        assert_eq!(dump.end, None);
        dump.take(libc::RTM_NEWROUTE, 0, &[]);
        dump.take(NLMSG_DONE, 0, &[0; 4]);
        assert_eq!((dump.end, dump.payloads.len()), (Some(Err(Errno::OVERFLOW)), MESSAGES_MAX));
    }
}
