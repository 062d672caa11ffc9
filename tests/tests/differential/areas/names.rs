//! Namespaces, and the names of host and domain that need one.

use serde_json::{Value, json};

use crate::case::{Area, Case};

const AREA: Area = Area("names");

fn namespaces(case: Case, kinds: &'static [&'static str]) -> Case {
    case.edit(move |config| {
        config["linux"]["namespaces"] = kinds.iter().map(|kind| json!({"type": kind})).collect();
    })
}

pub fn cases() -> Vec<Case> {
    let look = "hostname; cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname; uname -n";
    let mut cases = Vec::new();
    for name in ["a", "with-dash", "UPPER.case", "a.full.name.example", &"h".repeat(64)] {
        let case = AREA.case(format!("hostname {name}"), look);
        cases.push(case.set("/hostname", json!(name)));
    }
    cases.push(
        AREA.bare("hostname too long", "ls")
            .set("/hostname", json!("h".repeat(65)))
            .refused("hostname"),
    );
    for name in ["example", "sub.example.org"] {
        let case = AREA.case(format!("domainname {name}"), look);
        cases.push(case.set("/domainname", json!(name)).crun());
    }
    // What the namespaces hold; their numbers differ from kernel to kernel.
    let holds = "ls /proc/self/ns | tr '\\n' ' '; echo $$; set -- /proc/[0-9]*; echo $#; cat /proc/net/dev | wc -l; \
                 ipcs 2>/dev/null | wc -l; ls /dev/mqueue | wc -l; cat /proc/self/cgroup; cat /proc/sys/kernel/shm_rmid_forced";
    for (name, kinds) in [
        ("all but cgroup", &["pid", "network", "ipc", "uts", "mount"][..]),
        ("in another order", &["mount", "uts", "ipc", "network", "pid", "cgroup"]),
    ] {
        cases.push(namespaces(
            AREA.bare(name, holds.split("cat /proc/self/cgroup;").next().expect("a part")),
            kinds,
        ));
    }
    cases.push(AREA.bare("all of them", holds));
    let no_uts = AREA.bare("no uts namespace, and no name", "echo runs");
    cases.push(namespaces(no_uts.remove("", "hostname"), &["pid", "network", "ipc", "mount"]));
    let named = AREA.bare("no uts namespace, but a name", "echo runs");
    cases.push(namespaces(named, &["pid", "network", "ipc", "mount"]).refused("no uts"));
    let no_mount =
        namespaces(AREA.bare("no mount namespace", "echo runs"), &["pid", "network", "ipc", "uts"]);
    cases.push(no_mount.refused("no mount"));
    let twice: Value = json!([{"type": "pid"}, {"type": "pid"}, {"type": "mount"},
        {"type": "network"}, {"type": "ipc"}, {"type": "uts"}]);
    cases.push(
        AREA.bare("a namespace given twice", "echo runs")
            .set("/linux/namespaces", twice)
            .refused("each namespace is named once"),
    );
    let unknown = json!([{"type": "mount"}, {"type": "nonsense"}]);
    cases.push(
        AREA.bare("a namespace of another kind", "echo runs")
            .set("/linux/namespaces", unknown)
            .refused("`nonsense`"),
    );
    let no_pid =
        namespaces(AREA.bare("no pid namespace", "echo runs"), &["mount", "network", "ipc", "uts"]);
    cases.push(no_pid.explained(
        "namespaces-that-must-be",
        &["runs", "ended with 0"],
        &["ended with 1"],
    ));
    let no_ipc =
        namespaces(AREA.bare("no ipc namespace", "echo runs"), &["mount", "network", "pid", "uts"]);
    cases.push(no_ipc.explained(
        "namespaces-that-must-be",
        &["runs", "ended with 0"],
        &["ended with 1"],
    ));
    cases
}
