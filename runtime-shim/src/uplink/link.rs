//! Links, addresses and routes by rtnetlink, each in the namespace of the calling thread.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::UplinkError;
use crate::network::netlink::Netlink;

/// `NLM_F_CREATE | NLM_F_EXCL`.
const NEW: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// Does `work` in the network namespace `namespace`, in a thread of its own, so that the caller
/// stays where it is.
pub(super) fn in_namespace<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, UplinkError> {
    let done = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
                .map_err(|e| UplinkError::Host(e.into()))?;
            Ok(work())
        });
        thread.join()
    });
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Index of the interface `name`.
pub(super) fn index(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: the name ends with a NUL and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

/// Makes the bridge `name`.
pub(super) fn make_bridge(netlink: &mut Netlink, name: &str) -> Result<(), Errno> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    netlink.execute(libc::RTM_NEWLINK, NEW, &message)
}

/// One end of a pair of interfaces, in another namespace.
pub(super) struct Peer<'a> {
    pub name: &'a str,
    pub mac: [u8; 6],
    pub namespace: BorrowedFd<'a>,
}

/// Makes the interface `name`, a port of the bridge with index `bridge`, and its `peer`.
pub(super) fn make_pair(
    netlink: &mut Netlink,
    name: &str,
    bridge: u32,
    peer: &Peer<'_>,
) -> Result<(), Errno> {
    let mut far = LinkMessage::default();
    far.attributes = vec![
        LinkAttribute::IfName(peer.name.to_owned()),
        LinkAttribute::Address(peer.mac.to_vec()),
        LinkAttribute::NetNsFd(peer.namespace.as_fd().as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    let data = InfoData::Veth(InfoVeth::Peer(far));
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]),
    ];
    (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    netlink.execute(libc::RTM_NEWLINK, NEW, &message)
}

/// Lets a port of a bridge send back where a packet came from. Where the kernel filters bridged
/// packets as if they were routed (br_netfilter), a container that asks for a port which leads to
/// itself is answered over its own port.
pub(super) fn allow_hairpin(netlink: &mut Netlink, name: &str) -> Result<(), Errno> {
    let mut message = LinkMessage::default();
    message.header.index = index(name).ok_or(Errno::NODEV)?;
    let hairpin = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(hairpin),
    ])];
    netlink.execute(libc::RTM_NEWLINK, 0, &message)
}

/// Brings an interface up.
pub(super) fn bring_up(netlink: &mut Netlink, index: u32) -> Result<(), Errno> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    netlink.execute(libc::RTM_NEWLINK, 0, &message)
}

/// Removes the interface `name`, if it is there.
pub(super) fn remove(netlink: &mut Netlink, name: &str) -> Result<(), Errno> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    match netlink.execute(libc::RTM_DELLINK, 0, &message) {
        Err(Errno::NODEV) => Ok(()),
        result => result,
    }
}

/// Gives an interface an address with the prefix of the bridge's network.
pub(super) fn add_address(
    netlink: &mut Netlink,
    index: u32,
    address: Ipv4Addr,
) -> Result<(), Errno> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = super::address::PREFIX;
    message.header.index = index;
    let broadcast = address.to_bits() | (u32::MAX >> super::address::PREFIX);
    message.attributes = vec![
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
        AddressAttribute::Broadcast(Ipv4Addr::from_bits(broadcast)),
    ];
    match netlink.execute(libc::RTM_NEWADDR, NEW, &message) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// Makes `gateway` the way to everywhere.
pub(super) fn add_default_route(
    netlink: &mut Netlink,
    index: u32,
    gateway: Ipv4Addr,
) -> Result<(), Errno> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
    netlink.execute(libc::RTM_NEWROUTE, NEW, &message)
}
