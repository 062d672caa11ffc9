//! Networks of CNI: the plugins of Debian's `containernetworking-plugins`, run in the order and
//! with the input that libcni gives them (CNI specification 1.0.0).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::{run, run_with_input, unique_id};

/// Where Debian puts the plugins.
const PLUGINS: &str = "/usr/lib/cni";
const VERSION: &str = "1.0.0";

/// A network: a list of plugins, and the addresses that it has given out.
pub struct Network {
    name: String,
    plugins: Vec<Value>,
    /// An interface of the host that the first plugin makes and none removes.
    bridge: Option<String>,
    _addresses: TempDir,
}

/// A published port.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// The host's.
    pub host: u16,
    /// The container's.
    pub container: u16,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
}

/// A namespace's interface in a network; removed when dropped.
pub struct Attachment<'a> {
    network: &'a Network,
    namespace: PathBuf,
    interface: String,
    container: String,
    published: Vec<Published>,
    result: Value,
}

impl Network {
    /// A bridge with the networks 10.`octet`.0.0/24 and fd00:`octet`::/64, a way to everywhere,
    /// and published ports.
    pub fn bridge(octet: u8, mtu: u16) -> Self {
        let (name, addresses) = (unique_id("bridge"), addresses());
        let bridge = format!("cni{octet}");
        let plugin = json!({
            "type": "bridge", "bridge": bridge, "isGateway": true, "hairpinMode": true, "mtu": mtu,
            "ipam": ipam(octet, addresses.path(), &["0.0.0.0/0", "::/0"]),
        });
        let portmap = json!({
            "type": "portmap", "snat": true, "capabilities": {"portMappings": true},
        });
        let plugins = vec![plugin, portmap];
        Self { name, plugins, bridge: Some(bridge), _addresses: addresses }
    }

    /// A pair of interfaces with the host for each namespace, with the networks 10.`octet`.0.0/24
    /// and fd00:`octet`::/64.
    pub fn point_to_point(octet: u8, mtu: u16) -> Self {
        let (name, addresses) = (unique_id("ptp"), addresses());
        let ipam = ipam(octet, addresses.path(), &[]);
        let plugins = vec![json!({"type": "ptp", "mtu": mtu, "ipam": ipam})];
        Self { name, plugins, bridge: None, _addresses: addresses }
    }

    /// With the plugin `tuning` behind the others, which sets what `settings` says.
    pub fn tuned(mut self, mut settings: Value) -> Self {
        settings["type"] = json!("tuning");
        self.plugins.push(settings);
        self
    }

    /// Gives `namespace` an interface of this name.
    #[track_caller]
    pub fn attach(
        &self,
        namespace: &Namespace,
        interface: &str,
        published: &[Published],
    ) -> Attachment<'_> {
        let mut attachment = Attachment {
            network: self,
            namespace: namespace.path().into(),
            interface: interface.to_owned(),
            container: unique_id("container"),
            published: published.to_vec(),
            result: Value::Null,
        };
        for plugin in &self.plugins {
            attachment.result = attachment.run("ADD", plugin);
        }
        attachment
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(bridge) = &self.bridge {
            let _ = run(Command::new("ip").args(["link", "del", bridge]));
        }
    }
}

impl Attachment<'_> {
    /// The address of the wanted family.
    #[track_caller]
    pub fn address(&self, ipv6: bool) -> IpAddr {
        let ips = self.result["ips"].as_array().expect("addresses");
        let texts = ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next());
        let mut addresses = texts.map(|text| text.parse().expect("an address"));
        addresses.find(|ip: &IpAddr| ip.is_ipv6() == ipv6).expect("one of each family")
    }

    /// The host's address in the network.
    #[track_caller]
    pub fn gateway(&self, ipv6: bool) -> IpAddr {
        let ips = self.result["ips"].as_array().expect("addresses");
        let texts = ips.iter().filter_map(|ip| ip["gateway"].as_str());
        let mut addresses = texts.map(|text| text.parse().expect("an address"));
        addresses.find(|ip: &IpAddr| ip.is_ipv6() == ipv6).expect("one of each family")
    }

    /// Runs one plugin, which must succeed; what it answers.
    #[track_caller]
    fn run(&self, command: &str, plugin: &Value) -> Value {
        let mut input = plugin.clone();
        input["cniVersion"] = json!(VERSION);
        input["name"] = json!(self.network.name);
        if !self.result.is_null() {
            input["prevResult"] = self.result.clone();
        }
        if input["capabilities"]["portMappings"] == json!(true) {
            let ports = self.published.iter().map(|port| {
                let Published { host, container, protocol } = port;
                json!({"hostPort": host, "containerPort": container, "protocol": protocol})
            });
            input["runtimeConfig"] = json!({"portMappings": ports.collect::<Vec<_>>()});
        }
        let program = plugin["type"].as_str().expect("a plugin has a type");
        let outcome = run_with_input(
            Command::new(Path::new(PLUGINS).join(program))
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", &self.container)
                .env("CNI_NETNS", &self.namespace)
                .env("CNI_IFNAME", &self.interface)
                .env("CNI_PATH", PLUGINS),
            input.to_string().as_bytes(),
        );
        let outcome = outcome.expect(0);
        serde_json::from_slice(&outcome.stdout).unwrap_or(Value::Null)
    }
}

impl Drop for Attachment<'_> {
    fn drop(&mut self) {
        // A test that fails already must not be ended by a second failure.
        if !std::thread::panicking() {
            self.network.plugins.iter().rev().for_each(|plugin| drop(self.run("DEL", plugin)));
        }
    }
}

fn addresses() -> TempDir {
    tempfile::tempdir().expect("temp dir")
}

/// Addresses by the plugin `host-local`, with its book in `directory`, and routes to `routes`.
fn ipam(octet: u8, directory: &Path, routes: &[&str]) -> Value {
    let routes: Vec<Value> = routes.iter().map(|to| json!({"dst": to})).collect();
    json!({
        "type": "host-local",
        "dataDir": directory,
        "ranges": [
            [{"subnet": format!("10.{octet}.0.0/24")}],
            [{"subnet": format!("fd00:{octet}::/64")}],
        ],
        "routes": routes,
    })
}
