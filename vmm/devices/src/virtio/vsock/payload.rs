//! The payload of a packet, where it lies in guest memory.

use vm_memory::GuestMemoryMmap;

use crate::virtio::chain::{Chain, ChainError, IoVectors};

use super::packet::HEADER_BYTES;

/// The bytes after the header of a packet that the guest sends.
pub struct Payload<'a> {
    memory: &'a GuestMemoryMmap,
    chain: &'a Chain,
    len: usize,
    vectors: &'a mut IoVectors,
}

impl<'a> Payload<'a> {
    /// `len` bytes after the header in `chain`, or `None` if the chain has fewer. `vectors` is
    /// scratch space.
    pub fn new(
        memory: &'a GuestMemoryMmap,
        chain: &'a Chain,
        len: u32,
        vectors: &'a mut IoVectors,
    ) -> Option<Self> {
        let len = len as usize;
        let room = chain.readable_len().checked_sub(HEADER_BYTES)?;
        (len <= room).then_some(Self { memory, chain, len, vectors })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes from `offset` on, for one system call.
    pub fn vectors_from(&mut self, offset: usize) -> Result<&IoVectors, ChainError> {
        self.vectors.clear();
        self.chain.readable_vectors(
            self.memory,
            HEADER_BYTES + offset,
            self.len - offset,
            self.vectors,
        )?;
        Ok(self.vectors)
    }

    /// Copies bytes at `offset` out of guest memory.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), ChainError> {
        self.chain.read(self.memory, HEADER_BYTES + offset, data)
    }
}
