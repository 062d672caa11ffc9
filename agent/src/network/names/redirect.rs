//! The rule that leads port 53 of the resolver to the agent's sockets: an nftables table of its
//! own, in one transaction (linux/netfilter/nf_tables.h).
//!
//! The table belongs to a socket (`NFT_TABLE_F_OWNER`): nobody else can change it, `nft flush
//! ruleset` in a container leaves it, and it goes when the socket is closed.

use std::{net::Ipv4Addr, os::fd::OwnedFd};

use bulkhead_protocol::names::PORT;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
    },
};

const TABLE: &[u8] = b"bulkhead-names\0";
const CHAIN: &[u8] = b"output\0";

// linux/netfilter/nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;

// Messages.
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

/// `NFPROTO_IPV4`.
const IPV4: u8 = 2;
/// `NFT_TABLE_F_OWNER`.
const OWNED: u32 = 2;
/// `NF_INET_LOCAL_OUT`: what programs of this kernel send.
const LOCAL_OUT: u32 = 3;
/// `NF_IP_PRI_NAT_DST`.
const PRIORITY: i32 = -100;
/// Registers of 16 bytes.
const ADDRESS_REGISTER: u32 = 1;
const PORT_REGISTER: u32 = 2;
/// `NFT_META_L4PROTO`.
const LAYER_4_PROTOCOL: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER` and where the destination is in it.
const NETWORK_HEADER: u32 = 1;
const DESTINATION: u32 = 16;
/// `NFT_PAYLOAD_TRANSPORT_HEADER` and where the destination's port is in it.
const TRANSPORT_HEADER: u32 = 2;
const DESTINATION_PORT: u32 = 2;
/// `NFT_NAT_DNAT`.
const DESTINATION_NAT: u32 = 1;

/// Marks an attribute that consists of others.
const NESTED: u16 = 1 << 15;

/// Where the agent listens.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub udp: u16,
    pub tcp: u16,
}

/// The rule, for as long as this exists.
#[derive(Debug)]
pub struct Redirect {
    _owner: OwnedFd,
}

impl Redirect {
    /// Leads what is sent to port 53 of `address` to `ports` of it.
    pub fn new(address: Ipv4Addr, ports: Ports) -> Result<Self, Errno> {
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        let protocol = Some(netlink::NETFILTER);
        let owner = socket_with(AddressFamily::NETLINK, kind, flags, protocol)?;
        send(&owner, &batch(address, ports), SendFlags::empty())?;
        // The first answer is the first error, or else what acknowledges the last rule.
        let mut answer = [0; 64];
        let length = loop {
            match recv(&owner, &mut answer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                result => break result?.0,
            }
        };
        // struct nlmsghdr, then the number of struct nlmsgerr.
        let number = answer[..length].get(16..).and_then(|rest| rest.first_chunk());
        match i32::from_ne_bytes(*number.ok_or(Errno::BADMSG)?) {
            0 => Ok(Self { _owner: owner }),
            error => Err(Errno::from_raw_os_error(error.saturating_neg())),
        }
    }
}

/// The transaction: all of it is carried out, or nothing.
fn batch(address: Ipv4Addr, ports: Ports) -> Vec<u8> {
    let create = libc::NLM_F_CREATE as u16;
    let fresh = create | libc::NLM_F_EXCL as u16;
    let append = create | libc::NLM_F_APPEND as u16;
    let acknowledged = append | libc::NLM_F_ACK as u16;
    let mut batch = Vec::new();
    message(&mut batch, BATCH_BEGIN, 0, 0, SUBSYSTEM, &Attributes::default());
    message(&mut batch, NEW_TABLE, fresh, IPV4, 0, &table());
    message(&mut batch, NEW_CHAIN, create, IPV4, 0, &chain());
    let (udp, tcp) = (libc::IPPROTO_UDP as u8, libc::IPPROTO_TCP as u8);
    message(&mut batch, NEW_RULE, append, IPV4, 0, &rule(udp, address, ports.udp));
    message(&mut batch, NEW_RULE, acknowledged, IPV4, 0, &rule(tcp, address, ports.tcp));
    message(&mut batch, BATCH_END, 0, 0, SUBSYSTEM, &Attributes::default());
    batch
}

fn table() -> Attributes {
    Attributes::default().bytes(1, TABLE).number(2, OWNED)
}

fn chain() -> Attributes {
    let hook = Attributes::default().number(1, LOCAL_OUT).number(2, PRIORITY as u32);
    Attributes::default().bytes(1, TABLE).bytes(3, CHAIN).nest(4, hook).bytes(7, b"nat\0")
}

/// `ip daddr ADDRESS PROTOCOL dport 53 dnat to ADDRESS:PORT`.
fn rule(protocol: u8, address: Ipv4Addr, port: u16) -> Attributes {
    let meta = Attributes::default().number(1, ADDRESS_REGISTER).number(2, LAYER_4_PROTOCOL);
    let nat = Attributes::default().number(1, DESTINATION_NAT).number(2, IPV4.into());
    let nat = nat.number(3, ADDRESS_REGISTER).number(5, PORT_REGISTER);
    let expressions = Attributes::default()
        .expression(b"payload\0", load(NETWORK_HEADER, DESTINATION, 4))
        .expression(b"cmp\0", equals(&address.octets()))
        .expression(b"meta\0", meta)
        .expression(b"cmp\0", equals(&[protocol]))
        .expression(b"payload\0", load(TRANSPORT_HEADER, DESTINATION_PORT, 2))
        .expression(b"cmp\0", equals(&PORT.to_be_bytes()))
        .expression(b"immediate\0", immediate(ADDRESS_REGISTER, &address.octets()))
        .expression(b"immediate\0", immediate(PORT_REGISTER, &port.to_be_bytes()))
        .expression(b"nat\0", nat);
    Attributes::default().bytes(1, TABLE).bytes(2, CHAIN).nest(4, expressions)
}

/// Loads bytes of the packet.
fn load(base: u32, offset: u32, length: u32) -> Attributes {
    let to = Attributes::default().number(1, ADDRESS_REGISTER);
    to.number(2, base).number(3, offset).number(4, length)
}

/// Goes on if what was loaded is `value`.
fn equals(value: &[u8]) -> Attributes {
    let compared = Attributes::default().number(1, ADDRESS_REGISTER).number(2, 0);
    compared.nest(3, Attributes::default().bytes(1, value))
}

/// Loads `value`.
fn immediate(register: u32, value: &[u8]) -> Attributes {
    let data = Attributes::default().bytes(1, value);
    Attributes::default().number(1, register).nest(2, data)
}

/// Attributes of a message, one behind the other.
#[derive(Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = 4 + value.len();
        self.0.extend((length as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// An element of a list of expressions.
    fn expression(self, name: &[u8], data: Self) -> Self {
        self.nest(1, Self::default().bytes(1, name).nest(2, data))
    }
}

/// `struct nlmsghdr`, `struct nfgenmsg`, attributes; all of them are multiples of four bytes.
fn message(
    batch: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    attributes: &Attributes,
) {
    let length = 20 + attributes.0.len();
    batch.extend((length as u32).to_ne_bytes());
    batch.extend(kind.to_ne_bytes());
    batch.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Neither the sequence nor the sender's port is looked at.
    batch.extend([0; 8]);
    batch.extend([family, 0]);
    batch.extend(resource.to_be_bytes());
    batch.extend(&attributes.0);
}
