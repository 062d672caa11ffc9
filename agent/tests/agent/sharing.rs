//! Several containers of one guest: what they share by their namespaces, and what they do not.

use std::io::Read;

use serde_json::json;
use ttrpc::Code;

use crate::harness::{Agent, Wait, refusal};

#[test]
fn containers_share_the_namespaces_that_are_named_and_no_others() {
    let Some(agent) = Agent::start() else { return };
    let first = agent.create(&agent.spec(&["sleep", "1000"])).unwrap();
    first.start();
    let script =
        "hostname; ls -l /proc/self/ns | grep -o '[a-z]*:\\[.*'; ps | grep -c 'sleep 1000$'";
    let look = |kinds: &[&str]| {
        let mut spec = agent.spec(&["sh", "-c", script]);
        if kinds.contains(&"uts") {
            spec.as_object_mut().unwrap().remove("hostname");
        } else {
            spec["hostname"] = json!("other");
        }
        let mut second = agent.create_sharing(&spec, &first.id, kinds).unwrap();
        second.start();
        let (out, _) = second.streams.read();
        second.wait("");
        second.delete();
        out
    };
    let space = |text: &str, kind: &str| {
        let start = format!("{kind}:[");
        text.lines().find(|line| line.starts_with(&start)).unwrap().to_owned()
    };
    let (id, mut streams) = first.exec(&crate::harness::process(&["sh", "-c", script])).unwrap();
    let (of_first, _) = streams.read();
    first.wait(&id);
    let shared = look(&["pid", "ipc", "uts"]);
    assert!(shared.starts_with("inside\n"), "{shared}");
    assert!(shared.ends_with("\n1\n"), "{shared}");
    for kind in ["pid", "ipc", "uts"] {
        assert_eq!(space(&shared, kind), space(&of_first, kind));
    }
    assert_ne!(space(&shared, "mnt"), space(&of_first, "mnt"));
    let apart = look(&[]);
    assert!(apart.starts_with("other\n") && apart.ends_with("\n0\n"), "{apart}");
    for kind in ["pid", "ipc", "uts", "mnt"] {
        assert_ne!(space(&apart, kind), space(&of_first, kind));
    }
    first.signal("", 9, false).unwrap();
    assert_eq!(first.wait(""), Wait::Signal(9));
    first.delete();
    agent.shutdown();
}

#[test]
fn processes_of_a_container_in_a_shared_pid_namespace_end_with_its_init() {
    let Some(agent) = Agent::start() else { return };
    let first = agent.create(&agent.spec(&["sleep", "1000"])).unwrap();
    first.start();
    let script = "sleep 2000 & echo begun; exit 3";
    let spec = agent.spec(&["sh", "-c", script]);
    let mut second = agent.create_sharing(&spec, &first.id, &["pid"]).unwrap();
    second.start();
    // The end of its output: the background process, which has it too, has ended.
    let (out, _) = second.streams.read();
    assert_eq!(out, "begun\n");
    assert_eq!(second.wait(""), Wait::Code(3));
    second.delete();
    let (id, mut streams) = first.exec(&crate::harness::process(&["ps"])).unwrap();
    let mut text = String::new();
    streams.stdout.read_to_string(&mut text).unwrap();
    first.wait(&id);
    assert!(text.contains("sleep 1000") && !text.contains("sleep 2000"), "{text}");
    first.delete();
    agent.shutdown();
}

#[test]
fn namespace_that_cannot_be_shared_is_refused_and_leaves_the_id_free() {
    let Some(agent) = Agent::start() else { return };
    let first = agent.create(&agent.spec(&["true"])).unwrap();
    let spec = agent.spec(&["true"]);
    let refused = |other: &str, kinds: &[&str]| refusal(agent.create_sharing(&spec, other, kinds));
    assert_eq!(refused("nobody", &["pid"]).0, Code::NOT_FOUND);
    for kind in ["mount", "network", "../../1/ns/pid", ""] {
        let (code, text) = refused(&first.id, &[kind]);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(text.starts_with("linux.namespaces: no "), "{text}");
    }
    first.start();
    assert_eq!(first.wait(""), Wait::Code(0));
    let (code, text) = refused(&first.id, &["ipc"]);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(text.contains("stopped"), "{text}");
    first.delete();
    agent.shutdown();
}

#[test]
fn containers_beyond_the_limit_are_refused() {
    let Some(agent) = Agent::start() else { return };
    let spec = agent.spec(&["true"]);
    let all: Vec<_> = (0..64).map(|_| agent.create(&spec).unwrap()).collect();
    let (code, text) = refusal(agent.create(&spec));
    assert_eq!((code, text.as_str()), (Code::RESOURCE_EXHAUSTED, "the microVM has 64 containers"));
    drop(all);
    agent.create(&spec).unwrap().delete();
    agent.shutdown();
}
