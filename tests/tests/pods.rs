//! Several containers in one microVM: what they share and what they do not, each one's life, and
//! what is left when one or all end.

use std::fs;

use bulkhead_tests::{Bundle, Created, Leftovers, Outcome, bulkhead, run, unique_id};
use serde_json::{Value, json};

const SLEEP: &str = "while :; do sleep 1; done";

/// A container that waits, as the first of a pod.
fn sandbox() -> Created {
    let mut bundle = Bundle::script(SLEEP);
    bundle.edit(|config| config["hostname"] = json!("pod"));
    let created = Created::new(unique_id("pods"), bundle);
    created.start();
    created
}

/// A bundle that runs `script` in the microVM of `sandbox`; it shares the namespaces of `kinds`.
fn member(sandbox: &Created, script: &str, kinds: &[&str]) -> Bundle {
    let mut bundle = Bundle::script(script);
    let pid = sandbox.supervisor.as_raw_pid();
    bundle.edit(|config| {
        config["annotations"] = json!({"io.bulkhead.sandbox": sandbox.id});
        share(config, pid, kinds);
    });
    bundle
}

fn share(config: &mut Value, pid: i32, kinds: &[&str]) {
    for namespace in config["linux"]["namespaces"].as_array_mut().expect("namespaces") {
        let kind = namespace["type"].as_str().expect("a type").to_owned();
        if kinds.contains(&kind.as_str()) {
            let file = if kind == "network" { "net" } else { &kind };
            namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
        }
    }
    if kinds.contains(&"uts") {
        config.as_object_mut().expect("an object").remove("hostname");
    }
}

fn create(bundle: Bundle) -> Created {
    Created::new(unique_id("pods"), bundle)
}

/// What `create` of `bundle` says when it is refused.
#[track_caller]
fn refused(bundle: &Bundle) -> String {
    let id = unique_id("pods");
    let outcome = run(bulkhead().args(["create", "--bundle"]).arg(bundle.path()).arg(&id));
    assert_ne!(outcome.code, 0);
    run(bulkhead().args(["state", &id])).expect(1);
    outcome.stderr
}

fn exec(container: &Created, script: &str) -> Outcome {
    container.command(&["exec"], &["/bin/sh", "-c", script])
}

#[track_caller]
fn says(container: &Created, script: &str) -> String {
    exec(container, script).expect(0).text().trim().to_owned()
}

fn status(container: &Created) -> String {
    let outcome = container.command(&["state"], &[]).expect(0);
    let state: Value = serde_json::from_slice(&outcome.stdout).expect("state is JSON");
    state["status"].as_str().expect("a status").to_owned()
}

#[test]
fn containers_share_what_the_specification_says() {
    let before = Leftovers::now();
    let first = sandbox();
    let second = create(member(&first, SLEEP, &["network", "ipc", "uts", "pid"]));
    second.start();
    let third = create(member(&first, SLEEP, &["network"]));
    third.start();
    for kind in ["net", "ipc", "uts", "pid"] {
        let look = format!("readlink /proc/self/ns/{kind}");
        let of = |container| says(container, &look);
        assert_eq!(of(&first), of(&second), "{kind}");
        assert_eq!(of(&first) == of(&third), kind == "net", "{kind}");
    }
    assert_eq!(says(&second, "hostname"), "pod");
    assert_ne!(says(&third, "hostname"), "pod");
    // Each has a root of its own, live on the host.
    fs::write(first.bundle.root("tmp/mine"), "first").expect("a file");
    fs::write(second.bundle.root("tmp/mine"), "second").expect("a file");
    assert_eq!(says(&first, "cat /tmp/mine"), "first");
    assert_eq!(says(&second, "cat /tmp/mine; echo more > /tmp/back"), "second");
    assert_eq!(fs::read_to_string(second.bundle.root("tmp/back")).expect("written"), "more\n");
    assert!(!third.bundle.root("tmp/back").exists());
    // A server in one is reached from the others through the guest's loopback.
    let server = "echo hello > /tmp/index\n\
                  nc -l -p 7777 -e cat /tmp/index < /dev/null > /dev/null 2>&1 &\n\
                  for i in $(seq 1200); do\n\
                  grep -qs 1E61 /proc/net/tcp /proc/net/tcp6 && exit 0; sleep 0.1\n\
                  done; exit 1";
    exec(&third, server).expect(0);
    assert_eq!(says(&second, "nc 127.0.0.1 7777 < /dev/null"), "hello");
    // Processes are seen in the shared pid namespace, and not by the third.
    let sleeper = "sleep 4321 < /dev/null > /dev/null 2>&1 &\n\
                   until grep -q sleep /proc/$!/comm; do sleep 0.1; done";
    exec(&first, sleeper).expect(0);
    let count = |container| says(container, "ps | grep -c '[s]leep 4321'; true");
    assert_eq!((count(&second), count(&third)), ("1".into(), "0".into()));
    third.delete().expect(0);
    second.delete().expect(0);
    assert_eq!(status(&first), "running");
    first.delete().expect(0);
    before.assert_none();
}

