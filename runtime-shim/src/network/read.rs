//! Reads a [`Snapshot`] of this thread's network namespace.
//!
//! Only the attributes that are used are looked at, so that an attribute of a later kernel is no
//! obstacle. Skipped are: loopback, our own taps, ports of a bridge or bond (their master has the
//! addresses), and whatever is neither up nor has an address, such as the `tunl0` and `sit0` that
//! the kernel puts into every namespace.

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use rustix::io::Errno;

use super::attributes::{attribute, attributes, text, u16_at, u32_at};
use super::netlink::Netlink;
use super::snapshot::{Address, Interface, Neighbor, Route, Snapshot};
use super::tap::MTU_MAX;

/// Smallest MTU of an Ethernet interface, in bytes (RFC 791, section 3.2).
const MTU_MIN: u32 = 68;
/// Most addresses of one interface that a guest is given.
const ADDRESSES_MAX: usize = 64;
/// Most routes, and most neighbours, that a guest is given.
const ROUTES_MAX: usize = 1024;
/// Kinds of interface that lie on another one.
const STACKED: [&str; 5] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"];
/// `RTNH_F_ONLINK`, `IFLA_INFO_KIND`, `RTAX_MTU` and `struct rtnexthop` of the kernel's headers.
const ONLINK: u32 = 4;
const IFLA_INFO_KIND: u16 = 1;
const RTAX_MTU: u16 = 2;
const NEXT_HOP: usize = 8;

/// What a namespace holds.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What a guest can be given.
    pub snapshot: Snapshot,
    /// Interfaces in use that it cannot be given, and why.
    pub unfit: Vec<(String, &'static str)>,
}

/// An interface before it is judged.
struct Link {
    index: u32,
    name: Option<String>,
    ethernet: bool,
    flags: u32,
    mtu: u32,
    mac: Vec<u8>,
    kind: String,
    master: bool,
    /// Index of the interface below, if it is in this namespace.
    below: Option<u32>,
}

/// Reads everything but the interfaces `own`.
pub(super) fn read(netlink: &mut Netlink, own: &[u32]) -> Result<Seen, Errno> {
    let links = netlink.dump(libc::RTM_GETLINK, &LinkMessage::default())?;
    let links: Vec<Link> = links.iter().filter_map(|payload| link(payload)).collect();
    let candidate =
        |l: &Link| l.flags & libc::IFF_LOOPBACK as u32 == 0 && !l.master && !own.contains(&l.index);
    let mut seen = Seen::default();
    if !links.iter().any(candidate) {
        return Ok(seen);
    }
    let addresses = netlink.dump(libc::RTM_GETADDR, &AddressMessage::default())?;
    let addresses: Vec<_> = addresses.iter().filter_map(|payload| address(payload)).collect();
    let used = |l: &&Link| {
        l.flags & libc::IFF_UP as u32 != 0 || addresses.iter().any(|(i, _)| *i == l.index)
    };
    let used: Vec<&Link> = links.iter().filter(|l| candidate(l)).filter(used).collect();
    for link in &used {
        let own: Vec<Address> =
            addresses.iter().filter(|(i, _)| *i == link.index).map(|(_, a)| a.clone()).collect();
        match judge(link, &used, own) {
            Ok(interface) => seen.snapshot.interfaces.push(interface),
            Err(reason) => {
                let name = link.name.clone().unwrap_or_else(|| format!("#{}", link.index));
                seen.unfit.push((name, reason));
            }
        }
    }
    if !seen.snapshot.interfaces.is_empty() {
        read_routes(netlink, &mut seen)?;
        read_neighbors(netlink, &mut seen)?;
    }
    Ok(seen)
}

