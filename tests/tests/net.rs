//! The container's network namespace: what an engine puts there is what the guest has, while it
//! runs, and nothing is left there when it has ended.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bulkhead_tests::netns::{self, Namespace, ip};
use bulkhead_tests::{Bundle, Created, LIMIT, Leftovers, Outcome, bulkhead, run, unique_id};
use serde_json::{Value, json};

/// Seconds of [`LIMIT`], for `ping`.
const LIMIT_S: &str = "120";

/// A container in a network namespace, deleted by force when dropped.
struct Container(Created);

impl Container {
    fn create(bundle: Bundle) -> Self {
        Self(Created::new(unique_id("net"), bundle))
    }

    fn started(bundle: Bundle) -> Self {
        let container = Self::create(bundle);
        container.0.start();
        container
    }

    /// Runs a command in the guest.
    fn exec(&self, command: &str) -> Outcome {
        self.0.command(&["exec"], &["sh", "-c", command])
    }

    /// What a command in the guest prints, once that satisfies `done`.
    #[track_caller]
    fn exec_until(&self, command: &str, done: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let text = self.exec(command).text();
            if done(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "{command}: {text}\n{}", self.log());
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(format!("/run/bulkhead/{}/log", self.0.id)).unwrap_or_default()
    }
}

/// A bundle in `namespace` that does nothing but serve: port 7 gives back what it gets. What is
/// added to it may ping.
fn server(namespace: &Namespace) -> Bundle {
    let mut bundle = Bundle::script("exec nc -ll -p 7 -e cat");
    netns::join(&mut bundle, &namespace.path());
    netns::allow_ping(&mut bundle);
    bundle
}

/// Sends `bytes` to port 7 of `address`, and fails unless they come back.
#[track_caller]
fn echo(address: &str, bytes: usize) {
    let address: IpAddr = address.parse().expect("an address");
    let deadline = Instant::now() + LIMIT;
    let mut stream = loop {
        match TcpStream::connect_timeout(&SocketAddr::new(address, 7), Duration::from_secs(5)) {
            Ok(stream) => break stream,
            // The program in the guest may not listen yet.
            Err(e) => assert!(Instant::now() < deadline, "{address}: {e}"),
        }
    };
    stream.set_read_timeout(Some(LIMIT)).expect("timeout");
    let sent: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
    let mut writer = stream.try_clone().expect("clone");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).expect("sending");
            writer.shutdown(std::net::Shutdown::Write).expect("end of what is sent");
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("receiving");
        assert!(received == sent, "{} of {bytes} bytes came back", received.len());
    });
}

#[track_caller]
fn ping(arguments: &str) {
    run(std::process::Command::new("/bin/busybox")
        .args(["ping", "-c", "2", "-A", "-w", LIMIT_S])
        .args(arguments.split(' ')))
    .expect(0);
}

