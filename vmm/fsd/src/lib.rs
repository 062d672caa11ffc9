//! The file server of a sandbox: live host directories for one guest.
//!
//! Input: FUSE requests, one per message, that the VMM takes from its virtio-fs device; every
//! byte of them is a hostile guest's. The server holds descriptors of the directories and files
//! it may serve and, by its jail, can reach nothing else; it never maps guest memory. Output:
//! replies, and for an opened regular file its descriptor, with which the VMM moves data between
//! file and guest memory itself.
//!
//! How no request leaves the tree: each names one path component, and its directory by a
//! descriptor that is held; nothing is resolved through a symbolic link or `..`. Files are
//! reopened only through the descriptor held, and only if they are regular files or directories.
//! A mount within the tree belongs to it, as it does under any runtime; it is shown to the guest
//! with a device number of its own, and names do not move between mounts. What the host should
//! not show, the runtime leaves out of the mount whose descriptor it sends. The server keeps a
//! copy of that mount, which is mounted nowhere ([`bulkhead_jail::apart`]).

pub mod abi;
pub mod config;
pub mod confine;
mod control;
mod handle;
pub mod identity;
mod inode;
mod ops;
pub mod pool;
pub mod reply;
pub mod request;
pub mod server;
mod shares;
mod table;

#[cfg(test)]
mod tests;