#[test]
fn each_container_has_a_life_of_its_own() {
    let before = Leftovers::now();
    let first = sandbox();
    let second = create(member(&first, "echo out; read line; exit 7", &["network"]));
    assert_eq!(status(&second), "created");
    second.start();
    second.prints("out");
    assert_eq!(second.wait(), 7);
    assert_eq!((status(&second), status(&first)), ("stopped".into(), "running".into()));
    let id = second.id.clone();
    second.delete().expect(0);
    // The id is free again, and so is everything that was held for it.
    for _ in 0..2 {
        let again = Created::new(id.clone(), member(&first, SLEEP, &["network", "pid"]));
        again.start();
        again.command(&["pause"], &[]).expect(0);
        assert_eq!((status(&again), status(&first)), ("paused".into(), "running".into()));
        assert_eq!(says(&first, "echo on"), "on");
        again.command(&["resume"], &[]).expect(0);
        assert!(again.command(&["ps"], &[]).expect(0).text().contains("while :"));
        let figures = again.command(&["events", "--stats"], &[]).expect(0).text();
        assert!(figures.contains(&id), "{figures}");
        again.command(&["kill"], &["KILL"]).expect(0);
        assert_eq!(again.wait(), 137);
        again.delete().expect(0);
    }
    assert_eq!(says(&first, "ls /run; echo still"), "still");
    // The end of the first is the end of all.
    let last = create(member(&first, SLEEP, &["network"]));
    last.start();
    first.command(&["kill"], &["KILL"]).expect(0);
    assert_eq!(first.wait(), 137);
    assert_eq!(last.wait(), 137);
    assert_eq!(status(&last), "stopped");
    last.delete().expect(0);
    first.delete().expect(0);
    before.assert_none();
}

#[test]
fn limits_hold_for_each_and_the_machine_grows_and_shrinks() {
    let before = Leftovers::now();
    let first = sandbox();
    let memory = || {
        let outcome = first.command(&["stats", "--format", "json"], &[]).expect(0);
        let all: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
        all[0]["memory_mib"].as_u64().expect("a number")
    };
    let alone = memory();
    let mut bundle = member(&first, SLEEP, &["network"]);
    bundle.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({"limit": 48 << 20});
        config["linux"]["resources"]["pids"] = json!({"limit": 20});
    });
    let second = create(bundle);
    second.start();
    assert_eq!(memory(), alone + 48);
    let cgroup = |file: &str| says(&second, &format!("cat /sys/fs/cgroup/{file}"));
    assert_eq!((cgroup("memory.max"), cgroup("pids.max")), ((48 << 20).to_string(), "20".into()));
    second.command(&["update", "--memory", "96m"], &[]).expect(0);
    assert_eq!((memory(), cgroup("memory.max")), (alone + 96, (96 << 20).to_string()));
    // One that takes more than it may have ends; the others do not.
    let hungry = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    assert_ne!(exec(&second, hungry).code, 0);
    assert_eq!(says(&first, "echo alive"), "alive");
    second.delete().expect(0);
    assert_eq!(memory(), alone);
    let mut large = member(&first, SLEEP, &["network"]);
    large.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({"limit": 64_u64 << 30});
    });
    let said = refused(&large);
    assert!(said.contains("this microVM was made for at most"), "{said}");
    assert_eq!(memory(), alone);
    first.delete().expect(0);
    before.assert_none();
}

