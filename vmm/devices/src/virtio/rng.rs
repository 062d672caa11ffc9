//! The entropy device (virtio 1.2, section 5.4).
//!
//! `device` is what the transport sees, `queue` what the worker serves, `backend` where the
//! bytes come from.

mod backend;
mod device;
mod queue;
#[cfg(test)]
mod tests;

pub use self::device::{Rng, RngState};
