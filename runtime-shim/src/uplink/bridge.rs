//! The bridge `bulkhead0`: one pair of interfaces for each container, addresses from the
//! [`Book`], and the rules of [`super::nft`].
//!
//! It is made with the first container and goes with the last. IPv4 only. `net.ipv4.ip_forward`
//! is switched on, as Docker does, and stays: others may have come to need it.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::book::{Book, Lease, is_gone};
use super::{Port, UplinkError, address, link, nft};
use crate::network::netlink::Netlink;
use crate::process::ProcessId;

/// Name of the bridge.
pub(super) const BRIDGE: &str = "bulkhead0";
/// Where the kernel's settings for IPv4 are, of the calling thread's namespace.
const IPV4: &str = "/proc/sys/net/ipv4";

/// A container's place at the bridge; given back when dropped.
#[derive(Debug)]
pub(super) struct Connection {
    lease: Lease,
    host: OwnedFd,
}

impl Connection {
    /// The container's address.
    pub fn address(&self) -> Ipv4Addr {
        self.lease.address
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let holder = self.lease.holder;
        // What is left now is found by the next container, or by `delete --force`.
        let _ = link::in_namespace(self.host.as_fd(), || give_back(|other| other == holder));
    }
}

/// Connects the calling thread's namespace with the bridge in `host`.
pub(super) fn connect(
    holder: ProcessId,
    ports: &[Port],
    host: BorrowedFd<'_>,
) -> Result<Connection, UplinkError> {
    let own = std::fs::File::open("/proc/thread-self/ns/net").map_err(UplinkError::Host)?;
    let host = host.try_clone_to_owned().map_err(UplinkError::Host)?;
    let made = link::in_namespace(host.as_fd(), || host_side(holder, ports, own.as_fd()))?;
    let (lease, gateway) = made?;
    let connection = Connection { lease, host };
    container_side(connection.address(), gateway)?;
    Ok(connection)
}

/// Gives back the leases of processes that are gone.
pub(super) fn collect() -> Result<(), UplinkError> {
    give_back(is_gone)
}

/// In the host's namespace: the lease, what is made for it, and the bridge's address.
fn host_side(
    holder: ProcessId,
    ports: &[Port],
    container: BorrowedFd<'_>,
) -> Result<(Lease, Ipv4Addr), UplinkError> {
    let mut book = Book::open().map_err(UplinkError::Book)?;
    let mut netlink = open()?;
    clear(&mut netlink, &book.leases.strike(is_gone))?;
    if book.leases.network.is_none() && link::index(BRIDGE).is_some() {
        // The dead have left it; with its route their network would never be free again.
        settle(&mut netlink, &book)?;
    }
    let lease = book.leases.take(holder, ports, || {
        let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
        address::free_network(&address::routes(&routes))
    })?;
    book.save().map_err(UplinkError::Book)?;
    let network = book.leases.network.ok_or(UplinkError::NoSubnet)?;
    let gateway = address::gateway(network);
    let made = make(&mut netlink, &book, &lease, gateway, container);
    if let Err(error) = made {
        // The first error is the one to tell.
        book.leases.strike(|other| other == holder);
        let _ = clear(&mut netlink, std::slice::from_ref(&lease));
        let _ = settle(&mut netlink, &book).and_then(|()| book.save().map_err(UplinkError::Book));
        return Err(error);
    }
    Ok((lease, gateway))
}

fn make(
    netlink: &mut Netlink,
    book: &Book,
    lease: &Lease,
    gateway: Ipv4Addr,
    container: BorrowedFd<'_>,
) -> Result<(), UplinkError> {
    let step = |what| move |e: rustix::io::Errno| UplinkError::Link(what, e.into());
    let bridge = ready_bridge(netlink, gateway)?;
    settle(netlink, book)?;
    let name = address::link_name(lease.address);
    // One of a lease of old whose namespace the kernel has not taken down yet.
    link::remove(netlink, &name).map_err(step("removing an old interface"))?;
    let mac = address::mac(lease.address);
    let peer = link::Peer { name: super::INTERFACE, mac, namespace: container };
    link::make_pair(netlink, &name, bridge, &peer)
        .map_err(step("making the container's interface"))?;
    link::allow_hairpin(netlink, &name).map_err(step("setting up the container's port"))
}

