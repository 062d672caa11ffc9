//! The network that `bulkhead launch` makes, seen from inside guests: out to a network beyond the
//! host, names, published ports, and nothing left on the host.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use bulkhead_tests::netns::{Namespace, ip};
use bulkhead_tests::peer::{self, Served};
use bulkhead_tests::{Image, Leftovers, Outcome, bulkhead, run, unique_id};
use serde_json::json;
use tempfile::TempDir;

const PEER: &str = env!("CARGO_BIN_EXE_peer");
/// The network beyond the host: the host's addresses there and those of its only machine.
const HOST: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const BEYOND: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Bytes of a stream.
const SOME: u64 = 4 << 20;

/// A network beyond the host, to which its default routes lead, with servers.
struct World {
    beyond: Namespace,
    _servers: Served,
}

impl World {
    fn new() -> Self {
        let beyond = Namespace::new();
        let outer =
            beyond.connect("up0", &[&format!("{}/24", HOST[0]), &format!("{}/64", HOST[1])]);
        beyond.ip(&format!("addr add {}/24 dev up0", BEYOND[0]));
        beyond.ip(&format!("addr add {}/64 dev up0 nodad", BEYOND[1]));
        for address in BEYOND {
            ip(&format!("route add default via {address} dev {outer}"));
        }
        let servers = Served::start(PEER, &beyond.path());
        Self { beyond, _servers: servers }
    }

    /// Asks from beyond the host, as `peer` does.
    #[track_caller]
    fn ask(&self, words: &str) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.beyond.path())).arg(PEER).args(words.split(' '));
        run(&mut command).expect(0);
    }
}

/// Containers of an image that serves.
struct Store {
    directory: TempDir,
    image: String,
    _files: Image,
}

impl Store {
    fn new() -> Self {
        let mut image = Image::busybox(json!({
            "Entrypoint": [peer::PROGRAM], "Cmd": ["serve"], "Env": ["PATH=/bin"],
        }));
        image.layer(|tree| peer::install(PEER, tree));
        let builder = tempfile::Builder::new().prefix("store-").tempdir_in("/var/tmp");
        let directory = builder.expect("a directory in /var/tmp");
        Self { directory, image: image.layout(), _files: image }
    }

    fn run(&self, flags: &[&str], command: &[&str]) -> Outcome {
        let mut launch = bulkhead();
        launch.arg("launch").arg("--store").arg(self.directory.path());
        run(launch.args(flags).arg(&self.image).args(command))
    }

    /// A container in the background that serves.
    #[track_caller]
    fn serve(&self, flags: &[&str]) -> Container {
        let name = unique_id("uplink");
        let flags: Vec<&str> = ["-d", "--name", &name].iter().chain(flags).copied().collect();
        self.run(&flags, &[]).expect(0);
        Container(name)
    }
}

/// A container that is deleted by force when dropped.
struct Container(String);

impl Container {
    #[track_caller]
    fn exec(&self, command: &str) -> String {
        let mut exec = bulkhead();
        exec.args(["exec", &self.0]).args(command.split(' '));
        run(&mut exec).expect(0).text()
    }

    /// Has the guest ask, as `peer` does.
    #[track_caller]
    fn ask(&self, words: &str) {
        self.exec(&format!("{} {words}", peer::PROGRAM));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = run(bulkhead().args(["delete", "--force", &self.0]));
    }
}

/// Both protocols, a stream each way and a name, from the guest to beyond the host.
fn goes_out(container: &Container) {
    let beyond = BEYOND[0];
    container.ask(&format!("udp {beyond}:{} 1000", peer::ECHO));
    container.ask(&format!("upload {beyond}:{} {SOME}", peer::SINK));
    container.ask(&format!("download {beyond}:{} {SOME}", peer::SOURCE));
    let found = container.exec("nslookup some.example");
    assert!(found.contains(&Ipv4Addr::from(peer::ANSWER).to_string()), "{found}");
    let hosts = container.exec("cat /etc/hosts");
    let own = container.exec("hostname");
    let addresses = container.exec("ip addr show dev eth0");
    let mut lines = hosts.lines().filter_map(|line| line.split_once('\t'));
    let (address, _) = lines.find(|(_, name)| *name == own).expect("its own name");
    assert!(addresses.contains(&format!("inet {address}/")), "{address}: {addresses}");
}

