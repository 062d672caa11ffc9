//! Guest memory as the kernel's vectored calls take it.

use vm_memory::VolatileSlice;

/// What [`IoVectors::push_zeroes`] points to.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A list of host addresses of guest memory for one vectored system call or io_uring request.
///
/// It points into the guest's memory, which outlives every device: the holder also holds the
/// `GuestMemoryMmap` that the list was made from. For bytes of this process see
/// [`IoVectors::push_bytes`].
#[derive(Debug, Default)]
pub struct IoVectors {
    vectors: Vec<libc::iovec>,
    len_bytes: usize,
}

// SAFETY: the addresses are valid in every thread of this process. Those of guest memory are
// written by the guest at any time anyway, so that nothing is assumed about the bytes behind them;
// for others whoever has called `push_bytes` answers, and whoever passes the list to the kernel.
unsafe impl Send for IoVectors {}

impl IoVectors {
    /// The vectors: of each chain as many as it has descriptors, more if one crosses a region.
    pub fn as_slice(&self) -> &[libc::iovec] {
        &self.vectors
    }

    /// Sum of all lengths.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Empties the list and keeps its allocation.
    pub fn clear(&mut self) {
        self.vectors.clear();
        self.len_bytes = 0;
    }

    /// Appends bytes of this process. They must live and, if the list is written to, be free to be
    /// written when the list is used.
    pub fn push_bytes(&mut self, start: *const u8, len: usize) {
        self.vectors.push(libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len });
        self.len_bytes += len;
    }

    /// Removes the first `count` vectors.
    pub fn remove_front(&mut self, count: usize) {
        let removed = self.vectors.drain(..count.min(self.vectors.len()));
        self.len_bytes -= removed.map(|vector| vector.iov_len).sum::<usize>();
    }

    /// Removes all vectors but the first `count`.
    pub fn truncate(&mut self, count: usize) {
        let removed = self.vectors.drain(count.min(self.vectors.len())..);
        self.len_bytes -= removed.map(|vector| vector.iov_len).sum::<usize>();
    }

    /// Appends `len` zeroes that are in no guest's memory. Only for lists that are read from: the
    /// zeroes are constant.
    pub fn push_zeroes(&mut self, len: usize) {
        for start in (0..len).step_by(ZEROES.len()) {
            let iov_base = ZEROES.as_ptr().cast_mut().cast();
            self.vectors.push(libc::iovec { iov_base, iov_len: ZEROES.len().min(len - start) });
        }
        self.len_bytes += len;
    }

    pub(super) fn push(&mut self, slice: VolatileSlice<'_>) {
        let iov_base = slice.ptr_guard_mut().as_ptr().cast();
        self.vectors.push(libc::iovec { iov_base, iov_len: slice.len() });
        self.len_bytes += slice.len();
    }
}
