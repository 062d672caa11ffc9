//! From descriptors to a checked chain.
//!
//! Input: a descriptor table of the guest's. Each descriptor is read once; its copy is checked.

use thiserror::Error;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};
use zerocopy::{FromBytes, IntoBytes};

use super::vectors::IoVectors;
use crate::virtio::reach::Reachable;

/// Most descriptors of one chain, indirect ones counted; `IOV_MAX` of Linux, so that a chain fits
/// one vectored system call.
pub const MAX_DESCRIPTORS: usize = 1024;

/// Why a chain, or an access to one, is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// The chain ends where a next descriptor was promised: an index outside of the table, a
    /// loop, an indirect table within an indirect table, an unreadable or misshapen table, or more
    /// than 2^32 bytes.
    #[error("the descriptor chain is broken after {0} descriptors")]
    Broken(usize),
    /// More than [`MAX_DESCRIPTORS`].
    #[error("the descriptor chain has more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// A device-readable descriptor after a device-writable one (section 2.7.4.2).
    #[error("descriptor {0} is readable after a writable one")]
    Order(usize),
    /// A buffer that does not lie in guest memory, or in memory that was not given to the guest.
    #[error("no guest memory at {address:#x} for {len} bytes")]
    Memory {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// Access beyond the end of the readable or writable part.
    #[error("no {len} bytes at offset {offset} of the buffer")]
    Bounds {
        /// Offset in the part, in bytes.
        offset: usize,
        /// Length of the access in bytes.
        len: usize,
    },
}

/// One buffer: a range of guest memory that exists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    address: GuestAddress,
    len: u32,
}

impl Segment {
    fn absent(self) -> ChainError {
        ChainError::Memory { address: self.address.0, len: self.len }
    }
}

/// A checked descriptor chain: a readable part (driver to device), then a writable part.
///
/// It must go back to the driver by `ChainQueue::complete`.
#[derive(Debug)]
#[must_use = "a chain must go back to the driver by ChainQueue::complete"]
pub struct Chain {
    pub(super) head: u16,
    pub(super) segments: Vec<Segment>,
    /// How many of the segments are readable.
    readable_segments: usize,
    readable_len: u32,
    pub(super) writable_len: u32,
}

impl Chain {
    /// Copies and checks the descriptors of `chain` into `segments`, an empty vector.
    pub(super) fn parse(
        mut chain: DescriptorChain<&Reachable<'_>>,
        memory: &Reachable<'_>,
        segments: Vec<Segment>,
    ) -> Result<Self, (Vec<Segment>, ChainError)> {
        let head = chain.head_index();
        let mut parsed =
            Self { head, segments, readable_segments: 0, readable_len: 0, writable_len: 0 };
        match parsed.take_descriptors(&mut chain, memory) {
            Ok(()) => Ok(parsed),
            Err(error) => Err((parsed.segments, error)),
        }
    }

    fn take_descriptors(
        &mut self,
        chain: &mut DescriptorChain<&Reachable<'_>>,
        memory: &Reachable<'_>,
    ) -> Result<(), ChainError> {
        // The iterator bounds loops by the table size and indirection to one level, and ends
        // silently at whatever it refuses. So a chain is whole only if the last descriptor that
        // it gave promised no other; a head that it refused gives none at all.
        let mut promised = true;
        let mut count = 0;
        for descriptor in chain {
            if count == MAX_DESCRIPTORS {
                return Err(ChainError::TooManyDescriptors);
            }
            self.take(count, descriptor, memory)?;
            count += 1;
            promised = descriptor.has_next();
        }
        if promised { Err(ChainError::Broken(count)) } else { Ok(()) }
    }

