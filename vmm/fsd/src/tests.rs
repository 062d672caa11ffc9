//! The server as the VMM sees it: its threads run in this process, requests go over a socket,
//! and the shares are directories on a real file system.

mod access;
mod client;
mod escape;
mod hostile;
mod listing;
mod operations;
