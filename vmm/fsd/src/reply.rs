//! The reply to one request, built in place in a buffer that the thread keeps.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::abi::OutHeader;
use crate::handle::Handle;
use crate::server::MESSAGE_MAX;

/// Most bytes after the header of a reply: a whole extended attribute fits.
pub const PAYLOAD_MAX: usize = 64 << 10;

const HEADER: usize = size_of::<OutHeader>();
const _: () = assert!(HEADER + PAYLOAD_MAX <= MESSAGE_MAX);

/// A reply under construction.
pub struct Reply<'b> {
    buffer: &'b mut [u8],
    len: usize,
    handle: Option<Arc<Handle>>,
}

impl<'b> Reply<'b> {
    /// An empty reply in `buffer`, which has [`MESSAGE_MAX`] bytes.
    pub fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, len: HEADER, handle: None }
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        (HEADER + PAYLOAD_MAX).saturating_sub(self.len)
    }

    /// Appends an object.
    pub fn push<T: IntoBytes + Immutable>(&mut self, object: &T) -> Result<(), Errno> {
        self.push_bytes(object.as_bytes())
    }

    /// Appends bytes.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let free = self.free();
        free.get_mut(..bytes.len()).ok_or(Errno::OVERFLOW)?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// The unused rest of the buffer; what is written there counts after [`Reply::advance`].
    pub fn free(&mut self) -> &mut [u8] {
        let end = (self.len + self.room()).min(self.buffer.len());
        &mut self.buffer[self.len..end]
    }

    /// Appends `len` bytes that were written to [`Reply::free`].
    pub fn advance(&mut self, len: usize) {
        self.len += len.min(self.room());
    }

    /// Sends the file of `handle` along.
    pub(crate) fn attach(&mut self, handle: Arc<Handle>) {
        self.handle = Some(handle);
    }

    /// Completes the reply: header, outcome, and the file that goes along.
    pub fn finish(
        &mut self,
        unique: u64,
        outcome: Result<(), Errno>,
    ) -> (&[u8], Option<BorrowedFd<'_>>) {
        let error = match outcome {
            Ok(()) => 0,
            Err(errno) => {
                self.len = HEADER;
                self.handle = None;
                -errno.raw_os_error()
            }
        };
        let header = OutHeader { len: self.len as u32, error, unique };
        self.buffer[..HEADER].copy_from_slice(header.as_bytes());
        let file = self.handle.as_deref().and_then(Handle::file).map(AsFd::as_fd);
        (&self.buffer[..self.len], file)
    }
}
