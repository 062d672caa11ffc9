//! A request of the host, checked.

use std::net::IpAddr;

use bulkhead_protocol::{agent::server as api, limits::NETS_MAX};

use super::NetworkError;

/// A hardware address.
pub type Mac = [u8; 6];

/// Longest name of an interface (`IFNAMSIZ` less the NUL).
const NAME_MAX: usize = 15;
/// Most addresses, routes or neighbours of one kind.
const ENTRIES_MAX: usize = 4096;

/// The network as it is to be.
#[derive(Debug, Default)]
pub struct Wanted {
    pub interfaces: Vec<Interface>,
    pub routes: Vec<Route>,
    pub neighbors: Vec<Neighbor>,
}

/// An interface.
#[derive(Debug)]
pub struct Interface {
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
    pub noarp: bool,
    pub addresses: Vec<Address>,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
    pub scope: u8,
    pub broadcast: Option<IpAddr>,
    pub peer: Option<IpAddr>,
}

/// A route; `device` is a name, empty where the route goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub ipv6: bool,
    pub destination: Option<IpAddr>,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub device: String,
    pub metric: u32,
    pub scope: u8,
    pub kind: u8,
    pub protocol: u8,
    pub table: u32,
    pub onlink: bool,
    pub mtu: u32,
}

/// A permanent neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbor {
    pub device: String,
    pub ip: IpAddr,
    pub mac: Mac,
}

type Result<T> = std::result::Result<T, NetworkError>;

impl TryFrom<&api::Network> for Wanted {
    type Error = NetworkError;

    fn try_from(raw: &api::Network) -> Result<Self> {
        if raw.interfaces.len() > NETS_MAX {
            return Err(NetworkError::Request("interfaces", "too many"));
        }
        if raw.routes.len() > ENTRIES_MAX || raw.neighbors.len() > ENTRIES_MAX {
            return Err(NetworkError::Request("routes and neighbors", "too many"));
        }
        let interfaces: Vec<_> =
            raw.interfaces.iter().map(Interface::try_from).collect::<Result<_>>()?;
        for (i, interface) in interfaces.iter().enumerate() {
            let rest = &interfaces[i + 1..];
            if rest.iter().any(|other| other.mac == interface.mac || other.name == interface.name) {
                return Err(NetworkError::Request("interfaces", "a name or address twice"));
            }
        }
        let routes: Vec<_> = raw.routes.iter().map(Route::try_from).collect::<Result<_>>()?;
        let neighbors: Vec<_> =
            raw.neighbors.iter().map(Neighbor::try_from).collect::<Result<_>>()?;
        let known = |device: &String| interfaces.iter().any(|i| i.name == *device);
        let absent = "no interface of the request";
        if !routes.iter().all(|r| r.device.is_empty() || known(&r.device)) {
            return Err(NetworkError::Request("routes[].device", absent));
        }
        if !neighbors.iter().all(|n| known(&n.device)) {
            return Err(NetworkError::Request("neighbors[].device", absent));
        }
        Ok(Self { interfaces, routes, neighbors })
    }
}

impl TryFrom<&api::Interface> for Interface {
    type Error = NetworkError;

    fn try_from(raw: &api::Interface) -> Result<Self> {
        let name = &raw.name;
        let valid = |byte: u8| byte != b'/' && byte != 0 && !byte.is_ascii_whitespace();
        if !(1..=NAME_MAX).contains(&name.len()) || !name.bytes().all(valid) {
            return Err(NetworkError::Request("interfaces[].name", "no name of an interface"));
        }
        if raw.addresses.len() > ENTRIES_MAX {
            return Err(NetworkError::Request("interfaces[].addresses", "too many"));
        }
        Ok(Self {
            name: name.clone(),
            mac: hardware("interfaces[].mac", &raw.mac)?,
            mtu: raw.mtu,
            up: raw.up,
            noarp: raw.noarp,
            addresses: raw.addresses.iter().map(Address::try_from).collect::<Result<_>>()?,
        })
    }
}

impl TryFrom<&api::Address> for Address {
    type Error = NetworkError;

    fn try_from(raw: &api::Address) -> Result<Self> {
        let ip = required("addresses[].ip", &raw.ip)?;
        let address = Self {
            ip,
            prefix: prefix("addresses[].prefix", raw.prefix, ip.is_ipv6())?,
            scope: byte("addresses[].scope", raw.scope)?,
            broadcast: optional("addresses[].broadcast", &raw.broadcast)?,
            peer: optional("addresses[].peer", &raw.peer)?,
        };
        let same = |other: Option<IpAddr>| other.is_none_or(|o| o.is_ipv6() == ip.is_ipv6());
        match same(address.broadcast) && same(address.peer) {
            true => Ok(address),
            false => Err(NetworkError::Request("addresses[]", "an address of another family")),
        }
    }
}

impl TryFrom<&api::Route> for Route {
    type Error = NetworkError;

