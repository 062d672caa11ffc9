//! Docker with `bulkhead` as its runtime: its bridge, published ports, exit codes, the names of
//! its networks, and nothing left behind.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Once;

use bulkhead_tests::bundle::busybox_root;
use bulkhead_tests::docker::Docker;
use bulkhead_tests::{Leftovers, is_full, netns, peer};

/// A daemon whose image `peer` has busybox and the program of that name.
fn docker() -> Docker {
    let root = tempfile::tempdir().expect("temp dir");
    busybox_root(root.path());
    peer::install(env!("CARGO_BIN_EXE_peer"), root.path());
    let docker = Docker::start("10.87.0.1/24");
    docker.import(root.path(), "peer");
    docker
}

/// Serves on this host, for all tests.
fn serve_on_host() {
    static SERVING: Once = Once::new();
    SERVING.call_once(|| peer::serve().expect("the host's ports are free"));
}

#[test]
fn docker_connects_and_publishes() {
    let docker = docker();
    // The first one makes what stays: cgroups above the container's, mounts.
    let words = ["run", "--rm", "--network", "none", "peer", "/bin/sh", "-c", "echo out; exit 7"];
    let outcome = docker.run(&words);
    assert_eq!((outcome.code, outcome.text().as_str()), (7, "out"), "{}", outcome.stderr);
    let before = Leftovers::now();
    let (tcp, udp) = (format!("8088:{}", peer::ECHO), format!("8088:{}/udp", peer::ECHO));
    let words = ["run", "--detach", "--name", "server", "-p", &tcp, "-p", &udp, "peer"];
    docker.run(&[&words[..], &[peer::PROGRAM, "serve"]].concat()).expect(0);
    let format = "{{.NetworkSettings.IPAddress}}";
    let guest = docker.run(&["inspect", "--format", format, "server"]).expect(0).text();
    let to = |address: &str, port: u16| -> SocketAddr {
        SocketAddr::new(address.parse().expect("an address"), port)
    };
    for to in [to(&guest, peer::ECHO), to("10.87.0.1", 8088), to("127.0.0.1", 8088)] {
        peer::tcp(to).expect("TCP to the guest");
        peer::udp(to, 1000).expect("UDP to the guest");
    }
    serve_on_host();
    let own = to("10.87.0.1", peer::ECHO).to_string();
    docker.run(&["exec", "server", peer::PROGRAM, "tcp", &own]).expect(0);
    docker.run(&["rm", "--force", "server"]).expect(0);
    before.assert_none();
    drop(docker);
    netns::ip("link del docker0");
}

#[test]
fn names_of_a_network_lead_to_its_containers() {
    let docker = docker();
    let before = Leftovers::now();
    docker.run(&["network", "create", "--subnet", "10.88.0.0/24", "one"]).expect(0);
    docker.run(&["network", "create", "--subnet", "10.89.0.0/24", "two"]).expect(0);
    // Each serves names of its own on port 53 of every address.
    let start = |flags: &[&str]| {
        let words = [&["run", "--detach"], flags, &["peer", peer::PROGRAM, "serve"]].concat();
        docker.run(&words).expect(0);
    };
    start(&["--name", "server", "--network", "one", "--network-alias", "alias"]);
    start(&["--name", "client", "--network", "one", "--dns", "10.88.0.1"]);
    let to = |name: &str| format!("{name}:{}", peer::ECHO);
    let ask = |from: &str, name: &str| docker.run(&["exec", from, peer::PROGRAM, "tcp", &to(name)]);
    ask("client", "server").expect(0);
    ask("server", "client").expect(0);
    let by_tcp = ["exec", "--env", "RES_OPTIONS=use-vc", "client", peer::PROGRAM, "tcp"];
    docker.run(&[&by_tcp[..], &[&to("alias")]].concat()).expect(0);
    // What the daemon does not know it asks the host, from the client's namespace.
    serve_on_host();
    let look_up = |name: &str| docker.run(&["exec", "client", "nslookup", name]).text();
    let outside = Ipv4Addr::from(peer::ANSWER).to_string();
    let found = look_up("some.example");
    assert!(found.contains(&outside), "{found}");

    let processes = docker.run(&["top", "server"]).expect(0).text();
    for name in ["bulkhead ", "bulkhead-vmm", "bulkhead-fsd"] {
        assert!(processes.contains(name), "{name}: {processes}");
    }
    assert_eq!(processes.lines().count(), 4, "{processes}");
    if is_full() {
        for name in ["server", "client"] {
            docker
                .run(&["network", "connect", "--alias", &format!("second-{name}"), "two", name])
                .expect(0);
        }
        let found = look_up("second-server");
        assert!(found.contains("10.89.0.2") && !found.contains(&outside), "{found}");
        ask("client", "second-server").expect(0);
        docker.run(&["network", "disconnect", "two", "server"]).expect(0);
        let found = look_up("second-server");
        assert!(found.contains(&outside), "{found}");
        ask("client", "server").expect(0);
    }
    docker.run(&["rm", "--force", "server", "client"]).expect(0);
    docker.run(&["network", "rm", "one", "two"]).expect(0);
    before.assert_none();
    drop(docker);
    netns::ip("link del docker0");
}