#[test]
fn creation_that_fails_leaves_nothing_in_the_sandbox() {
    let before = Leftovers::now();
    let first = sandbox();
    let shares = || says(&first, "grep -c virtiofs /proc/mounts");
    let held = shares();
    let with = Leftovers::now();
    let edited = |change: &dyn Fn(&mut Value)| {
        let mut bundle = member(&first, SLEEP, &["network"]);
        bundle.edit(change);
        refused(&bundle)
    };
    let said = edited(&|c| c["process"]["args"] = json!(["/nowhere"]));
    assert!(said.contains("stat /nowhere: no such file or directory"), "{said}");
    let said = edited(&|c| c["annotations"]["io.bulkhead.sandbox"] = json!("nobody"));
    assert!(said.contains("container does not exist: nobody"), "{said}");
    let said = edited(&|c| c["annotations"]["io.bulkhead.sandbox"] = json!("../x"));
    assert!(said.contains("io.bulkhead.sandbox"), "{said}");
    let said = edited(&|c| share(c, 1, &["ipc"]));
    assert!(said.contains("linux.namespaces") && said.contains("(ipc)"), "{said}");
    let said = edited(&|c| share(c, 1, &["network"]));
    assert!(said.contains("linux.namespaces") && said.contains("(network)"), "{said}");
    let said = edited(&|c| c["linux"]["resources"]["cpu"] = json!({"cpus": "0"}));
    assert!(said.contains("linux.resources.cpu.cpus"), "{said}");
    let disk = first.bundle.path().join("disk");
    fs::File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("a disk");
    let said =
        edited(&|c| c["annotations"]["io.bulkhead.block.d"] = json!(disk.display().to_string()));
    assert!(said.contains("takes no more disks"), "{said}");
    with.assert_none();
    assert_eq!(shares(), held);
    // A supervisor that is killed leaves nothing, either.
    let second = create(member(&first, SLEEP, &["network"]));
    second.start();
    rustix::process::kill_process(second.supervisor, rustix::process::Signal::KILL)
        .expect("it lives");
    second.ended();
    second.delete().expect(0);
    with.assert_none();
    let third = Created::new(second.id.clone(), member(&first, SLEEP, &["network"]));
    third.start();
    third.delete().expect(0);
    // A member is no sandbox.
    let third = create(member(&first, SLEEP, &["network"]));
    let said = refused(&member(&third, SLEEP, &[]));
    assert!(said.contains("is in the microVM of"), "{said}");
    third.delete().expect(0);
    first.delete().expect(0);
    let gone = refused(&member(&first, SLEEP, &[]));
    assert!(gone.contains("container does not exist"), "{gone}");
    before.assert_none();
}

#[test]
fn pod_of_an_engine_is_one_microvm() {
    let before = Leftovers::now();
    let first = sandbox();
    for keys in [
        ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
        ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
    ] {
        let mut bundle = member(&first, SLEEP, &["network", "ipc"]);
        bundle.edit(|config| {
            config["annotations"] = json!({keys.0: "container", keys.1: first.id});
        });
        let second = create(bundle);
        second.start();
        let boot = "cat /proc/sys/kernel/random/boot_id";
        assert_eq!(says(&first, boot), says(&second, boot));
        second.delete().expect(0);
    }
    first.delete().expect(0);
    // In a pod without a first container each has a microVM of its own, unless it shares something.
    let (kind, key) = ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID");
    let of_no_pod = || {
        let mut bundle = Bundle::script(SLEEP);
        bundle.edit(|config| config["annotations"] = json!({kind: "container", key: first.id}));
        bundle
    };
    let mut sharing = of_no_pod();
    sharing.edit(|config| share(config, 1, &["network"]));
    assert!(refused(&sharing).contains("container does not exist"));
    let alone = create(of_no_pod());
    alone.start();
    assert_eq!(says(&alone, "echo alone"), "alone");
    alone.delete().expect(0);
    before.assert_none();
}