    fn try_from(raw: &api::Route) -> Result<Self> {
        let ipv6 = match raw.family as i32 {
            libc::AF_INET => false,
            libc::AF_INET6 => true,
            _ => return Err(NetworkError::Request("routes[].family", "neither IPv4 nor IPv6")),
        };
        let route = Self {
            ipv6,
            destination: optional("routes[].destination", &raw.destination)?,
            prefix: prefix("routes[].prefix", raw.prefix, ipv6)?,
            gateway: optional("routes[].gateway", &raw.gateway)?,
            source: optional("routes[].source", &raw.source)?,
            device: raw.device.clone(),
            metric: raw.metric,
            scope: byte("routes[].scope", raw.scope)?,
            kind: byte("routes[].kind", raw.kind)?,
            protocol: byte("routes[].protocol", raw.protocol)?,
            table: raw.table,
            onlink: raw.onlink,
            mtu: raw.mtu,
        };
        let same = |ip: Option<IpAddr>| ip.is_none_or(|ip| ip.is_ipv6() == ipv6);
        match same(route.destination) && same(route.source) {
            true => Ok(route),
            false => Err(NetworkError::Request("routes[]", "an address of another family")),
        }
    }
}

impl TryFrom<&api::Neighbor> for Neighbor {
    type Error = NetworkError;

    fn try_from(raw: &api::Neighbor) -> Result<Self> {
        Ok(Self {
            device: raw.device.clone(),
            ip: required("neighbors[].ip", &raw.ip)?,
            mac: hardware("neighbors[].mac", &raw.mac)?,
        })
    }
}

fn optional(field: &'static str, bytes: &[u8]) -> Result<Option<IpAddr>> {
    match bytes.is_empty() {
        true => Ok(None),
        false => required(field, bytes).map(Some),
    }
}

fn required(field: &'static str, bytes: &[u8]) -> Result<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| v6()).map_err(|_| NetworkError::Request(field, "no IP address"))
}

fn hardware(field: &'static str, bytes: &[u8]) -> Result<Mac> {
    bytes.try_into().map_err(|_| NetworkError::Request(field, "no Ethernet address"))
}

fn prefix(field: &'static str, bits: u32, ipv6: bool) -> Result<u8> {
    match u8::try_from(bits) {
        Ok(bits) if bits <= if ipv6 { 128 } else { 32 } => Ok(bits),
        _ => Err(NetworkError::Request(field, "longer than an address")),
    }
}

fn byte(field: &'static str, value: u32) -> Result<u8> {
    u8::try_from(value).map_err(|_| NetworkError::Request(field, "above 255"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut api::Network)) -> &'static str {
        let mut network = api::Network::new();
        let mut interface = api::Interface::new();
        interface.name = "eth0".into();
        interface.mac = vec![2, 0, 0, 0, 0, 1];
        network.interfaces = vec![interface];
        assert!(Wanted::try_from(&network).is_ok());
        change(&mut network);
        match Wanted::try_from(&network) {
            Err(NetworkError::Request(field, _)) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn request_that_is_wrong_names_the_field() {
        for name in ["", "a/b", "a b", "sixteen-bytes-xx"] {
            assert_eq!(refused(|n| n.interfaces[0].name = name.into()), "interfaces[].name");
        }
        assert_eq!(refused(|n| n.interfaces[0].mac.truncate(5)), "interfaces[].mac");
        assert_eq!(refused(|n| n.interfaces.push(n.interfaces[0].clone())), "interfaces");
        let address = |ip: &[u8], prefix| {
            let mut address = api::Address::new();
            (address.ip, address.prefix) = (ip.to_vec(), prefix);
            refused(|n| n.interfaces[0].addresses = vec![address])
        };
        assert_eq!(address(&[1, 2, 3], 8), "addresses[].ip");
        assert_eq!(address(&[1, 2, 3, 4], 33), "addresses[].prefix");
        let route = |change: fn(&mut api::Route)| {
            let mut route = api::Route::new();
            route.family = libc::AF_INET as u32;
            change(&mut route);
            refused(|n| n.routes = vec![route])
        };
        assert_eq!(route(|r| r.family = 0), "routes[].family");
        assert_eq!(route(|r| r.kind = 256), "routes[].kind");
        assert_eq!(route(|r| r.destination = vec![0; 16]), "routes[]");
        assert_eq!(route(|r| r.device = "eth1".into()), "routes[].device");
        let stranger = api::Neighbor {
            device: "eth1".into(),
            ip: vec![1, 2, 3, 4],
            mac: vec![2; 6],
            ..Default::default()
        };
        assert_eq!(refused(|n| n.neighbors = vec![stranger]), "neighbors[].device");
        let mut mixed = api::Address::new();
        (mixed.ip, mixed.peer) = (vec![1, 2, 3, 4], vec![0; 16]);
        assert_eq!(refused(|n| n.interfaces[0].addresses = vec![mixed]), "addresses[]");
    }
}
