//! Docker with `bulkhead` as its runtime: its bridge, published ports, exit codes, and nothing
//! left behind.

use std::net::SocketAddr;

use bulkhead_tests::bundle::busybox_root;
use bulkhead_tests::docker::Docker;
use bulkhead_tests::{Leftovers, netns, peer};

#[test]
fn docker_connects_and_publishes() {
    let root = tempfile::tempdir().expect("temp dir");
    busybox_root(root.path());
    peer::install(env!("CARGO_BIN_EXE_peer"), root.path());
    let docker = Docker::start("10.87.0.1/24");
    docker.import(root.path(), "peer");
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
    peer::serve().expect("the host's ports are free");
    let own = to("10.87.0.1", peer::ECHO).to_string();
    docker.run(&["exec", "server", peer::PROGRAM, "tcp", &own]).expect(0);
    docker.run(&["rm", "--force", "server"]).expect(0);
    before.assert_none();
    drop(docker);
    netns::ip("link del docker0");
}
