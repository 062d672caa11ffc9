//! The agent binary in namespaces of this machine, driven through its API over UNIX sockets.
//! Needs root, busybox and a mountable cgroup2; says so and passes where one is missing.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod exec;
mod harness;
mod lifecycle;
mod limits;
mod mounts;
mod sharing;
mod spec;
mod streams;
mod terminal;
