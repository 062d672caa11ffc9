//! The bridge for real, between namespaces of the test's own: a host with a `/run` of its own,
//! and containers whose programs are threads.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::link::in_namespace;
use super::*;

/// How long what must come is waited for.
const LIMIT: Duration = Duration::from_secs(120);
/// How long what never comes is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

fn network_of_this_thread() -> OwnedFd {
    fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}

/// Moves this thread into a new network namespace, and gives it. Its loopback is down.
fn new_network() -> OwnedFd {
    // SAFETY: only this thread's network namespace changes; no descriptor table is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    network_of_this_thread()
}

/// Runs `test` in a thread that sees a host without a network, unless this machine cannot.
fn on_a_host(test: impl FnOnce(&OwnedFd) + Send) {
    if !rustix::process::geteuid().is_root() || nft::program().is_none() {
        println!("skipped: needs root and nftables");
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the thread's mounts and directory become its own; no descriptor table is
            // unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
            let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", flags).unwrap();
            mount("run", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
            let host = new_network();
            let mut netlink = crate::network::netlink::Netlink::open().unwrap();
            link::bring_up(&mut netlink, link::index("lo").unwrap()).unwrap();
            test(&host);
        });
    });
}

/// A container: its namespace and what connects it.
struct Container {
    network: OwnedFd,
    uplink: Option<Uplink>,
    address: Ipv4Addr,
}

impl Container {
    fn new(host: &OwnedFd, texts: &[&str]) -> Result<Self, Failure> {
        Self::connected(Backend::Bridge, host, texts)
    }

    fn connected(backend: Backend, host: &OwnedFd, texts: &[&str]) -> Result<Self, Failure> {
        let network = new_network();
        let hosts = tempfile::NamedTempFile::new().unwrap();
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        let request = Request {
            backend,
            ports: ports(&texts).unwrap(),
            hosts: Some((hosts.path().to_owned(), "name".to_owned())),
        };
        // Leases belong to processes; two containers of one test are two processes.
        let own = ProcessId::own().unwrap();
        let uplink = connect(&request, own, host.as_fd(), |_| Ok(()))?;
        let line = fs::read_to_string(hosts.path()).unwrap();
        let (address, name) = line.trim().split_once('\t').unwrap();
        assert_eq!(name, "name");
        Ok(Self { network, uplink: Some(uplink), address: address.parse().unwrap() })
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_namespace(self.network.as_fd(), work).unwrap()
    }
}

/// Serves one connection on `port` with its peer's address.
fn serve_peer(listener: TcpListener) {
    let mut fds = [rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec::try_from(LIMIT).unwrap();
    if rustix::event::poll(&mut fds, Some(&limit)).unwrap() == 0 {
        return;
    }
    let (mut stream, peer) = listener.accept().unwrap();
    stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
}

/// What a server says that answers.
fn ask(address: impl Into<SocketAddr>) -> std::io::Result<String> {
    ask_within(address, LIMIT)
}

/// Whether nobody can be reached there.
fn is_closed(address: impl Into<SocketAddr>) -> bool {
    ask_within(address, PATIENCE).is_err()
}

fn ask_within(address: impl Into<SocketAddr>, limit: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), limit)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn links() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = text.lines().skip(2).map(|line| line.split(':').next().unwrap().trim().to_owned());
    names.filter(|name| name == bridge::BRIDGE || name.starts_with("bh-")).collect()
}

