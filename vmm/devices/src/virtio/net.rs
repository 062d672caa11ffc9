//! The network device (virtio 1.2, section 5.1): an interface that may come and go.
//!
//! `device` is what the transport sees, `queue` what the worker serves, `rx` and `tx` are the two
//! directions of a queue pair, `control` is the control queue, `header` checks what the guest says
//! of a packet, `backend` moves packets to and from a tap interface of the host.
//!
//! Packets go between guest memory and the host's kernel without a copy in this process.
//!
//! Trust: none in the guest, nor in what comes from the network; the descriptors come from the
//! host's owner.

mod backend;
mod control;
mod counters;
mod device;
mod header;
mod queue;
mod rx;
#[cfg(test)]
mod tests;
mod tx;

pub use self::backend::{Backend, BackendError};
pub use self::counters::Counts;
pub use self::device::{AttachError, Net, NetConfig, NetState};
