//! Docker Compose runs an application of three tiers, each in a microVM of its own: nginx, a Python
//! program, Redis. They find each other by name, what is published answers, and what is on a volume
//! outlives its containers.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use bulkhead_tests::docker::Docker;
use bulkhead_tests::{Leftovers, Outcome, is_full, netns, run, wait_until};
use tempfile::TempDir;

/// Where the proxy is published on this host.
const PUBLISHED: &str = "127.0.0.1:8089";
/// The services, and what interfaces the networks of each give it.
const SERVICES: [(&str, &str); 3] =
    [("application", "eth0 eth1"), ("database", "eth0"), ("proxy", "eth0")];
/// Tells which kernel a program is on, and its interfaces.
const KERNEL: &str = "uname -r; cat /proc/sys/kernel/random/boot_id; cd /sys/class/net; echo eth*";

/// A project, and the daemon that its containers are of.
struct Shop {
    docker: Docker,
    files: TempDir,
}

impl Shop {
    fn new() -> Self {
        let docker = Docker::start("10.92.0.1/24");
        let archive = std::env::var_os("BULKHEAD_COMPOSE_ROOT")
            .expect("`cargo xtask test` sets BULKHEAD_COMPOSE_ROOT");
        docker.import_archive(Path::new(&archive), "shop");
        let files = tempfile::tempdir().expect("temp dir");
        for (name, text) in [
            ("compose.yml", include_str!("compose.yml")),
            ("checked.yml", include_str!("checked.yml")),
            ("nginx.conf", include_str!("nginx.conf")),
            ("application.py", include_str!("application.py")),
        ] {
            fs::write(files.path().join(name), text).expect("a file of the project");
        }
        Self { docker, files }
    }

    /// `docker-compose WORDS...`.
    fn compose(&self, words: &[&str]) -> Outcome {
        let mut compose = self.docker.client("docker-compose");
        compose.args(["--project-name", "shop", "--file", "compose.yml"]).args(words);
        // It waits for each answer of the daemon; those of an emulated machine take longer.
        compose.env("COMPOSE_HTTP_TIMEOUT", "600").current_dir(self.files.path());
        run(&mut compose)
    }

    /// The number of the next visit, and who counted it, once the tiers have found each other.
    #[track_caller]
    fn visit(&self) -> (u32, String) {
        let mut answer = String::new();
        wait_until("an answer of the shop", || {
            answer = get().unwrap_or_else(|error| error.to_string());
            answer.starts_with("HTTP/1.1 200 ")
        });
        let (_, body) = answer.split_once("\r\n\r\n").expect("a header and a body");
        let (number, server) = body.trim_end().split_once(' ').expect("two words");
        (number.parse().expect("a number"), server.to_owned())
    }

    /// The names of the daemon's objects of `kind` that are of this project.
    fn listed(&self, kind: &[&str]) -> String {
        let filter = ["--quiet", "--filter", "label=com.docker.compose.project=shop"];
        self.docker.run(&[kind, &filter].concat()).expect(0).text()
    }

    /// Removes the project with its volume; it has left nothing.
    #[track_caller]
    fn end(self, before: &Leftovers) {
        self.compose(&["down", "--volumes"]).expect(0);
        for kind in [&["ps", "--all"][..], &["network", "ls"], &["volume", "ls"]] {
            assert_eq!(self.listed(kind), "", "{kind:?}");
        }
        before.assert_none();
        drop(self.docker);
        netns::ip("link del docker0");
    }
}