/// The bridge, made and set up if it is not there. Gives its index.
fn ready_bridge(netlink: &mut Netlink, gateway: Ipv4Addr) -> Result<u32, UplinkError> {
    let step = |what| move |e: rustix::io::Errno| UplinkError::Link(what, e.into());
    match link::make_bridge(netlink, BRIDGE) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(step("making the bridge")(e)),
    }
    let gone = || UplinkError::Link("finding the bridge", std::io::ErrorKind::NotFound.into());
    let index = link::index(BRIDGE).ok_or_else(gone)?;
    link::add_address(netlink, index, gateway).map_err(step("giving the bridge its address"))?;
    link::bring_up(netlink, index).map_err(step("bringing the bridge up"))?;
    set("ip_forward", "1")?;
    // Published ports answer on the host's loopback, too; the rules keep everybody behind the
    // bridge from it.
    set(&format!("conf/{BRIDGE}/route_localnet"), "1")?;
    Ok(index)
}

/// Writes a setting, unless it has the value: a host whose `/proc/sys` is read-only may have it.
fn set(name: &str, value: &str) -> Result<(), UplinkError> {
    let path = Path::new(IPV4).join(name);
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|e| UplinkError::Sysctl(path, e))
}

/// In the container's namespace: what the guest is to have.
fn container_side(address: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), UplinkError> {
    let step = |what| move |e: rustix::io::Errno| UplinkError::Link(what, e.into());
    let gone = || UplinkError::Link("finding eth0", std::io::ErrorKind::NotFound.into());
    let mut netlink = open()?;
    let index = link::index(super::INTERFACE).ok_or_else(gone)?;
    link::add_address(&mut netlink, index, address).map_err(step("giving eth0 its address"))?;
    link::bring_up(&mut netlink, index).map_err(step("bringing eth0 up"))?;
    link::add_default_route(&mut netlink, index, gateway).map_err(step("giving eth0 its route"))
}

/// Strikes leases out and removes what was made for them, in the host's namespace.
fn give_back(which: impl Fn(ProcessId) -> bool) -> Result<(), UplinkError> {
    let Some(mut book) = Book::open_existing().map_err(UplinkError::Book)? else {
        return Ok(());
    };
    let struck = book.leases.strike(which);
    if struck.is_empty() {
        return Ok(());
    }
    let mut netlink = open()?;
    clear(&mut netlink, &struck)?;
    settle(&mut netlink, &book)?;
    // Last: whoever is killed before has given nothing back, and the next does it all again.
    book.save().map_err(UplinkError::Book)
}

/// Removes the interfaces of `leases`.
fn clear(netlink: &mut Netlink, leases: &[Lease]) -> Result<(), UplinkError> {
    leases.iter().try_for_each(|lease| {
        link::remove(netlink, &address::link_name(lease.address))
            .map_err(|e| UplinkError::Link("removing an interface", e.into()))
    })
}

/// Makes the rules those of the book; without a lease there are none, and no bridge.
fn settle(netlink: &mut Netlink, book: &Book) -> Result<(), UplinkError> {
    match book.leases.network {
        Some(network) => nft::apply(network, &book.leases.list, book.as_fd()),
        None => {
            nft::remove(book.as_fd())?;
            link::remove(netlink, BRIDGE)
                .map_err(|e| UplinkError::Link("removing the bridge", e.into()))
        }
    }
}

fn open() -> Result<Netlink, UplinkError> {
    Netlink::open().map_err(|e| UplinkError::Link("opening a netlink socket", e.into()))
}
