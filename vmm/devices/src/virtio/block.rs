//! The block device (virtio 1.2, section 5.2).
//!
//! `device` is what the transport sees, `request` turns guest bytes into checked work, `queue` is
//! what the worker serves, `backend` does the work on a file or a block device of the host.

mod backend;
mod counters;
mod device;
mod limiter;
mod queue;
mod request;
#[cfg(test)]
mod tests;

pub use self::backend::{Backing, BackingError};
pub use self::counters::BlockCounts;
pub use self::device::{
    BLOCK_QUEUES_MAX, Block, BlockConfig, BlockError, BlockState, SerialError, SerialNumber,
};