    fn take(
        &mut self,
        index: usize,
        descriptor: Descriptor,
        memory: &Reachable<'_>,
    ) -> Result<(), ChainError> {
        let (address, len) = (descriptor.addr(), descriptor.len());
        // An empty buffer carries nothing; its address may be anything.
        if len == 0 {
            return Ok(());
        }
        let writable = descriptor.is_write_only();
        let access = if writable { Permissions::Write } else { Permissions::Read };
        if !memory.check_range(address, len as usize, access) {
            return Err(Segment { address, len }.absent());
        }
        if !writable && self.readable_segments < self.segments.len() {
            return Err(ChainError::Order(index));
        }
        let total = if writable { &mut self.writable_len } else { &mut self.readable_len };
        *total = total.checked_add(len).ok_or(ChainError::Broken(index))?;
        self.segments.push(Segment { address, len });
        self.readable_segments += usize::from(!writable);
        Ok(())
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> usize {
        self.readable_len as usize
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> usize {
        self.writable_len as usize
    }

    /// Guest addresses and lengths of the writable buffers.
    pub fn writable_ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.writable().iter().map(|segment| (segment.address.0, segment.len.into()))
    }

    /// Copies `data.len()` bytes at `offset` of the readable part out of guest memory.
    pub fn read(
        &self,
        memory: &GuestMemoryMmap,
        offset: usize,
        data: &mut [u8],
    ) -> Result<(), ChainError> {
        let mut rest = &mut data[..];
        visit(self.readable(), memory, offset, rest.len(), |slice| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(slice.len());
            slice.copy_to(now);
            rest = later;
        })
    }

    /// Copies an object at `offset` of the readable part out of guest memory.
    pub fn read_object<T: FromBytes + IntoBytes>(
        &self,
        memory: &GuestMemoryMmap,
        offset: usize,
    ) -> Result<T, ChainError> {
        let mut object = T::new_zeroed();
        self.read(memory, offset, object.as_mut_bytes())?;
        Ok(object)
    }

    /// Copies `data` to `offset` of the writable part.
    pub fn write(
        &self,
        memory: &GuestMemoryMmap,
        offset: usize,
        data: &[u8],
    ) -> Result<(), ChainError> {
        let mut rest = data;
        visit(self.writable(), memory, offset, rest.len(), |slice| {
            let (now, later) = rest.split_at(slice.len());
            slice.copy_from(now);
            rest = later;
        })
    }

    /// Appends `len` bytes at `offset` of the readable part to `vectors`, for `pwritev`.
    pub fn readable_vectors(
        &self,
        memory: &GuestMemoryMmap,
        offset: usize,
        len: usize,
        vectors: &mut IoVectors,
    ) -> Result<(), ChainError> {
        visit(self.readable(), memory, offset, len, |slice| vectors.push(slice))
    }

    /// Appends `len` bytes at `offset` of the writable part to `vectors`, for `preadv`.
    pub fn writable_vectors(
        &self,
        memory: &GuestMemoryMmap,
        offset: usize,
        len: usize,
        vectors: &mut IoVectors,
    ) -> Result<(), ChainError> {
        visit(self.writable(), memory, offset, len, |slice| vectors.push(slice))
    }

    fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable_segments]
    }

    fn writable(&self) -> &[Segment] {
        &self.segments[self.readable_segments..]
    }
}

/// Calls `each` with the slices of guest memory that hold `len` bytes at `offset` of `segments`,
/// in order. Nothing is visited if the range is not within the segments.
fn visit<'m>(
    segments: &[Segment],
    memory: &'m GuestMemoryMmap,
    offset: usize,
    len: usize,
    mut each: impl FnMut(VolatileSlice<'m>),
) -> Result<(), ChainError> {
    let total: usize = segments.iter().map(|segment| segment.len as usize).sum();
    if offset.checked_add(len).is_none_or(|end| end > total) {
        return Err(ChainError::Bounds { offset, len });
    }
    let (mut skip, mut left) = (offset, len);
    for segment in segments {
        let segment_len = segment.len as usize;
        if skip >= segment_len {
            skip -= segment_len;
            continue;
        }
        if left == 0 {
            break;
        }
        let now = left.min(segment_len - skip);
        // Cannot overflow: the whole segment lies in guest memory.
        let start = GuestAddress(segment.address.0 + skip as u64);
        let slices = GuestMemory::get_slices(memory, start, now, Permissions::ReadWrite)
            .map_err(|_| segment.absent())?;
        for slice in slices {
            each(slice.map_err(|_| segment.absent())?);
        }
        (skip, left) = (0, left - now);
    }
    Ok(())
}
