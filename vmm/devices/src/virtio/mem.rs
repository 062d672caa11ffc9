//! Memory that is added and taken away while the guest runs (virtio 1.2, section 5.15).
//!
//! `device` is what the transport sees, `request` turns guest bytes into checked requests,
//! `blocks` knows what is plugged, `queue` is what the worker serves. Pages go back by
//! [`super::reclaim`].
//!
//! The region is address space at first. The monitor gives the guest the memory of its start, the
//! usable part, when the runtime first asks for so much; until then neither guest nor devices
//! reach it ([`super::Reach`]). Memory in the usable part that is not plugged reads as zeroes; the
//! guest is told not to touch it (`VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`). One that does costs the
//! host no more than what it was given once.

mod blocks;
mod device;
mod queue;
mod request;
#[cfg(test)]
mod tests;

pub use self::blocks::BLOCK_BYTES;
pub use self::device::{Mem, MemCounts, MemState};
