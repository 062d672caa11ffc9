//! `struct virtio_net_hdr_v1` (virtio 1.2, section 5.1.6), and what a driver may say in it.
//!
//! Input: a copy of the header of a packet that a hostile guest sends. Output: the header for the
//! host's kernel. The kernel checks headers too, but its parser has had mistakes: what was not
//! agreed on never gets there.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a header; one with `num_buffers`, as every driver of virtio 1 has it.
pub(super) const HEADER_BYTES: usize = size_of::<Header>();
/// Offset of `num_buffers`.
pub(super) const NUM_BUFFERS_OFFSET: usize = 10;
/// Bytes of an Ethernet header.
pub(super) const ETHERNET_BYTES: usize = 14;
/// Bytes of a VLAN tag.
const VLAN_BYTES: usize = 4;
/// Most bytes of an IP packet.
const PACKET_MAX: usize = 65_535;
/// Most bytes of a frame, however it is segmented later.
pub(super) const FRAME_MAX: usize = ETHERNET_BYTES + VLAN_BYTES + PACKET_MAX;
/// Bytes of an Internet checksum.
const CHECKSUM_BYTES: usize = 2;

/// What precedes each packet.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub(super) struct Header {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    pub(super) hdr_len: U16,
    pub(super) gso_size: U16,
    pub(super) csum_start: U16,
    pub(super) csum_offset: U16,
    pub(super) num_buffers: U16,
}

/// Features that decide about headers and frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offloads {
    features: u64,
}

impl Offloads {
    /// What the driver has accepted.
    pub(super) fn new(features: u64) -> Self {
        Self { features }
    }

    fn has(self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// What the kernel may leave to the guest, as `TUNSETOFFLOAD` takes it.
    pub(super) fn of_tap(self) -> libc::c_uint {
        // Without the checksum nothing else can be left (section 5.1.3.1).
        if !self.has(VIRTIO_NET_F_GUEST_CSUM) {
            return 0;
        }
        let segments = [
            (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
            (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
        ];
        let accepted = segments.iter().filter(|(feature, _)| self.has(*feature));
        accepted.fold(libc::TUN_F_CSUM, |all, (_, flag)| all | flag)
    }

    /// Most bytes of header and frame that the guest receives on an interface of `mtu`.
    pub(super) fn rx_bytes_max(self, mtu: u16) -> usize {
        let segments = self.of_tap() & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6) != 0;
        let frame = ETHERNET_BYTES + VLAN_BYTES + usize::from(mtu);
        HEADER_BYTES + if segments { FRAME_MAX } else { frame }
    }

    /// The header for the host's kernel of a frame of `frame_bytes` that the guest sends with
    /// `header`, or `None` if the frame cannot be sent.
    pub(super) fn sent(self, header: Header, frame_bytes: usize) -> Option<Header> {
        if !(ETHERNET_BYTES..=FRAME_MAX).contains(&frame_bytes) {
            return None;
        }
        // Bits that a driver may not set are ignored (section 5.1.6.2.2).
        if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 == 0 {
            let plain = u32::from(header.gso_type) == VIRTIO_NET_HDR_GSO_NONE;
            return plain.then(Header::default);
        }
        let checksum = usize::from(header.csum_start) + usize::from(header.csum_offset);
        if !self.has(VIRTIO_NET_F_CSUM) || checksum + CHECKSUM_BYTES > frame_bytes {
            return None;
        }
        let sent =
            Header { flags: VIRTIO_NET_HDR_F_NEEDS_CSUM as u8, num_buffers: 0.into(), ..header };
        if u32::from(header.gso_type) == VIRTIO_NET_HDR_GSO_NONE {
            return Some(Header { hdr_len: 0.into(), gso_size: 0.into(), ..sent });
        }
        let sized = header.gso_size != 0 && usize::from(header.hdr_len) <= frame_bytes;
        (sized && self.segments(header.gso_type)).then_some(sent)
    }

    /// Whether packets of this kind may be left to the host to segment.
    fn segments(self, gso_type: u8) -> bool {
        let gso_type = u32::from(gso_type);
        let ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN == 0 || self.has(VIRTIO_NET_F_HOST_ECN);
        ecn && match gso_type & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_TCPV4 => self.has(VIRTIO_NET_F_HOST_TSO4),
            VIRTIO_NET_HDR_GSO_TCPV6 => self.has(VIRTIO_NET_F_HOST_TSO6),
            _ => false,
        }
    }
}
