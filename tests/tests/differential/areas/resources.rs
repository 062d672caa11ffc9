//! `linux.resources`, as the files of the cgroup that a program sees as its root.

use serde_json::{Value, json};

use crate::case::{Area, Case};

const AREA: Area = Area("resources");
const MIB: u64 = 1 << 20;

fn look(files: &[&str]) -> String {
    format!("cd /sys/fs/cgroup && for f in {}; do echo $f $(cat $f); done", files.join(" "))
}

fn guest(name: &str, files: &[&str], resources: Value) -> Case {
    AREA.bare(name, &look(files)).edit(move |config| {
        for (key, value) in resources.as_object().expect("an object") {
            config["linux"]["resources"][key] = value.clone();
        }
    })
}

fn memory() -> Vec<Case> {
    let files = &["memory.max", "memory.low", "memory.min", "memory.high"];
    let of = |name: &str, memory: Value| guest(name, files, json!({ "memory": memory }));
    vec![
        of("memory without limits", json!({})),
        of("memory limit", json!({"limit": 32 * MIB})),
        of("memory limit of odd bytes", json!({"limit": 32 * MIB + 5000})),
        of("memory limit -1", json!({"limit": -1})),
        of("memory reservation", json!({"reservation": 16 * MIB})),
        of("memory limit and reservation", json!({"limit": 64 * MIB, "reservation": 16 * MIB})),
        of("memory swappiness", json!({"swappiness": 10})),
        guest(
            "memory and swap",
            &["memory.max", "memory.swap.max"],
            json!({"memory": {"limit": 32 * MIB, "swap": 64 * MIB}}),
        )
        .explained("swap", &["memory.swap.max 33554432"], &["memory.swap.max max"]),
        of("swap below the limit", json!({"limit": 32 * MIB, "swap": 16 * MIB}))
            .refused("memory+swap limit should be >= memory limit"),
        of("swap without a limit", json!({"swap": 16 * MIB}))
            .refused("unable to set swap limit without memory limit"),
    ]
}

fn cpu() -> Vec<Case> {
    let files = &["cpu.max", "cpu.weight", "cpu.weight.nice"];
    let of = |name: String, cpu: Value| guest(&name, files, json!({ "cpu": cpu }));
    let mut cases = vec![of("cpu without limits".into(), json!({}))];
    // Weights and niceness by the line of runc 1.1, and by the curve of runc 1.3.
    for (shares, line, curve) in [
        (2, [1, 19], [1, 19]),
        (100, [4, 14], [17, 8]),
        (512, [20, 7], [59, 2]),
        (1024, [39, 4], [100, 0]),
        (2048, [79, 1], [174, -2]),
        (10_000, [382, -6], [627, -8]),
        (262_144, [10_000, -20], [10_000, -20]),
    ] {
        let case = of(format!("cpu shares {shares}"), json!({"shares": shares}));
        let shown = |[weight, nice]: [i32; 2]| {
            [format!("cpu.weight {weight}"), format!("cpu.weight.nice {nice}")]
        };
        let [line, curve] = [shown(line), shown(curve)];
        let [theirs, ours] = [&line, &curve].map(|lines| lines.each_ref().map(String::as_str));
        cases.push(match line == curve {
            true => case,
            false => case.explained("cpu-shares", &theirs, &ours),
        });
    }
    for (quota, period) in [(50_000, 100_000), (10_000, 20_000), (100_000, 100_000), (-1, 100_000)]
    {
        cases.push(of(
            format!("cpu quota {quota}, period {period}"),
            json!({"quota": quota, "period": period}),
        ));
    }
    cases.push(of("cpu quota alone".into(), json!({"quota": 30_000})));
    cases.push(of("cpu period alone".into(), json!({"period": 50_000})));
    cases.push(guest("cpu idle", &["cpu.idle"], json!({"cpu": {"idle": 1}})).crun());
    cases.push(
        guest(
            "cpu burst",
            &["cpu.max", "cpu.max.burst"],
            json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 10_000}}),
        )
        .crun()
        .explained("cpu-burst", &["cpu.max.burst 0"], &["cpu.max.burst 10000"]),
    );
    cases.push(
        of("cpu period too long".into(), json!({"quota": 10_000, "period": 10_000_000}))
            .refused("cpu.max"),
    );
    let set = guest(
        "cpuset",
        &["cpuset.cpus", "cpuset.mems"],
        json!({"cpu": {"cpus": "0", "mems": "0"}}),
    );
    cases.push(set.alone().explained(
        "host-limits",
        &["cpuset.cpus 0", "cpuset.mems 0"],
        &["cpuset.cpus", "cpuset.mems"],
    ));
    cases
}

