//! The network of a launched container: what `--network` means, and the files in `/etc` that
//! tell the container of it, which are mounted from its own directory as Docker does.
//!
//! Input: the caller's flags and the host's `resolv.conf`, both trusted; nothing of the image.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::settings::Settings;
use crate::uplink::{self, Backend, UplinkError, Wanted};

/// Files of the container's directory and where they are mounted.
pub const FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];
/// Below the container's directory.
const DIRECTORY: &str = "etc";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The nameservers behind systemd-resolved, which itself listens on the host's loopback.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// Most of a `resolv.conf` that is read, in bytes.
const RESOLV_CONF_MAX: u64 = 64 << 10;
/// Name of the host in `/etc/hosts` where the container's address is not known here.
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// `--network`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NetworkChoice {
    /// Outgoing connections and published ports, by what this machine has.
    #[default]
    Default,
    /// The same, by this back end.
    Backend(Backend),
    /// Loopback alone.
    None,
    /// A namespace that somebody else populates.
    Path(PathBuf),
}

/// Why a flag of the network is not taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NetworkFlagError {
    /// Not a network.
    #[error("{0:?} is not a network: default, bridge, pasta, none, ns:PATH or an absolute path")]
    Network(String),
    /// The network of the host.
    #[error("network host: the interfaces of the host cannot be shared with a microVM")]
    Host,
    /// Not an entry of `/etc/hosts`.
    #[error("{0:?} is not a host: NAME:ADDRESS is wanted, as db:192.0.2.7")]
    AddHost(String),
    /// Ports without a network that could be reached.
    #[error("ports are published with --network default or bridge only")]
    Publish,
}

/// Reads `--network`.
pub fn network(text: &str) -> Result<NetworkChoice, NetworkFlagError> {
    let path = text.strip_prefix("ns:").unwrap_or(text);
    match text {
        "default" => Ok(NetworkChoice::Default),
        "bridge" => Ok(NetworkChoice::Backend(Backend::Bridge)),
        "pasta" => Ok(NetworkChoice::Backend(Backend::Pasta)),
        "none" => Ok(NetworkChoice::None),
        "host" => Err(NetworkFlagError::Host),
        _ if path.starts_with('/') => Ok(NetworkChoice::Path(path.into())),
        _ => Err(NetworkFlagError::Network(text.to_owned())),
    }
}

/// Reads `--add-host`: `NAME:ADDRESS` or `NAME=ADDRESS`.
pub fn add_host(text: &str) -> Result<(String, IpAddr), NetworkFlagError> {
    let bad = || NetworkFlagError::AddHost(text.to_owned());
    let (name, address) = text.split_once(['=', ':']).ok_or_else(bad)?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let name = super::settings::hostname(name).map_err(|_| bad())?;
    Ok((name, address.parse().map_err(|_| bad())?))
}

/// What is to connect the container, or nothing. `directory` is the container's own.
pub fn uplink(
    settings: &Settings,
    directory: &Path,
    hostname: &str,
) -> Result<Option<uplink::Request>, UplinkError> {
    let wanted = match settings.network {
        NetworkChoice::Default => Wanted::Any,
        NetworkChoice::Backend(backend) => Wanted::Only(backend),
        NetworkChoice::None | NetworkChoice::Path(_) => return Ok(None),
    };
    Ok(Some(uplink::Request {
        backend: uplink::choose(wanted, &settings.ports)?,
        ports: settings.ports.clone(),
        hosts: Some((source(directory, "hosts"), hostname.to_owned())),
    }))
}

/// Where the file `name` of [`FILES`] lies for the container whose own directory is `directory`.
pub fn source(directory: &Path, name: &str) -> PathBuf {
    directory.join(DIRECTORY).join(name)
}

/// Writes the files. Whether the container has a nameserver, if it has a network.
pub fn write_files(
    settings: &Settings,
    backend: Option<Backend>,
    directory: &Path,
    hostname: &str,
) -> io::Result<bool> {
    std::fs::create_dir(directory.join(DIRECTORY))?;
    let write = |name: &str, text: &str| {
        let path = source(directory, name);
        std::fs::write(&path, text)?;
        // Whatever the caller's umask is: every user of the container reads them.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644))
    };
    write("hosts", &hosts(settings, hostname))?;
    write("hostname", &format!("{hostname}\n"))?;
    let network = settings.network != NetworkChoice::None;
    let read = |path| if network { read(path) } else { String::new() };
    let ipv6 = backend != Some(Backend::Bridge);
    let text = resolv_conf(&read(RESOLV_CONF), &read(RESOLVED_CONF), &settings.dns, ipv6);
    write("resolv.conf", &text)?;
    Ok(!network || text.lines().any(|line| line.starts_with("nameserver ")))
}

/// A host without the file has no nameservers to tell of.
fn read(path: &str) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| file.take(RESOLV_CONF_MAX).read_to_string(&mut text));
    read.map_or_else(|_| String::new(), |_| text)
}