/// The interface, or why a guest cannot be given it.
fn judge(link: &Link, used: &[&Link], addresses: Vec<Address>) -> Result<Interface, &'static str> {
    if !link.ethernet {
        return Err("it is no Ethernet interface");
    }
    if STACKED.contains(&&*link.kind) && used.iter().any(|l| Some(l.index) == link.below) {
        return Err("it lies on another interface of the container, which takes its packets");
    }
    if addresses.len() > ADDRESSES_MAX {
        return Err("it has more than 64 addresses");
    }
    let mac: [u8; 6] = link.mac[..].try_into().map_err(|_| "it has no Ethernet address")?;
    if mac[0] & 1 == 1 || mac == [0; 6] {
        return Err("its hardware address is none of one interface");
    }
    Ok(Interface {
        index: link.index,
        name: link.name.clone().ok_or("its name is no UTF-8")?,
        mac,
        mtu: u16::try_from(link.mtu.clamp(MTU_MIN, MTU_MAX)).unwrap_or(u16::MAX),
        up: link.flags & libc::IFF_UP as u32 != 0,
        noarp: link.flags & libc::IFF_NOARP as u32 != 0,
        addresses,
    })
}

fn read_routes(netlink: &mut Netlink, seen: &mut Seen) -> Result<(), Errno> {
    let answers = netlink.dump(libc::RTM_GETROUTE, &RouteMessage::default())?;
    let there = |index| seen.snapshot.interfaces.iter().any(|i| i.index == index);
    let routes = answers.iter().flat_map(|payload| routes(payload).unwrap_or_default());
    let routes: Vec<Route> = routes.filter(|r| r.index == 0 || there(r.index)).collect();
    if routes.len() > ROUTES_MAX {
        return Err(Errno::OVERFLOW);
    }
    seen.snapshot.routes = routes;
    Ok(())
}

fn read_neighbors(netlink: &mut Netlink, seen: &mut Seen) -> Result<(), Errno> {
    let answers = netlink.dump(libc::RTM_GETNEIGH, &NeighbourMessage::default())?;
    let there = |index| seen.snapshot.interfaces.iter().any(|i| i.index == index);
    let neighbors: Vec<Neighbor> =
        answers.iter().filter_map(|payload| neighbor(payload)).filter(|n| there(n.index)).collect();
    if neighbors.len() > ROUTES_MAX {
        return Err(Errno::OVERFLOW);
    }
    seen.snapshot.neighbors = neighbors;
    Ok(())
}

/// `struct ifinfomsg`: family, type, index, flags, change mask; 16 bytes.
fn link(payload: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: u32_at(payload, 4)?,
        name: None,
        ethernet: u16_at(payload, 2)? == libc::ARPHRD_ETHER,
        flags: u32_at(payload, 8)?,
        mtu: 0,
        mac: vec![],
        kind: String::new(),
        master: false,
        below: None,
    };
    let mut elsewhere = false;
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = value.to_vec(),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_MASTER => link.master = true,
            libc::IFLA_LINK => link.below = u32_at(value, 0),
            libc::IFLA_LINK_NETNSID => elsewhere = true,
            libc::IFLA_LINKINFO => {
                link.kind = attribute(value, IFLA_INFO_KIND).and_then(text).unwrap_or_default();
            }
            _ => {}
        }
    }
    link.below = link.below.filter(|_| !elsewhere);
    Some(link)
}

/// `struct ifaddrmsg`: family, prefix, flags, scope, index; 8 bytes. Gives the index as well.
/// Temporary addresses and those that another host has are left out.
fn address(payload: &[u8]) -> Option<(u32, Address)> {
    let mut flags = u32::from(*payload.get(2)?);
    let mut found = Address {
        ip: vec![],
        prefix: *payload.get(1)?,
        scope: *payload.get(3)?,
        broadcast: vec![],
        peer: vec![],
    };
    let mut local = None;
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            libc::IFA_ADDRESS => found.ip = value.to_vec(),
            libc::IFA_LOCAL => local = Some(value.to_vec()),
            libc::IFA_BROADCAST => found.broadcast = value.to_vec(),
            libc::IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    // IFA_ADDRESS is the other end where there is one, else the same as IFA_LOCAL.
    if let Some(local) = local {
        let other = std::mem::replace(&mut found.ip, local);
        if other != found.ip {
            found.peer = other;
        }
    }
    // IFA_F_TEMPORARY and IFA_F_SECONDARY are one bit, which means the latter for IPv4.
    let temporary = found.ip.len() == 16 && flags & libc::IFA_F_TEMPORARY != 0;
    let known = matches!(found.ip.len(), 4 | 16);
    let usable = known && !temporary && flags & libc::IFA_F_DADFAILED == 0;
    usable.then_some((u32_at(payload, 4)?, found))
}