/// Rules of the host, without what they have counted.
fn ruleset() -> String {
    run(Command::new("nft").args(["--stateless", "list", "ruleset"])).expect(0).text()
}

#[test]
fn guest_reaches_beyond_the_host_by_pasta() {
    let store = Store::new();
    let world = World::new();
    let before = Leftovers::now();
    // No stream is ended in one direction while the other goes on: Debian 12's pasta repeats bytes
    // of such.
    let container = store.serve(&["--network", "pasta", "--dns", BEYOND[0]]);
    goes_out(&container);
    container.ask(&format!("upload [{}]:{} {SOME}", BEYOND[1], peer::SINK));
    container.ask(&format!("udp [{}]:{} 1000", BEYOND[1], peer::ECHO));
    assert!(!ip("-o link").contains("bulkhead0"), "no bridge is needed");
    drop(container);
    before.assert_none();
    drop(world);
}

#[test]
fn guest_reaches_beyond_the_host_by_the_bridge_and_its_ports_are_reached() {
    let store = Store::new();
    let world = World::new();
    let before = Leftovers::now();
    let rules = ruleset();
    let own = format!("127.0.0.1:8082:{}", peer::ECHO);
    let (tcp, udp) = (format!("8081:{}", peer::ECHO), format!("8081:{}/udp", peer::ECHO));
    let container = store.serve(&["--dns", BEYOND[0], "-p", &tcp, "-p", &udp, "-p", &own]);
    goes_out(&container);
    container.ask(&format!("tcp {}:{}", BEYOND[0], peer::ECHO));
    container.exec(&format!("ping -c 2 -A -w 120 {}", BEYOND[0]));
    world.ask(&format!("tcp {}:8081", HOST[0]));
    world.ask(&format!("udp {}:8081 1000", HOST[0]));
    let on_host = |text: String| text.parse::<SocketAddr>().expect("an address");
    for port in ["127.0.0.1:8081".to_owned(), format!("{}:8081", HOST[0])] {
        peer::tcp(on_host(port.clone())).expect("TCP from the host");
        peer::udp(on_host(port), 1000).expect("UDP from the host");
    }
    peer::tcp(on_host("127.0.0.1:8082".to_owned())).expect("TCP to the loopback");
    let refused = TcpStream::connect(on_host(format!("{}:8082", HOST[0])));
    assert_eq!(refused.map(drop).map_err(|e| e.kind()), Err(ErrorKind::ConnectionRefused));

    // Another one, by way of the host and by the bridge.
    let other = store.serve(&[]);
    other.ask(&format!("tcp {}:8081", HOST[0]));
    other.ask(&format!("udp {}:8081 1000", HOST[0]));
    let addresses = container.exec("ip addr show dev eth0");
    let address = addresses.split("inet ").nth(1).and_then(|text| text.split('/').next());
    other.ask(&format!("tcp {}:{}", address.expect("an IPv4 address"), peer::ECHO));
    let taken = store.run(&["--rm", "-p", &tcp], &[]).expect(125);
    assert!(taken.stderr.contains("publishing port 0.0.0.0:8081"), "{}", taken.stderr);
    drop((container, other));
    before.assert_none();
    assert_eq!(ruleset(), rules);
    drop(world);
}

#[test]
fn without_a_network_there_is_loopback_only() {
    let store = Store::new();
    let before = Leftovers::now();
    let container = store.serve(&["--network", "none"]);
    assert_eq!(container.exec("ls /sys/class/net"), "lo");
    container.ask(&format!("tcp 127.0.0.1:{}", peer::ECHO));
    container.ask(&format!("udp [::1]:{} 1000", peer::ECHO));
    drop(container);
    before.assert_none();
}
