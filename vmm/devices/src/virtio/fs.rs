//! The file system device (virtio 1.2, section 5.11).
//!
//! `device` is what the transport sees, `wire` has the FUSE structures that matter here,
//! `request` turns guest bytes into work, `queue` is what the worker serves, `transfer` moves the
//! data of files, `pending` remembers what the file server was asked, `backend` is the socket to
//! it and the files it has handed over.
//!
//! The device understands three requests: READ, WRITE and LSEEK of a file that the server has
//! handed over, which it carries out between that file and guest memory. Every other request
//! goes to the server as one message, and its reply goes back to the guest.
//!
//! Trust: none in the guest, none in the server. Requests go out under numbers of the device's
//! own, so that a guest that uses one number twice, and a server that answers twice or what
//! nobody asked, confuse only themselves.

mod backend;
mod device;
mod pending;
mod queue;
mod request;
#[cfg(test)]
mod tests;
mod transfer;
mod wire;

pub use self::backend::{Backend, BackendError};
pub use self::device::{Fs, FsConfig, FsError, FsState, Tag, TagError};
