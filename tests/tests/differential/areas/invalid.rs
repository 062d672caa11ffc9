//! Configurations that both must refuse, in the same way.

use serde_json::{Value, json};

use crate::case::{Area, Case};

const AREA: Area = Area("invalid");

/// What bulkhead says of JSON that is not of the form of the specification.
const MALFORMED: &str = "is malformed: ";

fn without(parent: &'static str, key: &'static str, says: &str) -> Case {
    AREA.bare(format!("no {key}"), "echo runs").refused(says).remove(parent, key)
}

fn wrong(pointer: &str, value: Value, says: &str) -> Case {
    AREA.bare(format!("{pointer} = {value}"), "echo runs").refused(says).set(pointer, value)
}

fn fields_left_out() -> Vec<Case> {
    vec![
        without("", "process", "process is missing"),
        without("", "root", "root is missing"),
        AREA.bare("no version", "echo runs").remove("", "ociVersion").explained(
            "version",
            &["runs", "ended with 0"],
            &["ended with 1"],
        ),
        without("", "linux", "linux is missing"),
        without("/process", "args", "process.args is missing"),
        without("/process", "cwd", "missing field `cwd`"),
    ]
}

/// Of another type than the specification has.
fn types() -> Vec<Case> {
    let list = ("/process/capabilities", json!([]));
    let explained = wrong(list.0, list.1, "").explained(
        "empty-list",
        &["ended with 1"],
        &["runs", "ended with 0"],
    );
    let wrong = |(pointer, value)| wrong(pointer, value, MALFORMED);
    let all = [
        ("/process/args", json!("sh")),
        ("/process/args", json!([1])),
        ("/process/cwd", json!(1)),
        ("/process/terminal", json!("no")),
        ("/process/env", json!("A=1")),
        ("/process/user", json!(0)),
        ("/process/user/uid", json!(-1)),
        ("/process/user/uid", json!("root")),
        ("/process/user/additionalGids", json!([-1])),
        ("/process/capabilities/bounding", json!("CAP_KILL")),
        ("/process/capabilities/effective", json!([1])),
        ("/process/rlimits", json!([{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}])),
        ("/process/rlimits", json!({})),
        ("/process/oomScoreAdj", json!("high")),
        ("/root/path", json!(7)),
        ("/root/readonly", json!("yes")),
        ("/hostname", json!(7)),
        ("/mounts", json!({})),
        ("/mounts/-", json!({"destination": 7})),
        ("/linux/namespaces", json!({})),
        ("/linux/maskedPaths", json!("/proc")),
        ("/linux/resources/pids", json!({"limit": "many"})),
        ("/linux/resources/memory", json!({"limit": "much"})),
        ("/linux/resources/cpu", json!({"shares": -1})),
        ("/linux/sysctl", json!(["a"])),
        ("/linux/seccomp", json!({"defaultAction": 7})),
        ("/linux/devices", json!([{"type": "x", "path": "/dev/x", "major": 1, "minor": 3}])),
        ("/annotations", json!({"a": 1})),
    ];
    all.into_iter().map(wrong).chain([explained]).collect()
}

/// Of the right type.
fn values() -> Vec<Case> {
    [
        ("/process/args", json!([]), "process.args is missing"),
        ("/process/cwd", json!("tmp"), "process.cwd: \"tmp\" is invalid"),
        ("/process/cwd", json!(""), "process.cwd: \"\" is invalid"),
        ("/process/cwd", json!("/opt/text"), "chdir to cwd (\"/opt/text\")"),
        ("/process/terminal", json!(true), "allocating the terminal"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 3000, "hard": 10}]),
            "rlimit",
        ),
        ("/process/oomScoreAdj", json!(2000), "process.oomScoreAdj"),
        ("/process/oomScoreAdj", json!(-2000), "process.oomScoreAdj"),
        ("/root/path", json!("missing"), "/missing: No such file"),
        ("/root/path", json!(""), "root.path: \"\" is invalid"),
        ("/linux/namespaces/-", json!({"type": "pid"}), "each namespace is named once"),
        ("/linux/rootfsPropagation", json!("nonsense"), "linux.rootfsPropagation: \"nonsense\""),
        ("/hooks", json!({"prestart": [{"path": "relative"}]}), "hooks.prestart[0].path"),
        (
            "/hooks",
            json!({"createRuntime": [{"path": "/no/such/program"}]}),
            "hooks.createRuntime[0] (/no/such/program)",
        ),
        ("/hooks", json!({"prestart": [{"path": "/bin/false"}]}), "exited with code 1"),
    ]
    .into_iter()
    .map(|(pointer, value, says)| wrong(pointer, value, says))
    .collect()
}

pub fn cases() -> Vec<Case> {
    [fields_left_out(), types(), values()].into_iter().flatten().collect()
}
