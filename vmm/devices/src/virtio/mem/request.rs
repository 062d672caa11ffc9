//! From guest bytes to a checked request (virtio 1.2, section 5.15.6).
//!
//! Trust: none in the driver. A request is copied once; whether its range makes sense is decided
//! by [`super::blocks`].

use vm_memory::GuestMemoryMmap;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::virtio::chain::Chain;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// `struct virtio_mem_req`; all kinds that have a range have it in the same place.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawRequest {
    kind: u16,
    padding: [u16; 3],
    addr: u64,
    nb_blocks: u16,
    more_padding: [u16; 3],
}

/// Blocks that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Guest address.
    pub addr: u64,
    /// How many blocks.
    pub blocks: u16,
}

/// What the driver wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Plug(Span),
    Unplug(Span),
    UnplugAll,
    State(Span),
    /// A request that no version of the device knows.
    Unknown,
}

/// How a request has ended: `VIRTIO_MEM_RESP_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Response {
    Ack = 0,
    Nack = 1,
    Busy = 2,
    Error = 3,
}

/// State of blocks: `VIRTIO_MEM_STATE_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum BlockState {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}

/// Bytes of `struct virtio_mem_resp`.
pub(super) const RESPONSE_BYTES: usize = 10;

/// Reads the request in `chain`; `None` if there is none, or no room for a response.
pub(super) fn parse(chain: &Chain, memory: &GuestMemoryMmap) -> Option<Request> {
    if chain.writable_len() < RESPONSE_BYTES {
        return None;
    }
    let raw: RawRequest = chain.read_object(memory, 0).ok()?;
    let span = Span { addr: u64::from_le(raw.addr), blocks: u16::from_le(raw.nb_blocks) };
    Some(match u16::from_le(raw.kind) {
        PLUG => Request::Plug(span),
        UNPLUG => Request::Unplug(span),
        UNPLUG_ALL => Request::UnplugAll,
        STATE => Request::State(span),
        _ => Request::Unknown,
    })
}

/// `struct virtio_mem_resp`; the state counts for [`Request::State`] alone.
pub(super) fn response(response: Response, state: Option<BlockState>) -> [u8; RESPONSE_BYTES] {
    let mut bytes = [0; RESPONSE_BYTES];
    bytes[..2].copy_from_slice(&(response as u16).to_le_bytes());
    let state = state.map_or(0, |state| state as u16);
    bytes[8..].copy_from_slice(&state.to_le_bytes());
    bytes
}