#[test]
fn populated_namespace_is_the_guests_network_in_both_families() {
    // The first namespace with a name brings a mount.
    drop(Namespace::new());
    let before = Leftovers::now();
    let namespace = Namespace::new();
    namespace.connect("eth0", &["10.71.0.1/24", "fd71::1/64"]);
    namespace.connect("net1", &["10.72.0.1/24"]);
    namespace.ip("link set eth0 mtu 9000");
    ip(&format!("link set {} mtu 9000", outer(&namespace, "eth0")));
    namespace.ip("addr add 10.71.0.2/24 brd + dev eth0");
    namespace.ip("addr add 10.71.0.3/24 dev eth0");
    namespace.ip("addr add fd71::2/64 dev eth0 nodad");
    namespace.ip("addr add 10.72.0.2/24 dev net1");
    namespace.ip("route add default via 10.71.0.1");
    namespace.ip("route add default via fd71::1");
    namespace.ip("route add 192.0.2.0/24 dev net1 metric 7");
    namespace.ip("neigh add 10.71.0.77 lladdr 02:00:00:00:00:77 nud permanent dev eth0");
    let inventory = namespace.inventory();
    let addresses = namespace.ip("-br addr");
    let mac = |text: &str| text.split("link/ether ").nth(1).map(|t| t[..17].to_owned());
    let eth0 = mac(&namespace.ip("link show eth0"));

    let container = Container::started(server(&namespace));
    assert_eq!(mac(&container.exec("ip link show eth0").text()), eth0);
    assert_eq!(namespace.ip("-br addr show dev eth0"), addresses_of(&addresses, "eth0"));
    let inside = container.exec("ip addr").text();
    for wanted in [
        "eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 9000",
        "inet 10.71.0.2/24 brd 10.71.0.255 scope global",
        "inet 10.71.0.3/24 scope global secondary",
        "inet6 fd71::2/64 scope global",
        "net1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500",
        "inet 10.72.0.2/24",
    ] {
        assert!(inside.contains(wanted), "{wanted}: {inside}");
    }
    assert_eq!(inside.matches("link/ether").count(), 2, "{inside}");
    assert_eq!(sorted(&container.exec("ip route").text()), sorted(&namespace.ip("route")));
    let routes = container.exec("ip -6 route").text();
    assert!(routes.contains("default via fd71::1 dev eth0"), "{routes}");
    let neighbors = container.exec("ip neigh").text();
    assert!(neighbors.contains("10.71.0.77 dev eth0 lladdr 02:00:00:00:00:77"), "{neighbors}");

    ping("10.71.0.2");
    ping("-s 8972 10.71.0.3");
    ping("fd71::2");
    for address in ["10.71.0.2", "fd71::2", "10.72.0.2"] {
        echo(address, 1 << 20);
    }
    container.exec(&format!("ping -c 1 -w {LIMIT_S} -s 8972 10.71.0.1")).expect(0);
    container.exec(&format!("ping -c 1 -w {LIMIT_S} fd71::1")).expect(0);

    drop(container);
    assert_eq!(namespace.inventory(), inventory);
    drop(namespace);
    before.assert_none();
}

