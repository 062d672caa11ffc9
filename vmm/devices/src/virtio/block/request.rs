//! From a descriptor chain to checked work (virtio 1.2, section 5.2.6).
//!
//! Input: a header, ranges and buffers of the guest's choice. Output: [`Work`] within the device,
//! or the status that refuses it. The header and the ranges are copied before they are examined:
//! the guest may change them meanwhile.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestMemoryMmap;
use zerocopy::{FromBytes, IntoBytes, little_endian::U32, little_endian::U64};

use crate::virtio::chain::Chain;

/// Bytes of a sector, the unit of every position.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Bytes of a serial number.
pub(super) const ID_BYTES: usize = 20;
/// Most buffers of one request; with header and status it fits the queue.
pub(super) const SEG_MAX: u32 = 254;
/// Most bytes of one buffer, as Linux has it where a device does not say.
pub(super) const SIZE_MAX: u32 = 64 << 10;
/// Most sectors of one discard.
pub(super) const DISCARD_MAX_SECTORS: u32 = 1 << 21;
/// Most sectors of one write of zeroes, fewer, as they may really have to be written.
pub(super) const ZEROES_MAX_SECTORS: u32 = 1 << 15;

/// Most bytes of data of one request. The attack: buffers that overlap make large requests in a
/// guest of any size, and a pause of the machine waits for all that are in flight.
const DATA_MAX: usize = SEG_MAX as usize * SIZE_MAX as usize;
/// Bytes of the status at the end of the writable part.
const STATUS_BYTES: usize = 1;

/// `struct virtio_blk_req` up to the data.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Header {
    kind: U32,
    reserved: U32,
    sector: U64,
}

const HEADER_BYTES: usize = size_of::<Header>();

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Range {
    sector: U64,
    sectors: U32,
    flags: U32,
}

/// How a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a request asks for. Ranges are in bytes, whole sectors, and lie within the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// File to writable part.
    Read { offset: u64, len: usize },
    /// Readable part, after the header, to file.
    Write { offset: u64, len: usize },
    /// Make completed writes durable.
    Flush,
    /// Give up the contents of a range.
    Discard { offset: u64, len: u64 },
    /// Make a range read as zeroes, and free it if `unmap`.
    Zeroes { offset: u64, len: u64, unmap: bool },
    /// Tell the serial number.
    Id,
}

/// What the device allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Size in sectors; 0 without a backing.
    pub(super) sectors: u64,
    /// No request may change anything.
    pub(super) read_only: bool,
    /// `VIRTIO_BLK_F_DISCARD` was negotiated.
    pub(super) discard: bool,
    /// `VIRTIO_BLK_F_WRITE_ZEROES` was negotiated.
    pub(super) write_zeroes: bool,
}

impl Work {
    /// Bytes that a read or a write moves; nothing else counts against a rate limit.
    pub(super) fn transfer(&self) -> Option<usize> {
        match self {
            Self::Read { len, .. } | Self::Write { len, .. } => Some(*len),
            Self::Flush | Self::Discard { .. } | Self::Zeroes { .. } | Self::Id => None,
        }
    }

    /// What `chain` asks for, or how it is refused.
    pub(super) fn parse(
        chain: &Chain,
        memory: &GuestMemoryMmap,
        limits: &Limits,
    ) -> Result<Self, Status> {
        let header: Header = chain.read_object(memory, 0).map_err(|_| Status::IoError)?;
        let sector = header.sector.get();
        // Neither can underflow: the header was read, and only chains with a status get here.
        let readable = chain.readable_len() - HEADER_BYTES;
        let writable = chain.writable_len().checked_sub(STATUS_BYTES).ok_or(Status::IoError)?;
        match header.kind.get() {
            VIRTIO_BLK_T_IN => {
                let (offset, len) = data(sector, writable, limits)?;
                Ok(Self::Read { offset, len })
            }
            VIRTIO_BLK_T_OUT => {
                let (offset, len) = data(sector, readable, limits)?;
                changeable(limits)?;
                Ok(Self::Write { offset, len })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID if writable >= ID_BYTES => Ok(Self::Id),
            VIRTIO_BLK_T_GET_ID => Err(Status::IoError),
            VIRTIO_BLK_T_DISCARD if limits.discard => {
                let range = Range::read(chain, memory, readable)?;
                let (offset, len, _) = range.check(0, DISCARD_MAX_SECTORS, limits)?;
                Ok(Self::Discard { offset, len })
            }
            VIRTIO_BLK_T_WRITE_ZEROES if limits.write_zeroes => {
                let range = Range::read(chain, memory, readable)?;
                let flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                let (offset, len, flags) = range.check(flags, ZEROES_MAX_SECTORS, limits)?;
                Ok(Self::Zeroes { offset, len, unmap: flags != 0 })
            }
            _ => Err(Status::Unsupported),
        }
    }
}

impl Range {
    /// The one range of the request; more are refused, as one is all that is offered.
    fn read(chain: &Chain, memory: &GuestMemoryMmap, readable: usize) -> Result<Self, Status> {
        if readable != size_of::<Self>() {
            return Err(Status::IoError);
        }
        chain.read_object(memory, HEADER_BYTES).map_err(|_| Status::IoError)
    }

    /// Offset and length in bytes, and the flags.
    fn check(&self, flags: u32, most: u32, limits: &Limits) -> Result<(u64, u64, u32), Status> {
        // Section 5.2.6.2: unknown flags are unsupported, whatever else is wrong.
        if self.flags.get() & !flags != 0 {
            return Err(Status::Unsupported);
        }
        if self.sectors.get() > most {
            return Err(Status::IoError);
        }
        changeable(limits)?;
        let len = u64::from(self.sectors.get());
        let offset = within(self.sector.get(), len, limits)?;
        Ok((offset, len * SECTOR_BYTES, self.flags.get()))
    }
}

/// Offset and length in bytes of a transfer of `len` bytes.
fn data(sector: u64, len: usize, limits: &Limits) -> Result<(u64, usize), Status> {
    if len > DATA_MAX || !(len as u64).is_multiple_of(SECTOR_BYTES) {
        return Err(Status::IoError);
    }
    let offset = within(sector, len as u64 / SECTOR_BYTES, limits)?;
    Ok((offset, len))
}

/// The offset in bytes of `sector`, if it and the `sectors` from it are on the device. Attack: a
/// sector near 2^64 whose sum or product wraps around into the device, or beyond it in the file.
fn within(sector: u64, sectors: u64, limits: &Limits) -> Result<u64, Status> {
    let end = sector.checked_add(sectors).ok_or(Status::IoError)?;
    if end > limits.sectors {
        return Err(Status::IoError);
    }
    sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)
}

fn changeable(limits: &Limits) -> Result<(), Status> {
    if limits.read_only { Err(Status::IoError) } else { Ok(()) }
}

/// Offset in the readable part of the data of a [`Work::Write`].
pub(super) const DATA_OFFSET: usize = HEADER_BYTES;
