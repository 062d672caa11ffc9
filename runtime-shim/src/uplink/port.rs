//! Published ports: `-p` with Docker's grammar, `[IP:]HOST[-HOST]:GUEST[-GUEST][/tcp|/udp]`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::PORTS_MAX;

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its name, as nftables writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the host that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Address on the host; unspecified for all of them.
    pub ip: Ipv4Addr,
    /// Port on the host.
    pub host: u16,
    /// Port in the container.
    pub guest: u16,
    /// What it carries.
    pub protocol: Protocol,
}

impl Port {
    /// Where it is on the host.
    pub fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, self.host)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.address(), self.guest, self.protocol.name())
    }
}

/// Why a `-p` is not taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PortError {
    /// Not the grammar.
    #[error("{0:?} is not a published port: [IP:]HOST:GUEST[/tcp|/udp] is wanted, as 8080:80")]
    Form(String),
    /// A port without one on the host.
    #[error("{0:?} names no port of the host: HOST:GUEST is wanted, as 8080:80")]
    NoHost(String),
    /// An address of IPv6.
    #[error("{0:?}: ports are published on addresses of IPv4 only")]
    Ipv6(String),
    /// Another protocol.
    #[error("{0:?}: only tcp and udp are published")]
    Protocol(String),
    /// Ranges that do not fit.
    #[error("{0:?}: both ranges must have the same length")]
    Ranges(String),
    /// Too many.
    #[error("more than {PORTS_MAX} ports are published")]
    Many,
    /// One port of the host twice.
    #[error("port {0} of the host is published twice")]
    Twice(String),
}

/// Reads every `-p`.
pub fn ports(texts: &[String]) -> Result<Vec<Port>, PortError> {
    let mut all: Vec<Port> = Vec::new();
    for text in texts {
        for port in parse(text)? {
            if all.len() >= PORTS_MAX {
                return Err(PortError::Many);
            }
            if all.iter().any(|other| is_same_place(other, &port)) {
                return Err(PortError::Twice(port.address().to_string()));
            }
            all.push(port);
        }
    }
    Ok(all)
}

fn is_same_place(one: &Port, other: &Port) -> bool {
    let meets = one.ip == other.ip || one.ip.is_unspecified() || other.ip.is_unspecified();
    meets && (one.host, one.protocol) == (other.host, other.protocol)
}

fn parse(text: &str) -> Result<impl Iterator<Item = Port>, PortError> {
    let bad = || PortError::Form(text.to_owned());
    let (rest, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some(_) => return Err(PortError::Protocol(text.to_owned())),
    };
    if rest.starts_with('[') {
        return Err(PortError::Ipv6(text.to_owned()));
    }
    let mut parts = rest.rsplitn(3, ':');
    let guest = parts.next().and_then(range).ok_or_else(bad)?;
    let host = match parts.next() {
        None | Some("") => return Err(PortError::NoHost(text.to_owned())),
        Some(host) => range(host).ok_or_else(bad)?,
    };
    let ip = match parts.next() {
        None | Some("") => Ipv4Addr::UNSPECIFIED,
        Some(ip) => ip.parse().map_err(|_| bad())?,
    };
    if host.len() != guest.len() {
        return Err(PortError::Ranges(text.to_owned()));
    }
    Ok(host.zip(guest).map(move |(host, guest)| Port { ip, host, guest, protocol }))
}

/// `N` or `N-M`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port > 0)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> Result<Vec<String>, PortError> {
        Ok(ports(&[text.to_owned()])?.iter().map(Port::to_string).collect())
    }

    #[test]
    fn ports_are_read_as_docker_does() {
        for (text, expected) in [
            ("8080:80", &["0.0.0.0:8080:80/tcp"][..]),
            ("127.0.0.1:8080:80", &["127.0.0.1:8080:80/tcp"]),
            (":53:53/udp", &["0.0.0.0:53:53/udp"]),
            ("7000-7001:80-81/tcp", &["0.0.0.0:7000:80/tcp", "0.0.0.0:7001:81/tcp"]),
        ] {
            assert_eq!(one(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let text = |text: &str| text.to_owned();
        for bad in
            ["", "x:80", "80:", "0:80", "80:65536", "+1:80", "9-8:1-2", "1.2.3:80:80", "a:1:1"]
        {
            assert!(matches!(one(bad), Err(PortError::Form(_))), "{bad}: {:?}", one(bad));
        }
        assert_eq!(one("80"), Err(PortError::NoHost(text("80"))));
        assert_eq!(one("1.2.3.4::80"), Err(PortError::NoHost(text("1.2.3.4::80"))));
        assert_eq!(one("[::1]:80:80"), Err(PortError::Ipv6(text("[::1]:80:80"))));
        assert_eq!(one("80:80/sctp"), Err(PortError::Protocol(text("80:80/sctp"))));
        assert_eq!(one("80-82:80-81"), Err(PortError::Ranges(text("80-82:80-81"))));
        assert_eq!(one("1-2000:1-2000"), Err(PortError::Many));
    }

    #[test]
    fn port_of_the_host_leads_to_one_place() {
        let twice = |list: [&str; 2]| ports(&list.map(str::to_owned)).is_err();
        assert!(twice(["80:80", "127.0.0.1:80:81"]));
        assert!(!twice(["127.0.0.2:80:80", "127.0.0.1:80:81"]));
        assert!(!twice(["80:80", "80:80/udp"]));
    }

    proptest! {
        #[test]
        fn arbitrary_text_gives_ports_or_an_error(text in "[0-9:./a-z\\[\\]-]{0,24}") {
            for port in ports(&[text]).unwrap_or_default() {
                prop_assert!(port.host > 0 && port.guest > 0);
            }
        }
    }
}
