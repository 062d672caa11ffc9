//! The guest's network: what the host says, made so.
//!
//! The guest's initial network namespace is the container's. The host names its interfaces by
//! hardware address, with everything that they have; what the host has named before and names no
//! longer is taken away, what a container has added itself stays.

mod apply;
mod devices;
mod loopback;
mod names;
mod netlink;
#[cfg(test)]
mod tests;
mod wanted;

use std::{io, net::IpAddr};

use bulkhead_protocol::agent::server as api;
use rustix::io::Errno;
use thiserror::Error;

pub use loopback::loopback_up;
pub use names::serve as serve_names;
use wanted::{Mac, Wanted};

/// Why the network is not as the host wants it.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The request is wrong; the field.
    #[error("{0}: {1}")]
    Request(&'static str, &'static str),
    /// No device has this hardware address.
    #[error("no device of the guest has the address {}", mac(.0))]
    NoDevice(Mac),
    /// The bus of the devices.
    #[error("{step} {device}: {source}")]
    Device {
        /// What was done.
        step: &'static str,
        /// To which device.
        device: String,
        /// Why not.
        source: io::Error,
    },
    /// The netlink socket, or a dump.
    #[error("{0}: {1}")]
    Netlink(&'static str, #[source] Errno),
    /// An interface.
    #[error("{step} of interface {name}: {source}")]
    Interface {
        /// What was set.
        step: &'static str,
        /// Its name.
        name: String,
        /// Why not.
        source: Errno,
    },
    /// An address.
    #[error("address {ip}/{prefix}: {source}")]
    Address {
        /// Address.
        ip: IpAddr,
        /// Bits of its prefix.
        prefix: u8,
        /// Why not.
        source: Errno,
    },
    /// A route.
    #[error("route {destination}: {source}")]
    Route {
        /// Where to, and how.
        destination: String,
        /// Why not.
        source: Errno,
    },
    /// A neighbour.
    #[error("neighbor {ip}: {source}")]
    Neighbor {
        /// Its address.
        ip: IpAddr,
        /// Why not.
        source: Errno,
    },
}

impl NetworkError {
    /// Whether the request is to blame.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Request(..))
    }
}

fn mac(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What the host has configured so far.
#[derive(Debug, Default)]
pub struct Network {
    applied: apply::Applied,
}

impl Network {
    /// Makes the network what `request` says. What fails does not keep the rest from being made.
    pub fn configure(&mut self, request: &api::Network) -> Result<(), NetworkError> {
        let wanted = Wanted::try_from(request)?;
        apply::apply(&mut self.applied, wanted)
    }
}
