//! Bytes of the guest that the host's socket has not taken yet.
//!
//! Bounded by the credit that the guest was given (`credit.rs`); takes memory only while there is
//! something in it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::unix::net::UnixStream;

use crate::virtio::chain::ChainError;

use super::payload::Payload;
use super::socket;

/// Bytes copied out of guest memory at once.
const COPY_BYTES: usize = 4096;

/// A queue of bytes on their way to a host socket.
#[derive(Debug, Default)]
pub struct Pending {
    bytes: VecDeque<u8>,
}

/// What a [`Pending::flush`] came to.
#[derive(Debug)]
pub struct Flushed {
    /// Bytes that the socket took.
    pub sent: usize,
    /// Whether there is nothing left; `WouldBlock` is `Ok(false)`.
    pub outcome: io::Result<bool>,
}

impl Pending {
    /// Bytes held.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends the payload from `offset` on. The caller has made sure that it fits the window.
    pub fn append(&mut self, payload: &Payload<'_>, mut offset: usize) -> Result<(), ChainError> {
        let total = self.bytes.len() + payload.len() - offset;
        if total > self.bytes.capacity() {
            // Windows are powers of two, so that the buffer never outgrows its window.
            let room = total.next_power_of_two().max(COPY_BYTES);
            self.bytes.reserve_exact(room - self.bytes.len());
        }
        let mut copy = [0; COPY_BYTES];
        while offset < payload.len() {
            let part = &mut copy[..COPY_BYTES.min(payload.len() - offset)];
            payload.read(offset, part)?;
            self.bytes.extend(&*part);
            offset += part.len();
        }
        Ok(())
    }

    /// Sends until nothing is left or the socket takes no more.
    pub fn flush(&mut self, stream: &UnixStream) -> Flushed {
        let mut sent = 0;
        while !self.bytes.is_empty() {
            let (first, second) = self.bytes.as_slices();
            match socket::send_own(stream, &[IoSlice::new(first), IoSlice::new(second)]) {
                Ok(count) => {
                    self.bytes.drain(..count);
                    sent += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Flushed { sent, outcome: Ok(false) };
                }
                Err(error) => {
                    return Flushed { sent, outcome: Err(error) };
                }
            }
        }
        self.clear();
        Flushed { sent, outcome: Ok(true) }
    }

    /// Drops everything, the memory too.
    pub fn clear(&mut self) {
        self.bytes = VecDeque::new();
    }
}
