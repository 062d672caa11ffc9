//! `process.rlimits`.

use serde_json::{Value, json};

use crate::case::{Area, Case};

const AREA: Area = Area("rlimits");
/// Each limit, with a soft and a hard value that a shell can live with.
const ALL: [(&str, u64, u64); 16] = [
    ("AS", 1 << 30, 1 << 31),
    ("CORE", 4096, 8192),
    ("CPU", 1000, 2000),
    ("DATA", 1 << 28, 1 << 29),
    ("FSIZE", 1 << 20, 1 << 21),
    ("LOCKS", 10, 20),
    ("MEMLOCK", 8192, 16384),
    ("MSGQUEUE", 4096, 8192),
    ("NICE", 3, 5),
    ("NOFILE", 77, 99),
    ("NPROC", 500, 600),
    ("RSS", 1 << 28, 1 << 29),
    ("RTPRIO", 1, 2),
    ("RTTIME", 1_000_000, 2_000_000),
    ("SIGPENDING", 50, 60),
    ("STACK", 1 << 20, 1 << 22),
];

fn limits(name: String, list: Value) -> Case {
    AREA.case(name, "").edit(move |config| {
        let limits = config["process"]["rlimits"].as_array_mut().expect("limits");
        limits.retain(|limit| limit["type"] != list[0]["type"]);
        limits.extend(list.as_array().expect("a list").iter().cloned());
    })
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, soft, hard) in ALL {
        let kind = format!("RLIMIT_{name}");
        let one = json!([{"type": kind, "soft": soft, "hard": hard}]);
        cases.push(match name {
            "NPROC" | "SIGPENDING" => {
                let look = "grep -E '^Max (proc|pend)' /proc/self/limits";
                AREA.bare(format!("{name} of both"), &format!("{look} | grep ' {soft} '"))
                    .set("/process/rlimits", one)
            }
            _ => limits(format!("{name} of both"), one),
        });
        if name != "NOFILE" && name != "NPROC" && name != "SIGPENDING" {
            let open = json!([{"type": kind, "soft": soft, "hard": u64::MAX}]);
            cases.push(limits(format!("{name} without a hard one"), open));
        }
    }
    let every: Vec<Value> = ALL
        .iter()
        .map(|(name, soft, hard)| {
            json!({"type": format!("RLIMIT_{name}"), "soft": soft,
            "hard": hard})
        })
        .collect();
    cases.push(AREA.case("all at once", "").set("/process/rlimits", json!(every)));
    cases.push(AREA.case("none", "").set("/process/rlimits", json!([])).explained(
        "limits-not-given",
        &["Max open files            4096                 4096                 files"],
        &["Max open files            1024                 1048576              files"],
    ));
    cases.push(AREA.case("not given", "").remove("/process", "rlimits").explained(
        "limits-not-given",
        &["Max open files            4096                 4096                 files"],
        &["Max open files            1024                 1048576              files"],
    ));
    let zero = json!([{"type": "RLIMIT_FSIZE", "soft": 0, "hard": 0}]);
    cases.push(limits("FSIZE of 0".into(), zero));
    let look = "grep -E '^Max (proc|pend)' /proc/self/limits";
    cases.push(AREA.bare("processes and signals", look).explained(
        "kernel-limits",
        &["Max processes *", "Max pending signals *"],
        &["Max processes *", "Max pending signals *"],
    ));
    cases
}
