//! The memory balloon (virtio 1.2, section 5.5): takes memory out of the guest's use on request,
//! and gives the host back what the guest reports as free.
//!
//! `device` is what the transport sees, `queue` what the worker serves, `statistics` what the
//! driver tells of the guest. Pages go back by [`super::reclaim`].

mod device;
mod queue;
mod statistics;
#[cfg(test)]
mod tests;

pub use self::device::{Balloon, BalloonCounts, BalloonState};
pub use self::statistics::GuestFigures;