fn counts() -> Vec<Case> {
    let mut cases = Vec::new();
    for limit in [1_i64, 5, 100, 32_768, 0, -1] {
        let case =
            guest(&format!("pids limit {limit}"), &["pids.max"], json!({"pids": {"limit": limit}}));
        cases.push(if limit == 1 {
            let read = json!(["/bin/sh", "-c", "read x < /sys/fs/cgroup/pids.max; echo $x"]);
            case.set("/process/args", read).explained(
                "one-process",
                &["1", "ended with 0"],
                &["ended with 1"],
            )
        } else {
            case
        });
    }
    for (key, value) in [
        ("memory.high", "33554432"),
        ("memory.low", "1048576"),
        ("memory.min", "1048576"),
        ("memory.max", "67108864"),
        ("memory.oom.group", "1"),
        ("pids.max", "44"),
        ("cpu.weight", "321"),
        ("cpu.weight.nice", "5"),
        ("cpu.max", "40000 90000"),
        ("cpu.idle", "1"),
    ] {
        let case = guest(&format!("unified {key}"), &[key], json!({"unified": {key: value}}));
        // Time is a whole microVM's.
        cases.push(if key.starts_with("cpu") { case.alone() } else { case });
    }
    let both =
        json!({"unified": {"memory.high": "9999360", "pids.max": "55"}, "pids": {"limit": 44}});
    cases.push(guest("unified beside a field", &["memory.high", "pids.max"], both));
    for (key, says) in [
        ("nonsense.max", "subsystem nonsense is not available"),
        ("memory.nonsense", "/memory.nonsense: No such file"),
        ("../memory.max", "linux.resources.unified: \"../memory.max\" is invalid"),
    ] {
        cases.push(
            guest(
                &format!("unified {key} that is not there"),
                &["pids.max"],
                json!({"unified": {key: "1"}}),
            )
            .refused(says),
        );
    }
    cases.push(
        guest(
            "unified with a wrong value",
            &["pids.max"],
            json!({"unified": {"pids.max": "many"}}),
        )
        .refused("/pids.max: Invalid argument"),
    );
    cases
}

/// Of devices of the host, and of what the guest's kernel does not have.
fn host() -> Vec<Case> {
    vec![
        guest("io weight", &["io.weight"], json!({"blockIO": {"weight": 200}})).alone().explained(
            "host-limits",
            &["io.weight default 1920"],
            &["cat: can't open 'io.weight': No such file or directory", "io.weight"],
        ),
        guest(
            "huge pages",
            &["pids.max", "hugetlb.2MB.max"],
            json!({"hugepageLimits": [{"pageSize": "2MB",
            "limit": 4 * MIB}]}),
        )
        .explained("no-huge-pages", &["hugetlb.2MB.max 4194304"], &["hugetlb.2MB.max max"]),
        guest(
            "files of a cgroup",
            &["cgroup.type", "cgroup.freeze", "cgroup.subtree_control", "cgroup.max.depth"],
            json!({}),
        ),
        AREA.bare(
            "cgroup that cannot be written",
            "(echo 5 > /sys/fs/cgroup/pids.max) 2>/dev/null; echo $?; \
            mkdir /sys/fs/cgroup/x 2>/dev/null; echo $?",
        ),
        AREA.bare("place in the hierarchy", "cat /proc/self/cgroup"),
    ]
}

pub fn cases() -> Vec<Case> {
    [memory(), cpu(), counts(), host()].into_iter().flatten().collect()
}
