//! The jail of the processes that handle bytes of the guest.
//!
//! A sandbox process starts as root, takes what it needs as open descriptors, then enters the
//! jail once and for good. [`confine`] takes away the process's reach (namespaces, root
//! directory, ids, capabilities, limits); [`seccomp`] takes away each thread's system calls.
//! The policies of [`policy`] are data: a table per thread kind, a reason per line. What a process
//! may reach of the host's files is set [`apart`] before.
//!
//! The attack this answers: a guest that has found a bug in a device and runs its own code in the
//! process. It finds no file, no process, no network, no user that owns anything, no capability,
//! and no system call beyond those its thread needs.

pub mod apart;
pub mod confine;
pub mod policy;
pub mod seccomp;
