//! Docker with `bulkhead` as its runtime: its bridge, published ports, exit codes, the names of
//! its networks, and nothing left behind.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Once;

use bulkhead_tests::bundle::busybox_root;
use bulkhead_tests::docker::Docker;
use bulkhead_tests::terminal::{SIZES, resized};
use bulkhead_tests::{Leftovers, is_full, netns, peer, run, wait_until};

/// A daemon whose image `peer` has busybox and the program of that name.
fn docker() -> Docker {
    let root = tempfile::tempdir().expect("temp dir");
    busybox_root(root.path());
    peer::install(env!("CARGO_BIN_EXE_peer"), root.path());
    let docker = Docker::start("10.87.0.1/24");
    docker.import(root.path(), "peer");
    docker
}

/// Ends the daemon, whose containers have left nothing, and its bridge.
#[track_caller]
fn end(docker: Docker, before: &Leftovers) {
    before.assert_none();
    drop(docker);
    netns::ip("link del docker0");
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
    end(docker, &before);
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
    end(docker, &before);
}

#[test]
fn container_is_driven_by_dockers_commands() {
    let docker = docker();
    let before = Leftovers::now();
    let data = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| data.path().join(name).display().to_string();
    fs::write(at("file"), "of the host\n").expect("a file");
    let bind = format!("{}:/data:ro", data.path().display());
    let script = "trap 'echo caught; exit 9' TERM; echo up; echo error >&2; echo volume >/vol/file; \
                  while :; do sleep 0.1; done";
    docker.run(&["volume", "create", "vol"]).expect(0);
    let flags = ["run", "--detach", "--name", "one", "--network", "none", "--memory", "200m"];
    let rest = ["-v", "vol:/vol", "-v", &bind, "peer", "/bin/sh", "-c", script];
    docker.run(&[&flags[..], &rest].concat()).expect(0);
    wait_until("the container's output", || {
        let logs = docker.run(&["logs", "one"]).expect(0);
        logs.text() == "up" && logs.stderr == "error\n"
    });
    let inspect =
        |format: &str| docker.run(&["inspect", "--format", format, "one"]).expect(0).text();

    let words = ["exec", "--user", "user", "--env", "WORD=said", "--workdir", "/tmp", "one"];
    let script = "echo $WORD $(pwd) $(id -un); cat /data/file /vol/file; exit 3";
    let outcome = docker.run(&[&words[..], &["/bin/sh", "-c", script]].concat()).expect(3);
    assert_eq!(outcome.text(), "said /tmp user\nof the host\nvolume");
    docker.run(&["exec", "one", "nowhere"]).expect(126);
    resized(docker.command(&["exec", "--interactive", "--tty", "one", "/bin/sh", "-c", SIZES]));

    docker.run(&["pause", "one"]).expect(0);
    assert_eq!(inspect("{{.State.Status}}"), "paused");
    docker.run(&["unpause", "one"]).expect(0);
    let stats = ["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "one"];
    let stats = docker.run(&stats).expect(0).text();
    assert!(stats.contains("MiB / "), "{stats}");
    docker.run(&["update", "--memory", "300m", "--memory-swap", "300m", "one"]).expect(0);
    docker.run(&["cp", &at("file"), "one:/copied"]).expect(0);
    assert_eq!(docker.run(&["exec", "one", "cat", "/copied"]).expect(0).text(), "of the host");
    docker.run(&["cp", "one:/vol/file", &at("volume")]).expect(0);
    assert_eq!(fs::read_to_string(at("volume")).expect("the file"), "volume\n");

    docker.run(&["kill", "--signal", "TERM", "one"]).expect(0);
    assert_eq!(docker.run(&["wait", "one"]).expect(0).text(), "9");
    assert_eq!(inspect("{{.State.Status}} {{.State.ExitCode}}"), "exited 9");
    docker.run(&["start", "one"]).expect(0);
    docker.run(&["stop", "one"]).expect(0);
    assert_eq!(docker.run(&["logs", "one"]).expect(0).text(), "up\ncaught\nup\ncaught");
    docker.run(&["rm", "one"]).expect(0);
    docker.run(&["volume", "rm", "vol"]).expect(0);
    end(docker, &before);
}

/// What a container leaves to the image that is built.
const DOCKERFILE: &str = "FROM peer
ENV SAID=built
RUN echo $SAID on $(uname -r) >/built
COPY file /copied
CMD [\"/bin/sh\", \"-c\", \"cat /built /copied; exit 4\"]
";

#[test]
fn images_are_built_and_containers_restarted() {
    if !is_full() {
        return println!("skipped: only of the long form");
    }
    let docker = docker();
    let before = Leftovers::now();
    let context = tempfile::tempdir().expect("temp dir");
    let write =
        |name: &str, text: &str| fs::write(context.path().join(name), text).expect("a file");
    write("Dockerfile", DOCKERFILE);
    write("file", "from the host\n");
    let directory = context.path().display().to_string();
    docker.run(&["build", "--tag", "built", &directory]).expect(0);
    let host = run(Command::new("uname").arg("-r")).expect(0).text();
    let built = docker.run(&["run", "--rm", "--network", "none", "built"]).expect(4).text();
    assert!(built.starts_with("built on 6.") && built.ends_with("\nfrom the host"), "{built}");
    assert!(!built.contains(&host), "{built}");

    let flags = ["run", "--rm", "--network", "none"];
    let terminal = ["--interactive", "--tty", "peer", "/bin/sh", "-c", SIZES];
    resized(docker.command(&[&flags[..], &terminal].concat()));
    docker.run(&[&flags[..], &["peer", "/nowhere"]].concat()).expect(127);
    docker.run(&[&flags[..], &["peer", "/etc/passwd"]].concat()).expect(126);

    let flags = ["run", "--detach", "--name", "again", "--network", "none"];
    let rest = ["--restart", "on-failure:2", "peer", "/bin/sh", "-c", "echo run; exit 3"];
    docker.run(&[&flags[..], &rest].concat()).expect(0);
    let format = "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}";
    wait_until("the last restart", || {
        docker.run(&["inspect", "--format", format, "again"]).expect(0).text() == "2 exited 3"
    });
    assert_eq!(docker.run(&["logs", "again"]).expect(0).text(), "run\nrun\nrun");
    docker.run(&["rm", "again"]).expect(0);
    end(docker, &before);
}