fn sorted(text: &str) -> Vec<String> {
    // The guest's busybox does not tell who made a route.
    let words = |line: &str| {
        line.replace("proto kernel", "").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let mut lines: Vec<String> = text.lines().map(words).collect();
    lines.sort();
    lines
}

fn addresses_of(all: &str, name: &str) -> String {
    let found = all.lines().find(|line| line.split(['@', ' ']).next() == Some(name));
    found.expect("the interface").trim_end().to_owned()
}

/// The outer end of an interface of the namespace.
fn outer(namespace: &Namespace, inside: &str) -> String {
    let link = namespace.ip(&format!("-o link show {inside}"));
    let peer = link.split("@if").nth(1).and_then(|rest| rest.split(':').next()).expect("a pair");
    let all = ip("-o link");
    let line = all.lines().find(|line| line.starts_with(&format!("{peer}: "))).expect("peer");
    line.split(": ").nth(1).and_then(|name| name.split('@').next()).expect("name").to_owned()
}

#[test]
fn changes_in_the_namespace_reach_the_running_guest() {
    let namespace = Namespace::new();
    namespace.connect("eth0", &["10.73.0.1/24"]);
    namespace.ip("addr add 10.73.0.2/24 dev eth0");
    let inventory = namespace.inventory();
    let container = Container::started(server(&namespace));
    echo("10.73.0.2", 1 << 16);

    namespace.connect("late0", &["10.74.0.1/24", "fd74::1/64"]);
    namespace.ip("addr add 10.74.0.2/24 dev late0");
    namespace.ip("addr add fd74::2/64 dev late0 nodad");
    container.exec_until("ip addr show dev late0", |text| {
        text.contains("10.74.0.2/24") && text.contains("fd74::2/64")
    });
    echo("10.74.0.2", 1 << 16);
    echo("fd74::2", 1 << 16);

    namespace.ip("route add 198.51.100.0/24 via 10.74.0.1");
    container.exec_until("ip route", |text| text.contains("198.51.100.0/24 via 10.74.0.1"));
    namespace.ip("route del 198.51.100.0/24");
    container.exec_until("ip route", |text| !text.contains("198.51.100.0/24"));
    namespace.ip("addr del 10.73.0.2/24 dev eth0");
    namespace.ip("addr add 10.73.0.9/24 dev eth0");
    let only = |text: &str| text.contains("10.73.0.9/24") && !text.contains("10.73.0.2/24");
    container.exec_until("ip addr show dev eth0", only);
    echo("10.73.0.9", 1 << 16);

    namespace.ip("link set eth0 mtu 1400");
    container.exec_until("ip link show dev eth0", |text| text.contains("mtu 1400"));
    namespace.ip("link set eth0 mtu 4000");
    container.exec_until("ip link show dev eth0", |text| text.contains("mtu 4000"));
    echo("10.73.0.9", 1 << 16);
    // Kernels before 6.2 rename what is down.
    namespace.ip("link set late0 down");
    namespace.ip("link set late0 name renamed0");
    namespace.ip("link set renamed0 up");
    container.exec_until("ip link", |text| text.contains("renamed0") && !text.contains("late0"));

    namespace.ip("link del renamed0");
    container.exec_until("ip link", |text| !text.contains("renamed0"));
    // Its place is free again.
    for round in 0..5 {
        namespace.connect("again0", &[]);
        namespace.ip(&format!("addr add 10.75.{round}.2/24 dev again0"));
        let wanted = format!("10.75.{round}.2/24");
        container.exec_until("ip addr", |text| text.contains(&wanted));
        namespace.ip("link del again0");
        container.exec_until("ip link", |text| !text.contains("again0"));
    }
    echo("10.73.0.9", 1 << 16);
    drop(container);
    assert_eq!(namespace.inventory(), inventory);
}

#[test]
fn namespace_populated_between_create_and_start_is_the_guests() {
    // As Docker 28 does: the namespace is that of the process in the pid file.
    let mut bundle = Bundle::script("ip addr; exec nc -ll -p 7 -e cat");
    bundle.edit(|config| config["linux"]["sysctl"] = json!({"net.core.somaxconn": "77"}));
    let container = Container::create(bundle);
    let pid = container.0.supervisor.as_raw_pid();
    let path = format!("/proc/{pid}/ns/net");
    let own = fs::read_link("/proc/self/ns/net").expect("link");
    assert_ne!(fs::read_link(&path).expect("link"), own);
    let namespace = unique_id("docker");
    ip(&format!("netns attach {namespace} {pid}"));
    let outside = format!("vd{pid}");
    ip(&format!("link add {outside} type veth peer name tmp0 netns {namespace}"));
    ip(&format!("addr add 10.76.0.1/24 dev {outside}"));
    ip(&format!("link set {outside} up"));
    ip(&format!("-n {namespace} link set tmp0 name eth0"));
    ip(&format!("-n {namespace} addr add 10.76.0.2/24 dev eth0"));
    ip(&format!("-n {namespace} link set eth0 up"));
    ip(&format!("-n {namespace} route add default via 10.76.0.1"));
    container.0.start();
    echo("10.76.0.2", 1 << 16);
    // It was there before the workload ran.
    container.0.prints("inet 10.76.0.2/24");
    assert_eq!(container.exec("cat /proc/sys/net/core/somaxconn").text(), "77");
    assert!(container.exec("ls /sys/class/net").text().contains("eth0"));
    drop(container);
    ip(&format!("netns del {namespace}"));
}

#[test]
fn container_without_interfaces_has_loopback_only() {
    let script = "ls /sys/class/net; ip route; nc -l -p 7 -e cat & \
                  until echo through | nc 127.0.0.1 7; do :; done";
    let outcome = run_bundle(&Bundle::script(script)).expect(0);
    assert_eq!(outcome.text(), "lo\nthrough");
}

fn run_bundle(bundle: &Bundle) -> Outcome {
    run(bulkhead().args(["run", "--bundle"]).arg(bundle.path()).arg(unique_id("run")))
}

#[test]
fn killed_supervisor_leaves_nothing_behind_a_forced_delete() {
    let namespace = Namespace::new();
    namespace.connect("eth0", &[]);
    namespace.ip("addr add 10.77.0.2/24 dev eth0");
    let inventory = namespace.inventory();
    let container = Container::create(server(&namespace));
    assert_ne!(namespace.inventory(), inventory);
    let taken = run_bundle(&server(&namespace)).expect(1);
    assert!(taken.stderr.contains("belongs to the microVM of process"), "{}", taken.stderr);
    let pid = container.0.supervisor;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    container.0.ended();
    assert_ne!(namespace.inventory(), inventory, "the kill left the redirection");
    run(bulkhead().args(["delete", "--force", &container.0.id])).expect(0);
    assert_eq!(namespace.inventory(), inventory);
}

#[test]
fn bad_namespaces_are_refused_by_name_and_leave_nothing() {
    // The first namespace with a name brings a mount.
    drop(Namespace::new());
    let before = Leftovers::now();
    let refused = |path: &str, words: &str| {
        let mut bundle = Bundle::new(&["/bin/true"]);
        netns::join(&mut bundle, path);
        let outcome = run_bundle(&bundle).expect(1);
        assert!(outcome.stderr.contains(words), "{path}: {}", outcome.stderr);
    };
    refused("/run/netns/absent", "/run/netns/absent: No such file");
    refused("/etc/passwd", "/etc/passwd is no network namespace");
    refused("/proc/1/ns/uts", "is no network namespace");
    refused("/proc/1/ns/net", "is the network of the host");
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|n| n["type"] != "network");
    });
    let outcome = run_bundle(&bundle).expect(1);
    assert!(outcome.stderr.contains("the network of the host cannot be shared"));

    let namespace = Namespace::new();
    namespace.connect("eth0", &[]);
    let inventory = namespace.inventory();
    fs::rename("/dev/net/tun", "/dev/net/gone").expect("hiding /dev/net/tun");
    let outcome = run_bundle(&server(&namespace));
    fs::rename("/dev/net/gone", "/dev/net/tun").expect("showing /dev/net/tun");
    let said = outcome.expect(1).stderr;
    assert!(said.contains("/dev/net/tun cannot be opened: No such file"), "{said}");
    namespace.ip("link add br0 type bridge");
    namespace.ip("link set br0 up");
    for i in 0..7 {
        namespace.connect(&format!("e{i}"), &[]);
    }
    let said = run_bundle(&server(&namespace)).expect(1).stderr;
    assert!(said.contains("is one too many: the guest has place for 8"), "{said}");
    for i in 0..7 {
        namespace.ip(&format!("link del e{i}"));
    }
    namespace.ip("link del br0");
    assert_eq!(namespace.inventory(), inventory);
    drop(namespace);
    before.assert_none();
}

#[test]
fn killed_vmm_leaves_the_namespace_clean() {
    let namespace = Namespace::new();
    namespace.connect("eth0", &[]);
    let inventory = namespace.inventory();
    let container = Container::started(server(&namespace));
    let record = fs::read(format!("/run/bulkhead/{}/state.json", container.0.id)).expect("record");
    let record: Value = serde_json::from_slice(&record).expect("JSON");
    for child in record["children"].as_array().expect("children") {
        let pid = child["pid"].as_i64().expect("pid") as i32;
        let pid = rustix::process::Pid::from_raw(pid).expect("pid");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    container.0.ended();
    assert_eq!(namespace.inventory(), inventory);
}
