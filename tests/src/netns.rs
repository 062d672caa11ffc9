//! Network namespaces of this host, as CNI plugins make them: named, with one end of a pair of
//! virtual Ethernet interfaces each, removed when dropped.

use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::json;

use crate::LIMIT;
use crate::bundle::Bundle;
use crate::process::{run, unique_id};

/// A namespace with a name below `/run/netns`.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    outside: Mutex<Vec<String>>,
}

impl Namespace {
    /// An empty one: loopback, and that is down.
    pub fn new() -> Self {
        let name = unique_id("ns");
        ip(&format!("netns add {name}"));
        Self { name, outside: Mutex::default() }
    }

    /// Its path.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs iproute2's `ip` inside.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.name))
    }

    /// Runs iproute2's `tc` inside.
    #[track_caller]
    pub fn tc(&self, arguments: &str) -> String {
        let mut command = Command::new("tc");
        command.args(["-n", &self.name]).args(arguments.split(' '));
        run(&mut command).expect(0).text()
    }

    /// Makes a pair of interfaces: `inside` in the namespace, the other one, whose name is
    /// returned, outside. Both are up, and the outer one has `addresses`.
    #[track_caller]
    pub fn connect(&self, inside: &str, addresses: &[&str]) -> String {
        let outside = format!("v{}", unique_id("").replace('-', ""));
        let outside = outside[..outside.len().min(15)].to_owned();
        ip(&format!("link add {outside} type veth peer name {inside} netns {}", self.name));
        for address in addresses {
            let no_probe = if address.contains(':') { " nodad" } else { "" };
            ip(&format!("addr add {address} dev {outside}{no_probe}"));
        }
        ip(&format!("link set {outside} up"));
        self.ip(&format!("link set {inside} up"));
        // The kernel gives both a carrier, and addresses of IPv6, a moment later.
        let begun = Instant::now();
        while !(self.ip("-br link").lines().any(|line| is_up(line, inside))
            && ip("-br link").lines().any(|line| is_up(line, &outside)))
        {
            assert!(begun.elapsed() < LIMIT, "{inside} and {outside} do not come up");
        }
        self.outside.lock().expect("no test panics with it").push(outside.clone());
        outside
    }

    /// What there is of interfaces and queueing disciplines.
    pub fn inventory(&self) -> String {
        let links = self.ip("-o link");
        let names = links.lines().filter_map(|line| line.split(": ").nth(1));
        let names: Vec<&str> = names.collect();
        let filters = names.iter().map(|name| {
            let name = name.split('@').next().unwrap_or(name);
            self.tc(&format!("filter show dev {name} ingress"))
        });
        let filters: Vec<String> = filters.collect();
        format!("{names:?} {} {filters:?}", self.tc("qdisc"))
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The kernel ends a namespace a while after its last name, and pairs only then.
        for outside in self.outside.get_mut().iter().flat_map(|names| names.iter()) {
            let _ = run(Command::new("ip").args(["link", "del", outside]));
        }
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

/// Whether a line of `ip -br link` tells that interface `name` is up.
fn is_up(line: &str, name: &str) -> bool {
    let mut words = line.split_whitespace();
    words.next().and_then(|word| word.split('@').next()) == Some(name) && words.next() == Some("UP")
}

/// Makes a bundle's network namespace the one that `path` leads to.
pub fn join(bundle: &mut Bundle, path: &str) {
    bundle.edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        for namespace in namespaces.iter_mut().filter(|n| n["type"] == "network") {
            namespace["path"] = json!(path);
        }
    });
}

/// Lets a bundle's process, and what is added to it, ping.
pub fn allow_ping(bundle: &mut Bundle) {
    bundle.edit(|config| {
        for set in ["bounding", "effective", "permitted"] {
            let capabilities = config["process"]["capabilities"][set].as_array_mut();
            capabilities.expect("capabilities").push(json!("CAP_NET_RAW"));
        }
    });
}

/// Runs iproute2's `ip`, which must succeed, and gives what it printed.
#[track_caller]
pub fn ip(arguments: &str) -> String {
    run(Command::new("ip").args(arguments.split(' '))).expect(0).text()
}
