//! Limits that change, figures and OOM events: on the cgroup that a real kernel keeps.

use std::{fs, path::PathBuf};

use bulkhead_protocol::agent::client::{OomRequest, UpdateContainerRequest};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::harness::{Agent, Container, Wait, await_that, limit, refusal};

/// An agent whose containers have memory limits, or why there is none.
fn agent() -> Option<Agent> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !controllers.split_whitespace().any(|c| c == "memory") {
        println!("skipped: /sys/fs/cgroup is not cgroup v2 with the memory controller");
        return None;
    }
    Agent::start()
}

fn file(container: &Container<'_>, name: &str) -> String {
    let path = PathBuf::from("/sys/fs/cgroup/bulkhead").join(&container.id).join(name);
    fs::read_to_string(path).unwrap().trim().to_owned()
}

fn update(container: &Container<'_>, resources: &Value) -> ttrpc::Result<()> {
    let request = UpdateContainerRequest {
        container_id: container.id.clone(),
        resources_json: serde_json::to_vec(resources).unwrap(),
        ..Default::default()
    };
    container.agent.client.update_container(limit(), &request).map(drop)
}

fn oom(container: &Container<'_>, seen: u64) -> u64 {
    let request = OomRequest { container_id: container.id.clone(), seen, ..Default::default() };
    container.agent.client.wait_oom(limit(), &request).unwrap().kills
}

#[test]
fn update_changes_what_it_names_and_nothing_else() {
    let Some(agent) = agent() else { return };
    let mut spec = agent.spec(&["sleep", "1000"]);
    spec["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20}, "pids": {"limit": 50}, "cpu": {"shares": 2048},
        "unified": {"memory.high": "50331648"},
    });
    let container = agent.create(&spec).unwrap();
    container.start();
    assert_eq!(file(&container, "memory.high"), "50331648");
    let weight = file(&container, "cpu.weight");
    let resources = json!({
        "memory": {"limit": 96 << 20, "reservation": 8 << 20},
        "cpu": {"quota": 50_000, "period": 100_000},
        "pids": {"limit": 77},
        "unified": {"memory.high": "67108864"},
    });
    update(&container, &resources).unwrap();
    for (name, value) in [
        ("memory.max", "100663296"),
        ("memory.low", "8388608"),
        ("memory.high", "67108864"),
        ("cpu.max", "50000 100000"),
        ("cpu.weight", weight.as_str()),
        ("pids.max", "77"),
    ] {
        assert_eq!(file(&container, name), value, "{name}");
    }
}

#[test]
fn update_that_fails_leaves_the_old_limits() {
    let Some(agent) = agent() else { return };
    let mut spec = agent.spec(&["sleep", "1000"]);
    spec["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}});
    let container = agent.create(&spec).unwrap();
    container.start();
    let resources = json!({
        "memory": {"limit": 96 << 20}, "pids": {"limit": 77}, "unified": {"memory.high": "much"},
    });
    let (code, message) = refusal(update(&container, &resources));
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.contains("memory.high"), "{message}");
    assert_eq!(file(&container, "memory.max"), "67108864");
    assert_eq!(file(&container, "pids.max"), "max");
    container.signal("", 9, false).unwrap();
    container.wait("");
    let (code, message) = refusal(update(&container, &json!({})));
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(message.ends_with("it is stopped"), "{message}");
}

/// The new burst is larger than the old quota, so the old burst has to be written back first.
#[test]
fn update_that_fails_leaves_the_old_quota_and_its_burst() {
    let Some(agent) = agent() else { return };
    let container = agent.create(&agent.spec(&["sleep", "1000"])).unwrap();
    container.start();
    let cpu = |quota: u32, burst: u32| json!({"quota": quota, "period": 100_000, "burst": burst});
    update(&container, &json!({"cpu": cpu(20_000, 5_000)})).unwrap();
    let resources = json!({"cpu": cpu(90_000, 80_000), "unified": {"memory.high": "much"}});
    let (code, message) = refusal(update(&container, &resources));
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(!message.contains("old limit"), "{message}");
    assert_eq!(file(&container, "cpu.max"), "20000 100000");
    assert_eq!(file(&container, "cpu.max.burst"), "5000");
}

#[test]
fn stats_tell_memory_cpu_and_processes() {
    let Some(agent) = agent() else { return };
    let mut spec = agent.spec(&["sleep", "1000"]);
    spec["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 9}});
    let container = agent.create(&spec).unwrap();
    container.start();
    let stats = || -> Value {
        let reply = agent.client.stats(limit(), &container.request()).unwrap();
        serde_json::from_slice(&reply.stats_json).unwrap()
    };
    // The process that has made the container's ends a moment later.
    await_that(|| stats()["pids"] == json!({"current": 1, "limit": 9}));
    let stats = stats();
    assert_eq!(stats["memory"]["usage"]["limit"], json!(64 << 20));
    assert!(stats["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert!(stats["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    assert!(stats["memory"]["raw"]["anon"].as_u64().is_some());
}

#[test]
fn oom_kill_is_told_and_so_is_the_end() {
    let Some(agent) = agent() else { return };
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null; sleep 1000";
    let mut spec = agent.spec(&["sh", "-c", script]);
    spec["linux"]["resources"] = json!({"memory": {"limit": 8 << 20, "swap": 8 << 20}});
    let container = agent.create(&spec).unwrap();
    container.start();
    let kills = oom(&container, 0);
    assert!(kills >= 1);
    container.signal("", 9, false).unwrap();
    assert_eq!(container.wait(""), Wait::Signal(9));
    assert!(oom(&container, kills) >= kills);
}

#[test]
fn container_that_is_deleted_is_the_end_for_all_who_wait() {
    let Some(agent) = agent() else { return };
    for _ in 0..20 {
        let container = agent.create(&agent.spec(&["sleep", "1000"])).unwrap();
        container.start();
        let request = OomRequest { container_id: container.id.clone(), ..Default::default() };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| match agent.client.wait_oom(limit(), &request) {
                    Ok(reply) => assert_eq!(reply.kills, 0),
                    // Asked too late.
                    refused => assert_eq!(refusal(refused).0, Code::NOT_FOUND),
                });
            }
            container.delete();
        });
    }
}

#[test]
fn container_that_was_not_started_pauses_and_starts_after() {
    let Some(agent) = agent() else { return };
    let container = agent.create(&agent.spec(&["true"])).unwrap();
    agent.client.pause(limit(), &container.request()).unwrap();
    let (code, message) = refusal(agent.client.start_container(limit(), &container.request()));
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(message.ends_with("it is paused"), "{message}");
    agent.client.resume(limit(), &container.request()).unwrap();
    container.start();
    assert_eq!(container.wait(""), Wait::Code(0));
}
