//! The library that turns an OCI bundle into a running sandbox, and its face `bulkhead`.
//!
//! Data goes one way: `config.json` ([`bundle`]) becomes a [`plan::SandboxPlan`] (pure data),
//! which [`sandbox`] turns into two jailed processes and [`supervisor`] watches for as long as
//! they live. Nothing that comes from the guest is trusted: every reply of the agent is bounded
//! and checked in [`agent_client`].
//!
//! A caller that builds containers itself (`bulkhead launch`) makes a
//! [`request::SandboxRequest`] and calls [`supervisor::run_foreground`] or
//! [`supervisor::run_detached`].

pub mod agent_client;
pub mod announce;
pub mod block;
pub mod bundle;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod doctor;
#[cfg(test)]
mod eventually;
pub mod exec;
pub mod failure;
pub mod fd_message;
pub mod hooks;
pub mod image;
pub mod install;
pub mod launch;
pub mod logging;
pub mod network;
pub mod plan;
pub mod preserved;
#[cfg(test)]
mod privilege;
pub mod process;
pub mod request;
pub mod sandbox;
#[cfg(test)]
mod script;
pub mod signal;
pub mod spawn;
pub mod state;
pub mod supervisor;
pub mod uplink;
pub mod vsock;

pub use failure::Failure;
pub use request::{ConsoleMode, RootSource, SandboxOptions, SandboxRequest};
