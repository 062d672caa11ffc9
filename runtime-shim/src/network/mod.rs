//! The container's network: a namespace of the host, whose interfaces the guest has.
//!
//! Engines populate a network namespace: with interfaces, addresses and routes. The supervisor
//! lives in it. Beside each interface it makes a tap, which is the guest's device, and redirects
//! what arrives at either to the other, without a bridge and without taking an address away. The
//! agent gives the guest's interface name, MTU, addresses, routes and permanent neighbours of the
//! one on the host, and [`Network`] keeps them so while the container runs.
//!
//! Trust: the namespace belongs to who called us; the guest's agent is believed nothing. The
//! guest can send any packet that a program with raw sockets in this namespace could.

mod answers;
mod attributes;
mod cleanup;
mod follow;
mod names;
mod namespace;
pub(crate) mod netlink;
mod read;
mod redirect;
mod snapshot;
mod tap;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::failure::Explain;

pub use cleanup::clean_up;
pub use follow::{Devices, Guest, Network, OpenNet};
pub use names::{are_served as names_are_served, carry as carry_names};
pub use namespace::{NamespaceRecord, enter, follow};
pub use snapshot::Snapshot;

/// Why a container has not the network of its namespace.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// No new namespace.
    #[error("making a network namespace")]
    Make(#[source] io::Error),
    /// The namespace's path.
    #[error("linux.namespaces (network): {0}")]
    Open(PathBuf, #[source] io::Error),
    /// It is something else.
    #[error("linux.namespaces (network): {0} is no network namespace")]
    NotANamespace(PathBuf),
    /// Moving there.
    #[error("entering the network namespace {0}")]
    Enter(PathBuf, #[source] io::Error),
    /// It is the host's own.
    #[error(
        "linux.namespaces (network): {0} is the network of the host, which cannot be shared with \
         a microVM: the host would lose its interfaces to the guest"
    )]
    Host(PathBuf),
    /// Netlink sockets.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// Reading interfaces, addresses, routes.
    #[error("reading the network namespace")]
    Read(#[source] io::Error),
    /// An interface that no guest can have.
    #[error("interface {0} cannot be given to the guest: {1}")]
    Unfit(String, &'static str),
    /// More interfaces than slots.
    #[error("interface {0} is one too many: the guest has place for {1}")]
    Slots(String, usize),
    /// `/dev/net/tun`.
    #[error("/dev/net/tun cannot be opened")]
    TapDevice(#[source] io::Error),
    /// Making a tap.
    #[error("making a tap interface")]
    Tap(#[source] io::Error),
    /// Setting a tap up.
    #[error("setting up the tap of interface {0}")]
    TapSetup(String, #[source] io::Error),
    /// Another sandbox has the interface.
    #[error("interface {0} belongs to the microVM of process {1}")]
    Taken(String, u32),
    /// Somebody has removed the interface meanwhile.
    #[error("interface {0} has vanished while it was being connected")]
    Gone(String),
    /// Traffic control.
    #[error("redirecting interface {0}")]
    Redirect(String, #[source] io::Error),
    /// Whether somebody serves names.
    #[error("reading the sockets of the network namespace")]
    Sockets(#[source] io::Error),
    /// The thread that carries them.
    #[error("starting to carry names")]
    Names(#[source] io::Error),
    /// Ports of the engine's sockets.
    #[error("setting net.ipv4.ip_local_port_range of the network namespace")]
    Ports(#[source] io::Error),
    /// Traffic control, at the end.
    #[error("removing redirections from the network namespace")]
    Clean(#[source] io::Error),
}

impl Explain for NetworkError {
    fn phase(&self) -> &'static str {
        "connecting the container's network"
    }

    fn fix(&self) -> String {
        let fix = match self {
            Self::Make(_) => "run as root",
            Self::Open(..) | Self::NotANamespace(_) => "correct the path in config.json",
            Self::Host(_) => "use a network namespace of the container's own",
            Self::TapDevice(_) => "load the kernel module tun; `bulkhead doctor` tells more",
            Self::Unfit(..) | Self::Slots(..) => "take it out of the container's namespace",
            Self::Taken(..) => "containers cannot share a network namespace; stop the other one",
            Self::Gone(_) => "keep it until the container has ended, or remove it before",
            Self::Redirect(..) => "load the kernel modules sch_ingress, cls_u32 and act_mirred",
            Self::Sockets(_) => "mount /proc",
            Self::Names(_) => "raise pids.max of the sandbox's cgroup",
            Self::Ports(_) => "mount /proc/sys so that it can be written",
            _ => "",
        };
        fix.to_owned()
    }
}
