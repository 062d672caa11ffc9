//! The packet header: what the guest says, checked, and what the device answers (virtio 1.2,
//! section 5.10.6).
//!
//! Input: 44 bytes that were copied out of guest memory. Output: a [`Packet`] whose addresses and
//! operation are known to make sense, or what to answer instead. Trust: none; lengths and credit
//! are judged by the connection that the packet belongs to.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Context id of the host (section 5.10.4).
pub const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
const TYPE_STREAM: u16 = 1;

/// `struct virtio_vsock_hdr` (section 5.10.6).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: U64,
    /// Context id of the receiver.
    pub dst_cid: U64,
    /// Port of the sender.
    pub src_port: U32,
    /// Port of the receiver.
    pub dst_port: U32,
    /// Bytes of payload that follow the header.
    pub len: U32,
    /// Socket type.
    pub kind: U16,
    /// Operation.
    pub op: U16,
    /// Flags of the operation.
    pub flags: U32,
    /// Bytes that the sender can buffer for this connection.
    pub buf_alloc: U32,
    /// Bytes that the sender has taken out of that buffer, a free-running counter.
    pub fwd_cnt: U32,
}

/// Size of a header in bytes.
pub const HEADER_BYTES: usize = size_of::<Header>();

/// Operations on a stream (section 5.10.6, `VIRTIO_VSOCK_OP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Refuses or ends one.
    Rst = 3,
    /// The sender will not send, or not receive, any more.
    Shutdown = 4,
    /// Carries payload.
    Rw = 5,
    /// Says how much the sender can buffer.
    CreditUpdate = 6,
    /// Asks for [`Op::CreditUpdate`].
    CreditRequest = 7,
}

impl Op {
    fn parse(op: u16) -> Option<Self> {
        Some(match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The two ports of a connection. Both context ids are fixed, so that this is its whole address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// Port on the host's side.
    pub host: u32,
    /// Port on the guest's side.
    pub guest: u32,
}

/// Directions that one side has ended, the flags of [`Op::Shutdown`] (section 5.10.6.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: takes no more bytes.
    pub receive: bool,
    /// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: sends no more bytes.
    pub send: bool,
}

impl Shutdown {
    /// Both directions.
    pub const BOTH: Self = Self { receive: true, send: true };

    /// Reads the flags of a packet; unknown flags mean nothing.
    pub fn from_flags(flags: u32) -> Self {
        Self { receive: flags & 1 != 0, send: flags & 2 != 0 }
    }

    /// The flags of a packet.
    pub fn flags(self) -> u32 {
        u32::from(self.receive) | u32::from(self.send) << 1
    }

    /// What has been said stays said (section 5.10.6.6).
    pub fn union(self, other: Self) -> Self {
        Self { receive: self.receive || other.receive, send: self.send || other.send }
    }
}

/// What one side says about its buffer in every packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BufferState {
    /// Size of the buffer in bytes.
    pub buf_alloc: u32,
    /// Bytes that have left it, free-running.
    pub fwd_cnt: u32,
}

/// A packet of the guest with valid addresses, type and operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Its connection.
    pub ports: Ports,
    /// Its operation.
    pub op: Op,
    /// Bytes of payload that it claims.
    pub len: u32,
    /// Flags as they came.
    pub flags: u32,
    /// The guest's buffer.
    pub buffer: BufferState,
}

/// An `RST` for a packet that belongs to no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// Context id that the guest had addressed, which must be the source of the answer for the
    /// guest to find its socket.
    pub src_cid: u64,
    /// Ports of the packet answered.
    pub ports: Ports,
    /// Socket type of the packet answered.
    pub kind: u16,
}

impl Reset {
    /// An `RST` for a stream to the host.
    pub fn stream(ports: Ports) -> Self {
        Self { src_cid: HOST_CID, ports, kind: TYPE_STREAM }
    }

    /// The header to send. Its receiver is always the guest: nobody else hears this queue.
    pub fn header(self, guest_cid: u64) -> Header {
        Header {
            src_cid: self.src_cid.into(),
            dst_cid: guest_cid.into(),
            src_port: self.ports.host.into(),
            dst_port: self.ports.guest.into(),
            kind: self.kind.into(),
            op: (Op::Rst as u16).into(),
            ..Header::default()
        }
    }
}

