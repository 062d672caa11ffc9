//! From what is to what is wanted, in an order that works: devices, names, links, addresses,
//! routes without a gateway, routes over those, neighbours.
//!
//! Every address carries `IFA_F_NOPREFIXROUTE`: the host names the routes of its prefixes, too.
//! IPv6 addresses are not probed for duplicates, because the host has done that, so they are
//! usable at once.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteVia},
};
use rustix::io::Errno;

use super::{
    NetworkError,
    devices::{self, Link, links},
    netlink::Netlink,
    wanted::{Address, Interface, Neighbor, Route, Wanted},
};

type Result<T> = std::result::Result<T, NetworkError>;

/// What the host has configured so far, as far as it was made and not taken away; numbers are
/// indices of interfaces, 0 is none.
#[derive(Debug, Default)]
pub struct Applied {
    interfaces: Vec<u32>,
    addresses: Vec<(u32, Address)>,
    routes: Vec<(u32, Route)>,
    neighbors: Vec<(u32, Neighbor)>,
}

/// Remembers the first failure while the rest is done.
#[derive(Default)]
struct Failures(Option<NetworkError>);

impl Failures {
    /// Whether the step was done.
    fn note(&mut self, result: Result<()>) -> bool {
        match result {
            Ok(()) => true,
            Err(error) => {
                self.0.get_or_insert(error);
                false
            }
        }
    }

