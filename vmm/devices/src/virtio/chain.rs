//! The one choke point between a queue in guest memory and a device (virtio 1.2, section 2.7).
//!
//! Input: descriptor chains that a hostile driver writes, and rewrites while they are read.
//! Output: a [`Chain`], every descriptor of which was copied once and checked, so that no device
//! looks at a descriptor again. A [`Chain`] can only be got from [`ChainQueue::pop`] and only be
//! got rid of by [`ChainQueue::complete`] or [`ChainQueue::complete_unseen`], which return it to
//! the driver.
//!
//! `checked` turns descriptors into chains, `queue` hands them out and back, `used` is the ring on
//! which they go back, `vectors` names their memory to the kernel.
//!
//! Trust: none in what the rings say. The buffers themselves stay guest memory: what is examined
//! is copied out first.

mod checked;
mod queue;
#[cfg(test)]
mod tests;
mod used;
mod vectors;

pub use self::checked::{Chain, ChainError, MAX_DESCRIPTORS};
pub use self::queue::ChainQueue;
pub use self::vectors::IoVectors;
