//! What connects a container's new network namespace with the network of the host where no
//! engine does it: for `launch`.
//!
//! Two back ends. The bridge `bulkhead0` with NAT by nftables is taken where `nft` is installed.
//! Without it, and where no port is published, `pasta` of the passt project carries the
//! connections of a container in user mode: nothing of the host's network changes and nobody can
//! reach the container. It is not the first choice because the version of Debian 12 repeats bytes
//! of a stream whose sender ends its direction while the other still goes on, and because the
//! versions around forward what comes from the host's own loopback to the namespace's loopback,
//! where no guest listens.
//!
//! Input: what the caller's flags say ([`Request`], trusted) and the two namespaces. The guest
//! reaches pasta and the host's network stack by packets only. Whatever is made ends with the
//! supervisor's process, or is found by the next that looks: see [`book`].

mod address;
mod book;
mod bridge;
mod choose;
mod link;
mod nft;
mod pasta;
mod port;
mod reserve;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::failure::{Explain, Failure};
use crate::network::NetworkError;
use crate::process::ProcessId;
use crate::spawn::Child;

pub use choose::{Wanted, choose, describe};
pub use port::{Port, PortError, Protocol, ports};
use reserve::Reservation;

/// The interface in the container's namespace.
const INTERFACE: &str = "eth0";
/// Most ports that one container publishes: each holds a descriptor of its supervisor.
pub const PORTS_MAX: usize = 1024;

/// What connects the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// A process of passt's `pasta`.
    Pasta,
    /// The bridge `bulkhead0`.
    Bridge,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pasta => "pasta",
            Self::Bridge => "the bridge bulkhead0 with nftables",
        })
    }
}

/// How a container is to be connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// By what.
    pub backend: Backend,
    /// Ports of the host that lead to the container.
    pub ports: Vec<Port>,
    /// File of the host that gets a line for the container's address, as `/etc/hosts`, and the
    /// container's name in it.
    pub hosts: Option<(PathBuf, String)>,
}

/// A connected namespace; what was made ends when it is dropped.
#[derive(Debug)]
pub struct Uplink {
    _pasta: Option<Child>,
    _bridge: Option<bridge::Connection>,
    _ports: Vec<Reservation>,
}

/// Why a container cannot be connected.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// Nothing is installed that can do it.
    #[error("{0}")]
    Unavailable(&'static str),
    /// A port of the host is in use, or the address is not the host's.
    #[error("publishing port {0}")]
    Port(Port, #[source] io::Error),
    /// The file of addresses.
    #[error("keeping the addresses of {} in {}", bridge::BRIDGE, book::DIRECTORY)]
    Book(#[source] io::Error),
    /// Every network that could be the bridge's is in use.
    #[error("every network from 10.241.0.0/16 to 10.254.0.0/16 is in use")]
    NoSubnet,
    /// Every address of the bridge's network is in use.
    #[error("no address is left in {0}/16")]
    NoAddress(Ipv4Addr),
    /// Entering the host's namespace.
    #[error("entering the network namespace of the host")]
    Host(#[source] io::Error),
    /// A netlink request.
    #[error("{0}")]
    Link(&'static str, #[source] io::Error),
    /// A kernel setting.
    #[error("setting {0}")]
    Sysctl(PathBuf, #[source] io::Error),
    /// Running `nft`.
    #[error("running {0}")]
    Nft(PathBuf, #[source] io::Error),
    /// `nft` refuses.
    #[error("nft: {0}")]
    Rules(String),
    /// Running `pasta`.
    #[error("starting {0}")]
    Pasta(PathBuf, #[source] io::Error),
    /// `pasta` gives up.
    #[error("pasta: {0}")]
    PastaEnded(String),
    /// The file of names.
    #[error("adding the container's address to {0}")]
    Hosts(PathBuf, #[source] io::Error),
    /// Netlink sockets.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

impl Explain for UplinkError {
    fn phase(&self) -> &'static str {
        "connecting the container's network"
    }

    fn fix(&self) -> String {
        let fix = match self {
            Self::Port(..) => "choose another port with -p",
            Self::Unavailable(_) | Self::PastaEnded(_) => "--network none goes without",
            Self::NoSubnet => "give the container a namespace of your own with --network ns:PATH",
            Self::Rules(_) => "load the kernel modules nf_tables, nft_chain_nat, nft_masq, nft_fib",
            _ => "",
        };
        fix.to_owned()
    }
}

/// Connects the namespace that the calling thread is in with `host`, the one that it came from.
/// `holder` is the calling process. `record` is told every process before it runs.
pub fn connect(
    request: &Request,
    holder: ProcessId,
    host: BorrowedFd<'_>,
    record: impl FnOnce(ProcessId) -> Result<(), Failure>,
) -> Result<Uplink, Failure> {
    let ports = link::in_namespace(host, || reserve::reserve(&request.ports))??;
    let mut uplink = Uplink { _pasta: None, _bridge: None, _ports: ports };
    let address = match request.backend {
        Backend::Pasta => {
            uplink._pasta = Some(pasta::start(host, record)?);
            pasta::ADDRESS
        }
        Backend::Bridge => {
            let connection = bridge::connect(holder, &request.ports, host)?;
            let address = connection.address();
            uplink._bridge = Some(connection);
            address
        }
    };
    if let Some((path, name)) = &request.hosts {
        append(path, &format!("{address}\t{name}\n"))
            .map_err(|e| UplinkError::Hosts(path.clone(), e))?;
    }
    Ok(uplink)
}

/// Gives back what the supervisors left that are gone, at the end of a container whose own may
/// be one of them. In the host's namespace.
pub fn collect() -> Result<(), UplinkError> {
    bridge::collect()
}

fn append(path: &std::path::Path, line: &str) -> io::Result<()> {
    use std::io::Write;
    std::fs::File::options().append(true).open(path)?.write_all(line.as_bytes())
}