/// What the published port answers.
fn get() -> std::io::Result<String> {
    let mut stream = TcpStream::connect(PUBLISHED)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn three_tiers_serve_from_kernels_of_their_own_and_keep_their_data() {
    let shop = Shop::new();
    let before = Leftovers::now();
    shop.compose(&["up", "--detach"]).expect(0);
    let (first, _) = shop.visit();
    assert_eq!(shop.visit().0, first + 1);

    let here = run(Command::new("/bin/sh").args(["-c", KERNEL])).expect(0).text();
    let mut kernels: BTreeSet<String> = here.lines().take(2).map(str::to_owned).collect();
    for (service, interfaces) in SERVICES {
        let told = shop.compose(&["exec", "-T", service, "sh", "-c", KERNEL]).expect(0).text();
        let [release, boot_id, found] = told.lines().collect::<Vec<_>>()[..] else {
            panic!("{told}");
        };
        assert!(!here.contains(release), "{service} has the kernel of the host: {release}");
        assert!(kernels.insert(boot_id.to_owned()), "{service} shares a kernel: {boot_id}");
        assert_eq!(found, interfaces, "{service}");
    }
    assert_eq!(shop.listed(&["ps"]).lines().count(), 3);
    let listed = shop.compose(&["ps"]).expect(0).text();
    assert_eq!(listed.matches(" Up ").count(), 3, "{listed}");
    assert!(listed.contains("0.0.0.0:8089->80/tcp"), "{listed}");
    let logs = shop.compose(&["logs", "--no-color"]).expect(0).text();
    for (service, line) in [
        ("proxy", "GET / HTTP/1.1\" 200"),
        ("application", "GET / HTTP/1.0\" 200"),
        ("database", "Ready to accept connections"),
    ] {
        let of_service = |text: &&str| text.starts_with(service) && text.contains(line);
        assert!(logs.lines().any(|text| of_service(&text)), "{service}: {logs}");
    }

    shop.compose(&["restart", "database"]).expect(0);
    assert_eq!(shop.visit().0, first + 2);
    shop.compose(&["down"]).expect(0);
    assert_eq!(shop.listed(&["volume", "ls"]), "shop_visits");
    shop.compose(&["up", "--detach"]).expect(0);
    assert_eq!(shop.visit().0, first + 3);
    shop.end(&before);
}

#[test]
fn services_are_checked_scaled_stopped_and_run_once() {
    if !is_full() {
        return println!("skipped: only of the long form");
    }
    let shop = Shop::new();
    let before = Leftovers::now();
    let two = ["--file", "checked.yml", "up", "--detach", "--scale", "application=2"];
    shop.compose(&two).expect(0);
    let state = ["inspect", "--format", "{{.State.Health.Status}}", "shop_database_1"];
    assert_eq!(shop.docker.run(&state).expect(0).text(), "healthy");
    let mut servers = BTreeSet::new();
    wait_until("answers of both servers", || {
        servers.insert(shop.visit().1);
        servers.len() == 2
    });
    assert_eq!(shop.compose(&["port", "proxy", "80"]).expect(0).text(), "0.0.0.0:8089");
    let processes = shop.compose(&["top"]).expect(0).text();
    assert_eq!(processes.matches("bulkhead-vmm").count(), 4, "{processes}");

    shop.compose(&["pause", "application"]).expect(0);
    let listed = shop.compose(&["ps", "application"]).expect(0).text();
    assert_eq!(listed.matches("Paused").count(), 2, "{listed}");
    shop.compose(&["unpause", "application"]).expect(0);
    let (count, _) = shop.visit();
    shop.compose(&["stop", "application"]).expect(0);
    let refused = get().expect("an answer of the proxy");
    assert!(refused.starts_with("HTTP/1.1 502 "), "{refused}");
    let counted = ["run", "--rm", "-T", "database", "redis-cli", "-h", "database", "get", "visits"];
    assert_eq!(shop.compose(&counted).expect(0).text(), count.to_string());
    shop.compose(&["run", "--rm", "-T", "--no-deps", "proxy", "sh", "-c", "exit 5"]).expect(5);
    shop.compose(&["start", "application"]).expect(0);
    assert_eq!(shop.visit().0, count + 1);
    let one = ["up", "--detach", "--scale", "application=1"];
    shop.compose(&one).expect(0);
    assert_eq!(shop.listed(&["ps"]).lines().count(), 3);
    shop.compose(&["kill", "-s", "TERM", "proxy"]).expect(0);
    wait_until("the end of the proxy", || get().is_err());
    shop.end(&before);
}
