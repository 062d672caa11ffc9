//! What the processes of bulkhead say to each other: identifiers, size limits, the VM
//! configuration, the runtime<->VMM control messages, the file server's configuration, the
//! host<->agent API and the frames of questions of names. Pure data: nothing here performs I/O.

#![forbid(unsafe_code)]

#[cfg(any(feature = "agent-client", feature = "agent-server"))]
pub mod agent;
pub mod control;
pub mod guest;
pub mod id;
pub mod limits;
pub mod names;
pub mod share;
pub mod vm;
