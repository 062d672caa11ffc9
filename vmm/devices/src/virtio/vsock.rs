//! vsock: stream sockets between guest and host (virtio 1.2, section 5.10), in user space.
//!
//! On the host's side a connection is a UNIX stream socket: of a client of the listening socket,
//! which names a guest port by the line `CONNECT <port>\n` and reads `OK <host port>\n` when the
//! guest has accepted, or one that was made beforehand for one request of the guest.
//!
//! Trust: the guest is hostile; what it says is checked in `packet.rs`, counted in `credit.rs` and
//! judged in `connection.rs`. The host's side is slow and may vanish.

mod backend;
mod client;
mod connection;
mod credit;
mod device;
mod muxer;
mod packet;
mod payload;
mod peer;
mod pending;
mod ports;
mod queue;
mod rx;
mod socket;
mod table;
#[cfg(test)]
mod tests;
mod watch;

pub use backend::Backend;
pub use device::{Vsock, VsockError, VsockState};