fn ruleset() -> String {
    let output = std::process::Command::new(nft::program().unwrap())
        .args(["list", "ruleset"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn published_port_answers_on_every_address_of_the_host() {
    on_a_host(|host| {
        let container = Container::new(host, &["8080:80", "127.0.0.2:9090:80"]).unwrap();
        let gateway = Ipv4Addr::new(10, 241, 0, 1);
        for address in [
            SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            SocketAddr::from((gateway, 8080)),
            SocketAddr::from(([127, 0, 0, 2], 9090)),
        ] {
            let listener = container.inside(|| TcpListener::bind("0.0.0.0:80").unwrap());
            std::thread::scope(|scope| {
                scope.spawn(|| serve_peer(listener));
                let asked = in_namespace(host.as_fd(), || ask(address)).unwrap();
                assert_eq!(asked.unwrap(), gateway.to_string(), "{address}");
            });
        }
        let elsewhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
        assert!(in_namespace(host.as_fd(), || is_closed(elsewhere)).unwrap());
    });
}

#[test]
fn datagrams_reach_a_published_port_and_are_answered() {
    on_a_host(|host| {
        let container = Container::new(host, &["5353:53/udp"]).unwrap();
        let server = container.inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        let client = in_namespace(host.as_fd(), || UdpSocket::bind("127.0.0.1:0").unwrap());
        let client = client.unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(LIMIT)).unwrap();
        }
        client.send_to(b"ask", "127.0.0.1:5353").unwrap();
        let mut buffer = [0; 8];
        let (length, peer) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"ask");
        server.send_to(b"answer", peer).unwrap();
        let (length, peer) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], peer), (&b"answer"[..], "127.0.0.1:5353".parse().unwrap()));
    });
}

#[test]
fn container_reaches_the_host_and_others_but_not_the_hosts_loopback() {
    on_a_host(|host| {
        let container = Container::new(host, &["8080:80"]).unwrap();
        let gateway = Ipv4Addr::new(10, 241, 0, 1);
        let bind = |address: &str| in_namespace(host.as_fd(), || TcpListener::bind(address));
        let everywhere = bind("0.0.0.0:7000").unwrap().unwrap();
        let loopback = bind("127.0.0.1:7001").unwrap().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| serve_peer(everywhere));
            let asked = container.inside(|| ask((gateway, 7000)));
            assert_eq!(asked.unwrap(), container.address.to_string());
        });
        // Without a loopback of its own, what it sends to 127.0.0.1 goes to the host.
        container.inside(|| {
            fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
            assert!(is_closed((Ipv4Addr::LOCALHOST, 7001)));
        });
        drop(loopback);
        // Its own published port, by way of the host.
        let listener = container.inside(|| TcpListener::bind("0.0.0.0:80").unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| serve_peer(listener));
            assert_eq!(container.inside(|| ask((gateway, 8080))).unwrap(), gateway.to_string());
        });
    });
}

#[test]
fn nothing_is_left_when_the_last_container_ends() {
    on_a_host(|host| {
        let mut container = Container::new(host, &["8080:80"]).unwrap();
        in_namespace(host.as_fd(), || {
            assert_eq!(links().len(), 2, "{:?}", links());
            assert!(ruleset().contains("table ip bulkhead"), "{}", ruleset());
        })
        .unwrap();
        drop(container.uplink.take());
        in_namespace(host.as_fd(), || {
            assert_eq!(links(), Vec::<String>::new());
            assert_eq!(ruleset(), "");
        })
        .unwrap();
        assert!(container.inside(|| link::index(INTERFACE).is_none()));
    });
}

#[test]
fn lease_of_a_killed_supervisor_is_collected() {
    on_a_host(|host| {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let holder = ProcessId::of(child.id()).unwrap();
        let network = new_network();
        let ports = ports(&["8080:80".to_owned()]).unwrap();
        let connection = bridge::connect(holder, &ports, host.as_fd()).unwrap();
        in_namespace(host.as_fd(), collect).unwrap().unwrap();
        assert_eq!(in_namespace(host.as_fd(), links).unwrap().len(), 2);
        child.kill().unwrap();
        child.wait().unwrap();
        in_namespace(host.as_fd(), collect).unwrap().unwrap();
        assert!(in_namespace(host.as_fd(), links).unwrap().is_empty());
        assert_eq!(in_namespace(host.as_fd(), ruleset).unwrap(), "");
        drop((connection, network));
    });
}

