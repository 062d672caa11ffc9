//! What the device does itself: it moves data between files and guest memory, and writes replies.
//!
//! Trust: sizes and offsets are the guest's, bounded here by its chain and by what the kernel
//! takes; the bytes themselves nobody looks at. An error is the error number of the reply.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::GuestMemoryMmap;
use zerocopy::{Immutable, IntoBytes};

use super::backend::retry;
use super::request::WRITE_DATA_OFFSET;
use super::wire::{LseekIn, LseekOut, OutHeader, TransferIn, WriteOut};
use crate::virtio::chain::{Chain, IoVectors};

/// Bytes of the header of a reply.
pub(super) const OUT_HEADER: usize = size_of::<OutHeader>();
/// Most bytes of data of one request: `max_write` of the file server, which bounds reads too.
///
/// The attack: buffers that overlap make a request of 4 GiB in a guest of any size. A queue full
/// of them would keep the worker from its stop event, and so the machine from a pause or its end,
/// for minutes.
pub(super) const DATA_MAX: usize = 1 << 20;
/// Most vectors of one system call (`IOV_MAX`).
const VECTORS_MAX: usize = 1024;

/// FUSE_READ; returns the bytes after the header of the reply.
pub(super) fn read(
    file: &File,
    chain: &Chain,
    memory: &GuestMemoryMmap,
    wanted: &TransferIn,
    vectors: &mut IoVectors,
) -> Result<usize, i32> {
    let room = chain.writable_len().saturating_sub(OUT_HEADER);
    let len = room.min(wanted.size as usize);
    if len > DATA_MAX {
        return Err(libc::EINVAL);
    }
    vectors.clear();
    chain.writable_vectors(memory, OUT_HEADER, len, vectors).map_err(|_| libc::EFAULT)?;
    preadv(file, vectors, wanted.offset).map_err(errno)
}

/// FUSE_WRITE; returns the bytes after the header of the reply.
pub(super) fn write(
    file: &File,
    chain: &Chain,
    memory: &GuestMemoryMmap,
    wanted: &TransferIn,
    vectors: &mut IoVectors,
) -> Result<usize, i32> {
    let len = wanted.size as usize;
    if len > DATA_MAX || Some(len) != chain.readable_len().checked_sub(WRITE_DATA_OFFSET) {
        return Err(libc::EINVAL);
    }
    vectors.clear();
    chain.readable_vectors(memory, WRITE_DATA_OFFSET, len, vectors).map_err(|_| libc::EFAULT)?;
    let written = pwritev(file, vectors, wanted.offset).map_err(errno)?;
    let size = u32::try_from(written).map_err(|_| libc::EIO)?;
    put(chain, memory, &WriteOut { size, padding: 0 })
}

/// FUSE_LSEEK; returns the bytes after the header of the reply.
pub(super) fn seek(
    file: &File,
    chain: &Chain,
    memory: &GuestMemoryMmap,
    wanted: &LseekIn,
) -> Result<usize, i32> {
    let offset = lseek(file, wanted.offset, wanted.whence).map_err(errno)?;
    put(chain, memory, &LseekOut { offset })
}

/// Writes the header of a reply before `len` bytes; returns the size of the reply, which is 0 if
/// there is no room for a header.
pub(super) fn reply(
    chain: &Chain,
    memory: &GuestMemoryMmap,
    unique: u64,
    error: i32,
    len: usize,
) -> usize {
    let len = OUT_HEADER + len;
    let header = OutHeader { len: u32::try_from(len).unwrap_or(u32::MAX), error: -error, unique };
    match chain.write(memory, 0, header.as_bytes()) {
        Ok(()) => len,
        Err(_) => 0,
    }
}

/// Writes an object behind the header of a reply; returns its size.
fn put<T: IntoBytes + Immutable>(
    chain: &Chain,
    memory: &GuestMemoryMmap,
    object: &T,
) -> Result<usize, i32> {
    chain.write(memory, OUT_HEADER, object.as_bytes()).map_err(|_| libc::EIO)?;
    Ok(size_of::<T>())
}

fn errno(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Reads from `file` into guest memory. Less than asked for is the end of the file.
fn preadv(file: &File, vectors: &IoVectors, offset: u64) -> io::Result<usize> {
    let (count, offset) = bounds(vectors, offset)?;
    retry(|| {
        // SAFETY: each vector is a range of guest memory, which stays mapped for as long as the
        // device lives; the guest may see any bytes there.
        unsafe { libc::preadv(file.as_raw_fd(), vectors.as_slice().as_ptr(), count, offset) }
    })
}

/// Writes guest memory to `file`.
fn pwritev(file: &File, vectors: &IoVectors, offset: u64) -> io::Result<usize> {
    let (count, offset) = bounds(vectors, offset)?;
    retry(|| {
        // SAFETY: each vector is a range of guest memory, which stays mapped for as long as the
        // device lives; whatever bytes the guest puts there are written.
        unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_slice().as_ptr(), count, offset) }
    })
}

/// The next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) of `file`.
fn lseek(file: &File, offset: u64, whence: u32) -> io::Result<u64> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let whence = match whence as libc::c_int {
        whence @ (libc::SEEK_DATA | libc::SEEK_HOLE) => whence,
        _ => return Err(invalid()),
    };
    let offset = i64::try_from(offset).map_err(|_| invalid())?;
    // SAFETY: lseek takes integers. The position that it moves is used by nobody.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

fn bounds(vectors: &IoVectors, offset: u64) -> io::Result<(libc::c_int, libc::off_t)> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let count = vectors.as_slice().len();
    if count > VECTORS_MAX {
        return Err(invalid());
    }
    let offset = i64::try_from(offset).map_err(|_| invalid())?;
    Ok((count as libc::c_int, offset))
}
