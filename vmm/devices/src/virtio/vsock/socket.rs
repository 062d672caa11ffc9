//! System calls on the host's sockets.
//!
//! Nothing here ever blocks or raises `SIGPIPE`, whatever the mode of the socket, which a process
//! on its other end may share: `MSG_DONTWAIT` and `MSG_NOSIGNAL` go with every call. Bytes move
//! straight between socket and guest memory; nobody looks at them.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use crate::virtio::chain::IoVectors;

/// Most vectors of one system call (`IOV_MAX`); what is beyond them is left for the next call.
pub const MAX_VECTORS: usize = 1024;

/// Most reads that [`finish`] does: more than a socket buffer of the usual size holds.
const MAX_FINAL_READS: usize = 64;

/// Receives into guest memory. `Ok(0)` is the end of the stream.
pub fn receive(stream: &UnixStream, room: &IoVectors) -> io::Result<usize> {
    let mut message = message(room.as_slice().as_ptr(), room.as_slice().len());
    retry(|| {
        // SAFETY: `message` points to live vectors, of which each is a range of guest memory that
        // stays mapped for as long as the device lives; the guest may see any bytes there.
        unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) }
    })
}

/// Sends from guest memory.
pub fn send_guest(stream: &UnixStream, bytes: &IoVectors) -> io::Result<usize> {
    send(stream, message(bytes.as_slice().as_ptr(), bytes.as_slice().len()))
}

/// Sends bytes of the device.
pub fn send_own(stream: &UnixStream, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
    // `IoSlice` is an iovec in memory, by its documentation.
    send(stream, message(bytes.as_ptr().cast(), bytes.len()))
}

/// Receives into `buffer`, or only looks at what is there.
pub fn receive_own(stream: &UnixStream, buffer: &mut [u8], peek: bool) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | if peek { libc::MSG_PEEK } else { 0 };
    retry(|| {
        // SAFETY: `buffer` is writable for its length.
        unsafe { libc::recv(stream.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) }
    })
}

/// Closes a stream that the guest has ended, such that its client reads an end of file.
///
/// A UNIX socket that is closed with bytes unread gives its peer a connection reset instead, so
/// what the guest did not want is read away first.
pub fn finish(stream: UnixStream) {
    let mut waste = [0; 8192];
    // With this the client can add no more, so that the reads come to an end.
    let _ = stream.shutdown(Shutdown::Read);
    for _ in 0..MAX_FINAL_READS {
        if !matches!(receive_own(&stream, &mut waste, false), Ok(1..)) {
            break;
        }
    }
}

fn send(stream: &UnixStream, message: libc::msghdr) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    retry(|| {
        // SAFETY: the callers above made `message` of live vectors of readable memory.
        unsafe { libc::sendmsg(stream.as_raw_fd(), &message, flags) }
    })
}

/// A message without address and control data: descriptors that a client sends along are closed
/// by the kernel, and none can be sent.
fn message(vectors: *const libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: all fields are integers and pointers, for which zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.cast_mut();
    message.msg_iovlen = count.min(MAX_VECTORS);
    message
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