impl Header {
    /// Checks a packet that the guest has sent (section 5.10.6.4).
    ///
    /// The error is the answer that a refused packet gets; an `RST` gets none, lest two sides
    /// reset each other for ever.
    pub fn check(&self, guest_cid: u64) -> Result<Packet, Option<Reset>> {
        let ports = Ports { host: self.dst_port.get(), guest: self.src_port.get() };
        let op = Op::parse(self.op.get());
        let addressed = self.src_cid.get() == guest_cid && self.dst_cid.get() == HOST_CID;
        match op {
            Some(op) if addressed && self.kind.get() == TYPE_STREAM => Ok(Packet {
                ports,
                op,
                len: self.len.get(),
                flags: self.flags.get(),
                buffer: BufferState {
                    buf_alloc: self.buf_alloc.get(),
                    fwd_cnt: self.fwd_cnt.get(),
                },
            }),
            Some(Op::Rst) => Err(None),
            _ => Err(Some(Reset { src_cid: self.dst_cid.get(), ports, kind: self.kind.get() })),
        }
    }

    /// A packet of a connection to the guest.
    pub fn to_guest(guest_cid: u64, ports: Ports, op: Op, buffer: BufferState) -> Self {
        Self {
            src_cid: HOST_CID.into(),
            dst_cid: guest_cid.into(),
            src_port: ports.host.into(),
            dst_port: ports.guest.into(),
            kind: TYPE_STREAM.into(),
            op: (op as u16).into(),
            buf_alloc: buffer.buf_alloc.into(),
            fwd_cnt: buffer.fwd_cnt.into(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST_CID: u64 = 3;

    fn request() -> Header {
        Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: 7.into(),
            dst_port: 9.into(),
            kind: TYPE_STREAM.into(),
            op: (Op::Request as u16).into(),
            buf_alloc: 4096.into(),
            ..Header::default()
        }
    }

    fn answer(change: impl FnOnce(&mut Header)) -> Result<Packet, Option<Reset>> {
        let mut header = request();
        change(&mut header);
        header.check(GUEST_CID)
    }

    #[test]
    fn header_layout_matches_specification() {
        let header = Header::to_guest(
            GUEST_CID,
            Ports { host: 0x0102_0304, guest: 5 },
            Op::Rw,
            BufferState { buf_alloc: 6, fwd_cnt: 7 },
        );
        let bytes = header.as_bytes();
        assert_eq!(bytes.len(), 44);
        assert_eq!(bytes[..16], [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [4, 3, 2, 1, 5, 0, 0, 0]);
        assert_eq!(bytes[24..36], [0, 0, 0, 0, 1, 0, 5, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[36..], [6, 0, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn check_valid_request_gives_packet() {
        let packet = answer(|_| ()).unwrap();
        assert_eq!(packet.ports, Ports { host: 9, guest: 7 });
        assert_eq!(packet.op, Op::Request);
        assert_eq!(packet.buffer.buf_alloc, 4096);
    }

    #[test]
    fn check_foreign_addresses_are_reset() {
        let to_other = answer(|header| header.dst_cid = 5.into()).unwrap_err().unwrap();
        assert_eq!(to_other.src_cid, 5);
        let reply = to_other.header(GUEST_CID);
        assert_eq!((reply.src_port.get(), reply.dst_port.get()), (9, 7));
        assert_eq!((reply.src_cid.get(), reply.dst_cid.get()), (5, GUEST_CID));
        assert!(answer(|header| header.src_cid = 4.into()).unwrap_err().is_some());
    }

    #[test]
    fn check_unknown_type_or_operation_is_reset_with_its_type() {
        let reset = answer(|header| header.kind = 2.into()).unwrap_err().unwrap();
        assert_eq!(reset.header(GUEST_CID).kind.get(), 2);
        for op in [0, 8, u16::MAX] {
            assert!(answer(|header| header.op = op.into()).unwrap_err().is_some());
        }
    }

    #[test]
    fn check_bad_reset_gets_no_answer() {
        let bad = answer(|header| {
            header.op = (Op::Rst as u16).into();
            header.kind = 9.into();
        });
        assert_eq!(bad, Err(None));
    }

    proptest! {
        #[test]
        fn check_any_bytes_gives_only_known_operations(bytes in any::<[u8; HEADER_BYTES]>()) {
            let header = Header::read_from_bytes(&bytes).unwrap();
            if let Ok(packet) = header.check(header.src_cid.get()) {
                prop_assert_eq!(packet.op as u16, header.op.get());
                prop_assert_eq!(header.dst_cid.get(), HOST_CID);
            }
        }

        #[test]
        fn shutdown_flags_survive_a_round_trip(flags in 0u32..4) {
            prop_assert_eq!(Shutdown::from_flags(flags | 0xf0).flags(), flags);
        }
    }
}