/// `/etc/hosts`. What connects the container adds its address.
fn hosts(settings: &Settings, hostname: &str) -> String {
    let mut text = "127.0.0.1\tlocalhost\n\
                    ::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::0\tip6-localnet\n\
                    ff00::0\tip6-mcastprefix\n\
                    ff02::1\tip6-allnodes\n\
                    ff02::2\tip6-allrouters\n"
        .to_owned();
    for (name, address) in &settings.add_hosts {
        text += &format!("{address}\t{name}\n");
    }
    if matches!(settings.network, NetworkChoice::None | NetworkChoice::Path(_)) {
        text += &format!("{UNKNOWN}\t{hostname}\n");
    }
    text
}

/// `/etc/resolv.conf`: the host's search list and options, and the nameservers of `--dns`, or
/// those of the host that a container can reach. One on the host's loopback cannot; behind
/// systemd-resolved are others, in `resolved`.
fn resolv_conf(host: &str, resolved: &str, dns: &[IpAddr], ipv6: bool) -> String {
    let reachable = |text: &str| -> Vec<String> {
        let words = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        let addresses = words.filter_map(|word| word.trim().parse::<IpAddr>().ok());
        let outside = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
        let usable = |ip: &IpAddr| outside(ip) && (ipv6 || ip.is_ipv4());
        addresses.filter(usable).map(|ip| ip.to_string()).collect()
    };
    let behind = reachable(host).is_empty() && !reachable(resolved).is_empty();
    let host = if behind { resolved } else { host };
    let servers = match dns {
        [] => reachable(host),
        dns => dns.iter().map(IpAddr::to_string).collect(),
    };
    let mut text: String = servers.iter().map(|ip| format!("nameserver {ip}\n")).collect();
    let kept = ["search", "domain", "options"];
    for line in host.lines().map(str::trim) {
        if line.split_whitespace().next().is_some_and(|word| kept.contains(&word)) {
            text += &format!("{line}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read() {
        let path = |text: &str| Ok(NetworkChoice::Path(text.into()));
        for (text, expected) in [
            ("default", Ok(NetworkChoice::Default)),
            ("none", Ok(NetworkChoice::None)),
            ("bridge", Ok(NetworkChoice::Backend(Backend::Bridge))),
            ("pasta", Ok(NetworkChoice::Backend(Backend::Pasta))),
            ("/run/netns/x", path("/run/netns/x")),
            ("ns:/proc/7/ns/net", path("/proc/7/ns/net")),
            ("host", Err(NetworkFlagError::Host)),
            ("ns:x", Err(NetworkFlagError::Network("ns:x".into()))),
            ("", Err(NetworkFlagError::Network("".into()))),
        ] {
            assert_eq!(network(text), expected, "{text}");
        }
    }

    #[test]
    fn hosts_are_added_with_both_separators() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(add_host("db:192.0.2.7"), Ok(("db".into(), ip("192.0.2.7"))));
        assert_eq!(add_host("db=[::1]"), Ok(("db".into(), ip("::1"))));
        assert_eq!(add_host("db:fd00::2"), Ok(("db".into(), ip("fd00::2"))));
        for bad in ["", "db", "db:", ":192.0.2.7", "a b:192.0.2.7", "db:x\n"] {
            assert!(add_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nameservers_on_the_hosts_loopback_are_replaced_by_those_behind() {
        let host = "# c\nnameserver 127.0.0.53\noptions edns0\nsearch example\n";
        let resolved = "nameserver 192.0.2.53\nnameserver fd00::53\nsearch behind\n";
        assert_eq!(
            resolv_conf(host, resolved, &[], true),
            "nameserver 192.0.2.53\nnameserver fd00::53\nsearch behind\n"
        );
        assert_eq!(
            resolv_conf(host, resolved, &[], false),
            "nameserver 192.0.2.53\nsearch behind\n"
        );
        assert_eq!(resolv_conf(host, "", &[], true), "options edns0\nsearch example\n");
        let dns = ["198.51.100.1".parse().unwrap()];
        assert_eq!(
            resolv_conf("nameserver 192.0.2.1\nsearch x\n", "", &dns, true),
            "nameserver 198.51.100.1\nsearch x\n"
        );
        let mixed = "nameserver 127.0.0.1\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n";
        assert_eq!(resolv_conf(mixed, resolved, &[], true), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn files_are_written_for_each_network() {
        let dir = tempfile::tempdir().unwrap();
        let add_hosts = vec![("db".to_owned(), "192.0.2.7".parse().unwrap())];
        let settings = Settings { network: NetworkChoice::None, add_hosts, ..Settings::default() };
        assert!(write_files(&settings, None, dir.path(), "h").unwrap());
        let read = |name| std::fs::read_to_string(source(dir.path(), name)).unwrap();
        assert!(read("hosts").ends_with("192.0.2.7\tdb\n127.0.1.1\th\n"), "{}", read("hosts"));
        assert_eq!(read("hostname"), "h\n");
        assert_eq!(read("resolv.conf"), "");
        let connected = Settings::default();
        assert!(!hosts(&connected, "h").contains("\th\n"));
    }
}