    fn finish(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Makes the network what is `wanted`, and records that in `applied`.
pub fn apply(applied: &mut Applied, wanted: Wanted) -> Result<()> {
    let netlink = Netlink::open().map_err(|e| NetworkError::Netlink("open a socket", e))?;
    let found = find(&netlink, &wanted.interfaces)?;
    name(&netlink, &wanted.interfaces, &found)?;
    let mut failures = Failures::default();
    applied.interfaces.retain(|index| found.iter().any(|link| link.index == *index));
    for (interface, link) in wanted.interfaces.iter().zip(&found) {
        let fresh = !applied.interfaces.contains(&link.index);
        let done = failures.note(set_link(&netlink, interface, link.index, fresh));
        record(&mut applied.interfaces, &link.index, done);
    }
    let index = |device: &str| {
        let at = wanted.interfaces.iter().position(|i| i.name == device);
        at.map_or(0, |at| found[at].index)
    };
    let next = Applied {
        interfaces: found.iter().map(|link| link.index).collect(),
        addresses: wanted
            .interfaces
            .iter()
            .zip(&found)
            .flat_map(|(i, link)| i.addresses.iter().map(|a| (link.index, a.clone())))
            .collect(),
        routes: wanted.routes.iter().map(|r| (index(&r.device), r.clone())).collect(),
        neighbors: wanted.neighbors.iter().map(|n| (index(&n.device), n.clone())).collect(),
    };
    take_away(&netlink, applied, &next, &mut failures);
    add(&netlink, applied, &next, &mut failures);
    failures.finish()
}

fn record<T: Clone + PartialEq>(entries: &mut Vec<T>, entry: &T, done: bool) {
    if done && !entries.contains(entry) {
        entries.push(entry.clone());
    }
}

/// The link of each interface, in their order. Devices that no interface names are given up,
/// empty slots are filled first if one is missing.
fn find(netlink: &Netlink, interfaces: &[Interface]) -> Result<Vec<Link>> {
    let mut present = links(netlink)?;
    for link in &present {
        if !interfaces.iter().any(|i| link.has(&i.mac)) {
            devices::empty_slot(link)?;
        }
    }
    let there = |present: &[Link], i: &Interface| present.iter().any(|link| link.has(&i.mac));
    if !interfaces.iter().all(|i| there(&present, i)) {
        devices::fill_slots()?;
        present = links(netlink)?;
    }
    let mut found = Vec::with_capacity(interfaces.len());
    for interface in interfaces {
        let at = present.iter().position(|link| link.has(&interface.mac));
        let at = at.ok_or(NetworkError::NoDevice(interface.mac))?;
        found.push(present.remove(at));
    }
    Ok(found)
}

/// Gives each link its name. Names may have to be swapped, so those that change are free first.
fn name(netlink: &Netlink, interfaces: &[Interface], found: &[Link]) -> Result<()> {
    let changed: Vec<(&Interface, &Link)> =
        interfaces.iter().zip(found).filter(|(i, link)| i.name != link.name).collect();
    let rename = |link: &Link, name: String| {
        let failed = |source| interface_failed("the name", &name, source);
        let mut message = link_message(link.index);
        message.attributes.push(LinkAttribute::IfName(name.clone()));
        netlink.execute(libc::RTM_NEWLINK, 0, &message).map_err(failed)
    };
    for (_, link) in &changed {
        rename(link, format!("bh-{}", link.index))?;
    }
    changed.iter().try_for_each(|(interface, link)| rename(link, interface.name.clone()))
}

/// MTU, flags and state of an interface. One that is new makes no address of its own.
fn set_link(netlink: &Netlink, interface: &Interface, index: u32, fresh: bool) -> Result<()> {
    let set = |step, message: LinkMessage| {
        let done = netlink.execute(libc::RTM_NEWLINK, 0, &message);
        done.map_err(|source| interface_failed(step, &interface.name, source))
    };
    if fresh {
        let mut message = link_message(index);
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let spec = vec![AfSpecUnspec::Inet6(vec![none])];
        message.attributes.push(LinkAttribute::AfSpecUnspec(spec));
        set("IPv6 mode", message)?;
    }
    let mut message = link_message(index);
    message.attributes.push(LinkAttribute::Mtu(interface.mtu));
    set("MTU", message)?;
    let mut message = link_message(index);
    message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    message.header.flags.set(LinkFlags::Up, interface.up);
    message.header.flags.set(LinkFlags::Noarp, interface.noarp);
    set("state", message)
}

fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn interface_failed(step: &'static str, name: &str, source: Errno) -> NetworkError {
    NetworkError::Interface { step, name: name.to_owned(), source }
}

/// Takes away what was applied and is wanted no longer, in the reverse order of adding. What stays
/// is tried again with the next call.
fn take_away(netlink: &Netlink, applied: &mut Applied, next: &Applied, failures: &mut Failures) {
    unwanted(&mut applied.neighbors, &next.neighbors, |(index, neighbor)| {
        let done = netlink.execute(libc::RTM_DELNEIGH, 0, &neighbor_message(*index, neighbor));
        failures.note(unless_gone(done).map_err(|e| neighbor_failed(neighbor, e)))
    });
    unwanted(&mut applied.routes, &next.routes, |(index, route)| {
        let done = netlink.execute(libc::RTM_DELROUTE, 0, &route_message(*index, route));
        failures.note(unless_gone(done).map_err(|e| route_failed(route, e)))
    });
    unwanted(&mut applied.addresses, &next.addresses, |(index, address)| {
        let done = netlink.execute(libc::RTM_DELADDR, 0, &address_message(*index, address));
        failures.note(unless_gone(done).map_err(|e| address_failed(address, e)))
    });
}

/// Removes the entries that are not in `next`, the last first, and that `take` does take away.
fn unwanted<T: PartialEq>(entries: &mut Vec<T>, next: &[T], mut take: impl FnMut(&T) -> bool) {
    entries.reverse();
    entries.retain(|entry| next.contains(entry) || !take(entry));
    entries.reverse();
}

/// Adds everything, also what was there: with an address the kernel may have taken others away,
/// and with a link that went down their routes.
fn add(netlink: &Netlink, applied: &mut Applied, next: &Applied, failures: &mut Failures) {
    for entry @ (index, address) in &next.addresses {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let done = netlink.execute(libc::RTM_NEWADDR, flags, &address_message(*index, address));
        let done = failures.note(done.map_err(|e| address_failed(address, e)));
        record(&mut applied.addresses, entry, done);
    }
    for over_gateways in [false, true] {
        let routes = next.routes.iter().filter(|(_, r)| r.gateway.is_some() == over_gateways);
        for entry @ (index, route) in routes {
            let flags = NLM_F_CREATE | NLM_F_APPEND;
            let done = netlink.execute(libc::RTM_NEWROUTE, flags, &route_message(*index, route));
            let done = failures.note(unless_there(done).map_err(|e| route_failed(route, e)));
            record(&mut applied.routes, entry, done);
        }
    }
    for entry @ (index, neighbor) in &next.neighbors {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let done = netlink.execute(libc::RTM_NEWNEIGH, flags, &neighbor_message(*index, neighbor));
        let done = failures.note(done.map_err(|e| neighbor_failed(neighbor, e)));
        record(&mut applied.neighbors, entry, done);
    }
}

/// What went with its interface or address, or by the container's own hand, is away.
fn unless_gone(done: std::result::Result<(), Errno>) -> std::result::Result<(), Errno> {
    match done {
        Err(Errno::SRCH | Errno::NODEV | Errno::NXIO | Errno::NOENT | Errno::ADDRNOTAVAIL) => {
            Ok(())
        }
        other => other,
    }
}

fn unless_there(done: std::result::Result<(), Errno>) -> std::result::Result<(), Errno> {
    match done {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

fn family(ipv6: bool) -> AddressFamily {
    if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn address_message(index: u32, address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    let header = &mut message.header;
    (header.family, header.index) = (family(address.ip.is_ipv6()), index);
    (header.prefix_len, header.scope) = (address.prefix, address.scope.into());
    message.attributes = vec![
        AddressAttribute::Local(address.ip),
        AddressAttribute::Address(address.peer.unwrap_or(address.ip)),
        AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute),
    ];
    if let Some(IpAddr::V4(broadcast)) = address.broadcast {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    message
}

fn route_message(index: u32, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.ipv6);
    header.destination_prefix_length = route.prefix;
    (header.protocol, header.scope) = (route.protocol.into(), route.scope.into());
    header.kind = route.kind.into();
    header.flags.set(RouteFlags::Onlink, route.onlink);
    let mut attributes = vec![RouteAttribute::Table(route.table)];
    let ip = |ip: IpAddr| RouteAddress::from(ip);
    attributes.extend(route.destination.map(ip).map(RouteAttribute::Destination));
    attributes.extend(route.source.map(ip).map(RouteAttribute::PrefSource));
    attributes.extend(route.gateway.map(|gateway| match gateway {
        IpAddr::V6(v6) if !route.ipv6 => RouteAttribute::Via(RouteVia::Inet6(v6)),
        gateway => RouteAttribute::Gateway(gateway.into()),
    }));
    if index != 0 {
        attributes.push(RouteAttribute::Oif(index));
    }
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    if route.mtu != 0 {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    message.attributes = attributes;
    message
}

fn neighbor_message(index: u32, neighbor: &Neighbor) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let header = &mut message.header;
    (header.family, header.ifindex) = (family(neighbor.ip.is_ipv6()), index);
    header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(neighbor.ip.into()),
        NeighbourAttribute::LinkLayerAddress(neighbor.mac.to_vec()),
    ];
    message
}

fn address_failed(address: &Address, source: Errno) -> NetworkError {
    NetworkError::Address { ip: address.ip, prefix: address.prefix, source }
}

fn route_failed(route: &Route, source: Errno) -> NetworkError {
    let to = route.destination.map_or("default".to_owned(), |ip| format!("{ip}/{}", route.prefix));
    let via = route.gateway.map_or(String::new(), |ip| format!(" via {ip}"));
    let device = if route.device.is_empty() { "" } else { " dev " };
    let destination = format!("{to}{via}{device}{}", route.device);
    NetworkError::Route { destination, source }
}

fn neighbor_failed(neighbor: &Neighbor, source: Errno) -> NetworkError {
    NetworkError::Neighbor { ip: neighbor.ip, source }
}
