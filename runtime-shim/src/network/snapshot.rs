//! The network of a namespace as data: what is seen on the host, and what the guest is told.

use bulkhead_protocol::agent::client as api;

/// Interfaces, routes and permanent neighbours of a namespace, besides loopback.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Interfaces, by index.
    pub interfaces: Vec<Interface>,
    /// Routes of the main table, in the kernel's order.
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbors: Vec<Neighbor>,
}

/// An Ethernet interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Index on the host.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest packet in bytes, without Ethernet header.
    pub mtu: u16,
    /// Administratively up.
    pub up: bool,
    /// Resolves no addresses (`IFF_NOARP`).
    pub noarp: bool,
    /// Addresses, in the kernel's order: the first of a subnet is its primary one.
    pub addresses: Vec<Address>,
}

/// An address of an interface. IP addresses are 4 or 16 bytes in network order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Vec<u8>,
    /// Bits of its prefix.
    pub prefix: u8,
    /// `RT_SCOPE_…`.
    pub scope: u8,
    /// Broadcast address, or empty.
    pub broadcast: Vec<u8>,
    /// Other end of a point-to-point link, or empty.
    pub peer: Vec<u8>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// Destination; empty for the default route.
    pub destination: Vec<u8>,
    /// Bits of its prefix.
    pub prefix: u8,
    /// Next hop, or empty; of either family.
    pub gateway: Vec<u8>,
    /// Preferred source address, or empty.
    pub source: Vec<u8>,
    /// Index of its interface on the host; 0 for a route that goes nowhere.
    pub index: u32,
    /// Metric.
    pub metric: u32,
    /// `RT_SCOPE_…`.
    pub scope: u8,
    /// `RTN_…`.
    pub kind: u8,
    /// `RTPROT_…`.
    pub protocol: u8,
    /// The gateway need not be in a subnet of the interface.
    pub onlink: bool,
    /// MTU of the route, or 0.
    pub mtu: u32,
}

/// A permanent neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbor {
    /// Index of its interface on the host.
    pub index: u32,
    /// Its address.
    pub ip: Vec<u8>,
    /// Its hardware address.
    pub mac: [u8; 6],
}

impl Snapshot {
    /// The part that belongs to the interfaces of which `keep` is true.
    pub fn only(&self, keep: impl Fn(u32) -> bool) -> Self {
        Self {
            interfaces: self.interfaces.iter().filter(|i| keep(i.index)).cloned().collect(),
            routes: self.routes.iter().filter(|r| r.index == 0 || keep(r.index)).cloned().collect(),
            neighbors: self.neighbors.iter().filter(|n| keep(n.index)).cloned().collect(),
        }
    }

    /// What the agent is told.
    pub fn to_api(&self) -> api::Network {
        let name = |index| {
            let found = self.interfaces.iter().find(|i| i.index == index);
            found.map(|i| i.name.clone()).unwrap_or_default()
        };
        let mut network = api::Network::new();
        network.interfaces = self.interfaces.iter().map(Interface::to_api).collect();
        network.routes = self.routes.iter().map(|r| r.to_api(name(r.index))).collect();
        network.neighbors = self.neighbors.iter().map(|n| n.to_api(name(n.index))).collect();
        network
    }
}

impl Interface {
    fn to_api(&self) -> api::Interface {
        let mut interface = api::Interface::new();
        interface.name.clone_from(&self.name);
        interface.mac = self.mac.to_vec();
        interface.mtu = self.mtu.into();
        interface.up = self.up;
        interface.noarp = self.noarp;
        interface.addresses = self.addresses.iter().map(Address::to_api).collect();
        interface
    }
}

impl Address {
    fn to_api(&self) -> api::Address {
        let mut address = api::Address::new();
        address.ip.clone_from(&self.ip);
        address.prefix = self.prefix.into();
        address.scope = self.scope.into();
        address.broadcast.clone_from(&self.broadcast);
        address.peer.clone_from(&self.peer);
        address
    }
}

impl Route {
    fn to_api(&self, device: String) -> api::Route {
        let mut route = api::Route::new();
        route.family = self.family.into();
        route.destination.clone_from(&self.destination);
        route.prefix = self.prefix.into();
        route.gateway.clone_from(&self.gateway);
        route.source.clone_from(&self.source);
        route.device = device;
        route.metric = self.metric;
        route.scope = self.scope.into();
        route.kind = self.kind.into();
        route.protocol = self.protocol.into();
        route.table = libc::RT_TABLE_MAIN.into();
        route.onlink = self.onlink;
        route.mtu = self.mtu;
        route
    }
}

impl Neighbor {
    fn to_api(&self, device: String) -> api::Neighbor {
        let mut neighbor = api::Neighbor::new();
        neighbor.device = device;
        neighbor.ip.clone_from(&self.ip);
        neighbor.mac = self.mac.to_vec();
        neighbor
    }
}