/// `struct rtmsg`: family, destination and source prefix, TOS, table, protocol, scope, type,
/// flags; 12 bytes. A route over several next hops becomes one for each, which is what it means
/// for IPv6; IPv4 uses the first.
fn routes(payload: &[u8]) -> Option<Vec<Route>> {
    let family = *payload.first()?;
    let kind = *payload.get(7)?;
    let flags = u32_at(payload, 8)?;
    let mut table = u32::from(*payload.get(4)?);
    let nowhere = [libc::RTN_BLACKHOLE, libc::RTN_UNREACHABLE, libc::RTN_PROHIBIT].contains(&kind);
    let wanted = (kind == libc::RTN_UNICAST || nowhere) && flags & libc::RTM_F_CLONED == 0;
    if !wanted || !matches!(i32::from(family), libc::AF_INET | libc::AF_INET6) {
        return None;
    }
    let mut route = Route {
        family,
        destination: vec![],
        prefix: *payload.get(1)?,
        gateway: vec![],
        source: vec![],
        index: 0,
        metric: 0,
        scope: *payload.get(6)?,
        kind,
        protocol: *payload.get(5)?,
        onlink: flags & ONLINK != 0,
        mtu: 0,
    };
    let mut hops = vec![];
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_DST => route.destination = value.to_vec(),
            libc::RTA_PREFSRC => route.source = value.to_vec(),
            libc::RTA_PRIORITY => route.metric = u32_at(value, 0)?,
            libc::RTA_TABLE => table = u32_at(value, 0)?,
            libc::RTA_MULTIPATH => hops = next_hops(&route, value),
            libc::RTA_METRICS => {
                let mtu = attribute(value, RTAX_MTU).and_then(|value| u32_at(value, 0));
                route.mtu = mtu.unwrap_or(0);
            }
            _ => hop_attribute(&mut route, kind, value),
        }
    }
    if nowhere {
        // IPv6 names the loopback interface there.
        route.index = 0;
    } else if route.index == 0 && hops.is_empty() {
        return None;
    }
    let shared = Route { gateway: vec![], ..route.clone() };
    let hops = hops.into_iter().map(|hop| Route {
        gateway: hop.gateway,
        index: hop.index,
        onlink: hop.onlink,
        ..shared.clone()
    });
    let mut routes: Vec<Route> = hops.collect();
    if routes.is_empty() {
        routes.push(route);
    }
    (table == u32::from(libc::RT_TABLE_MAIN)).then_some(routes)
}

/// The attributes that a route and each of several next hops have.
fn hop_attribute(route: &mut Route, kind: u16, value: &[u8]) {
    match kind {
        libc::RTA_GATEWAY => route.gateway = value.to_vec(),
        // struct rtvia: a family, then the address.
        libc::RTA_VIA => route.gateway = value.get(2..).unwrap_or_default().to_vec(),
        libc::RTA_OIF => route.index = u32_at(value, 0).unwrap_or(0),
        _ => {}
    }
}

/// `struct rtnexthop`: length, flags, weight, index; 8 bytes, then attributes.
fn next_hops(route: &Route, mut bytes: &[u8]) -> Vec<Route> {
    let mut hops = vec![];
    while let (Some(length), Some(index)) = (u16_at(bytes, 0), u32_at(bytes, 4)) {
        let length = usize::from(length);
        let Some(inner) = bytes.get(NEXT_HOP..length) else { break };
        let flags = u32::from(bytes[2]);
        let mut hop = Route { index, onlink: flags & ONLINK != 0, ..route.clone() };
        attributes(inner).for_each(|(kind, value)| hop_attribute(&mut hop, kind, value));
        hops.push(hop);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

/// `struct ndmsg`: family, padding, index, state, flags, type; 12 bytes. Permanent ones only.
fn neighbor(payload: &[u8]) -> Option<Neighbor> {
    if u16_at(payload, 8)? & libc::NUD_PERMANENT == 0 {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::NDA_DST => ip = Some(value.to_vec()),
            libc::NDA_LLADDR => mac = value.try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbor { index: u32_at(payload, 4)?, ip: ip?, mac: mac? })
}