#[test]
fn network_of_the_killed_is_free_again() {
    on_a_host(|host| {
        let mut gone = vec![];
        for _ in 0..2 {
            let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            let holder = ProcessId::of(child.id()).unwrap();
            let network = new_network();
            let connection = bridge::connect(holder, &[], host.as_fd()).unwrap();
            assert_eq!(connection.address().octets()[..2], [10, 241]);
            child.kill().unwrap();
            child.wait().unwrap();
            gone.push((connection, network));
        }
    });
}

#[test]
fn container_cannot_pass_for_the_hosts_loopback() {
    on_a_host(|host| {
        let container = Container::new(host, &["8080:80"]).unwrap();
        let server = in_namespace(host.as_fd(), || UdpSocket::bind("0.0.0.0:7000")).unwrap();
        let server = server.unwrap();
        server.set_read_timeout(Some(LIMIT)).unwrap();
        container.inside(|| {
            let false_address = Ipv4Addr::new(127, 0, 0, 2);
            let mut netlink = crate::network::netlink::Netlink::open().unwrap();
            link::add_address(&mut netlink, link::index("eth0").unwrap(), false_address).unwrap();
            fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
            let socket = UdpSocket::bind((false_address, 0)).unwrap();
            socket.send_to(b"false", "10.241.0.1:7000").unwrap();
            let socket = UdpSocket::bind((container.address, 0)).unwrap();
            socket.send_to(b"true", "10.241.0.1:7000").unwrap();
        });
        let mut buffer = [0; 8];
        let (length, _) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"true");
    });
}

/// Gives the host a network, with a default route.
fn give_network(address: Ipv4Addr, gateway: Ipv4Addr) {
    let mut netlink = crate::network::netlink::Netlink::open().unwrap();
    link::make_bridge(&mut netlink, "up0").unwrap();
    let index = link::index("up0").unwrap();
    link::add_address(&mut netlink, index, address).unwrap();
    link::bring_up(&mut netlink, index).unwrap();
    link::add_default_route(&mut netlink, index, gateway).unwrap();
}

#[test]
fn pasta_connects_with_the_host_but_not_its_loopback_and_ends() {
    if pasta::program().is_none() {
        println!("skipped: needs passt");
        return;
    }
    on_a_host(|host| {
        let (address, gateway) = (Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(192, 0, 2, 1));
        in_namespace(host.as_fd(), || give_network(address, gateway)).unwrap();
        let mut container = Container::connected(Backend::Pasta, host, &[]).unwrap();
        assert_eq!(container.address, pasta::ADDRESS);
        let bind = |ip, port| in_namespace(host.as_fd(), move || TcpListener::bind((ip, port)));
        let outside = bind(address, 7000).unwrap().unwrap();
        let loopback = bind(Ipv4Addr::LOCALHOST, 7001).unwrap().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| serve_peer(outside));
            let asked = container.inside(|| ask((address, 7000)));
            assert_eq!(asked.unwrap(), address.to_string());
        });
        for ip in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 240, 0, 1)] {
            assert!(container.inside(|| is_closed((ip, 7001))), "{ip}");
        }
        drop((loopback, container.uplink.take()));
        assert!(container.inside(|| link::index(INTERFACE).is_none()));
    });
}

#[test]
fn port_that_is_in_use_is_an_error_that_leaves_nothing() {
    on_a_host(|host| {
        let listener = in_namespace(host.as_fd(), || TcpListener::bind("0.0.0.0:8080")).unwrap();
        let failure = Container::new(host, &["8080:80"]).map(drop).unwrap_err();
        assert!(failure.to_string().contains("publishing port 0.0.0.0:8080:80/tcp"), "{failure}");
        drop(listener);
        assert!(in_namespace(host.as_fd(), links).unwrap().is_empty());
    });
}
