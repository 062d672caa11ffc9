//! Answers to what an engine that serves names asks of others.
//!
//! Docker asks a server outside for a name that is not of its networks, from the namespace of the
//! container that wants to know: as that container, by its routes and through its filters. All that
//! arrives at an interface is [redirected](super::redirect) to the guest, and so would the answers
//! be. Filters before that one leave to this namespace what comes from port 53 to the ports of
//! [`PORTS`], which are made those that its sockets get, and copy ARP replies to it, which its
//! stack needs for its own packets. IPv4 only.
//!
//! A guest's sockets have other ports unless they ask for one of these.

use std::fs;
use std::io;
use std::ops::RangeInclusive;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::tc::{TcActionType, TcMirrorActionType, TcU32Key};
use rustix::io::Errno;

use super::netlink::Netlink;
use super::redirect::{BEFORE, mirred, u32_filter};

/// What the namespace's own sockets have: behind the 28,232 ports that Linux gives unless told
/// otherwise, which the guest goes on to use.
const PORTS: RangeInclusive<u16> = 0xfe00..=0xffff;
/// The setting of this thread's network namespace.
const SETTING: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Gives the namespace's sockets that are made from now on ports of [`PORTS`].
pub(super) fn choose_ports() -> io::Result<()> {
    fs::write(SETTING, format!("{} {}", PORTS.start(), PORTS.end()))
}

/// Lets in what answers arrive at the interface `from`, whose other packets go to `tap`.
pub(super) fn let_in(netlink: &mut Netlink, from: u32, tap: u32) -> Result<(), Errno> {
    let copy = || mirred(tap, TcMirrorActionType::EgressMirror, TcActionType::Ok);
    let [udp, tcp] =
        [libc::IPPROTO_UDP, libc::IPPROTO_TCP].map(|protocol| from_dns(protocol as u8));
    let filters = [(arp_reply(), Some(copy())), (udp, None), (tcp, None)];
    for (handle, (keys, action)) in BEFORE.into_iter().zip(filters) {
        let filter = u32_filter(from, handle, keys, action);
        netlink.execute(libc::RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &filter)?;
    }
    Ok(())
}

/// Four bytes at `offset` from the network header, of which `mask` must be `value`.
fn key(offset: i32, mask: [u8; 4], value: [u8; 4]) -> TcU32Key {
    let mut key = TcU32Key::default();
    key.off = offset;
    // In the packet's order.
    (key.mask, key.val) = (u32::from_ne_bytes(mask), u32::from_ne_bytes(value));
    key
}

/// The Ethernet type, the last two bytes before the network header.
fn ethernet_type(number: libc::c_int) -> TcU32Key {
    let [high, low] = (number as u16).to_be_bytes();
    key(-4, [0, 0, 0xff, 0xff], [0, 0, high, low])
}

/// An ARP packet (RFC 826) whose operation is 2.
fn arp_reply() -> Vec<TcU32Key> {
    vec![ethernet_type(libc::ETH_P_ARP), key(4, [0, 0, 0xff, 0xff], [0, 0, 0, 2])]
}

/// A packet of `protocol`, no later fragment and without options of IPv4, from port 53 to one of
/// [`PORTS`].
fn from_dns(protocol: u8) -> Vec<TcU32Key> {
    let [source_high, source_low] = bulkhead_protocol::names::PORT.to_be_bytes();
    let [first_high, first_low] = PORTS.start().to_be_bytes();
    vec![
        ethernet_type(libc::ETH_P_IP),
        key(0, [0x0f, 0, 0, 0], [5, 0, 0, 0]),
        key(4, [0, 0, 0x1f, 0xff], [0; 4]),
        key(8, [0, 0xff, 0, 0], [0, protocol, 0, 0]),
        key(20, [0xff, 0xff, 0xfe, 0], [source_high, source_low, first_high, first_low]),
    ]
}

#[cfg(test)]
mod tests;
