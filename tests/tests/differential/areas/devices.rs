//! `linux.devices`, and the rules of `linux.resources.devices`.

use serde_json::{Value, json};

use crate::case::{Area, Case};

const AREA: Area = Area("devices");
const KINDS: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

fn device(kind: &str, path: &str, major: u32, minor: u32) -> Value {
    json!({"type": kind, "path": path, "major": major, "minor": minor})
}

fn nodes() -> Vec<Case> {
    let look =
        |path: &str| format!("stat -c '%F %t %T %a %u %g' {path}; (echo x > {path}); echo $?");
    let mut cases = Vec::new();
    for (name, major, minor) in KINDS {
        let path = format!("/dev/of-{name}");
        let case = AREA.bare(format!("{name} at another path"), &look(&path));
        cases.push(case.set("/linux/devices", json!([device("c", &path, major, minor)])));
    }
    for mode in [0o600, 0o640, 0o444, 0o666] {
        let mut node = device("c", "/dev/own", 1, 3);
        node["fileMode"] = json!(mode);
        node["uid"] = json!(5);
        node["gid"] = json!(6);
        let case = AREA.bare(format!("null of mode {mode:o} and owners"), &look("/dev/own"));
        cases.push(case.set("/linux/devices", json!([node])));
    }
    let deep = AREA.bare("node in a directory that is made", &look("/dev/a/b/c"));
    cases.push(deep.set("/linux/devices", json!([device("c", "/dev/a/b/c", 1, 5)])));
    let umask = AREA.bare("node under a umask", &look("/dev/own"));
    let mut node = device("c", "/dev/own", 1, 3);
    node["fileMode"] = json!(0o666);
    cases.push(umask.set("/linux/devices", json!([node])).set("/process/user/umask", json!(0o77)));
    let fifo = AREA.bare("fifo", "stat -c '%F %a %u' /dev/pipe");
    cases.push(fifo.set(
        "/linux/devices",
        json!([{"type": "p", "path": "/dev/pipe", "fileMode": 0o600, "uid": 3, "gid": 3}]),
    ));
    cases.push(AREA.bare(
        "the default ones",
        "for f in null zero full random urandom tty ptmx fd stdin \
        stdout stderr; do stat -c '%n %F %t %T %a %u %g %N' /dev/$f; done",
    ));
    cases
}

fn rules() -> Vec<Case> {
    // No driver has 120, a number for local use: what is let through finds no device.
    let try_all = "for d in null zero full urandom tty; do echo $d; (: < /dev/$d) 2>&1; (: > \
        /dev/$d) 2>&1; done; \
                   for n in '1 3' '1 5' '120 1' '120 2'; do echo $n; mknod /tmp/n c $n 2>&1; (: < \
                   /tmp/n) 2>&1; \
                   (: > /tmp/n) 2>&1; rm -f /tmp/n; done";
    let lists = [
        ("no rules", json!([])),
        ("all denied", json!([{"allow": false, "access": "rwm"}])),
        ("all allowed", json!([{"allow": true, "access": "rwm"}])),
        ("all allowed of type a", json!([{"allow": true, "type": "a", "access": "rwm"}])),
        (
            "character devices",
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c",
                "access": "rwm"}]),
        ),
        (
            "block devices alone",
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "b",
                "access": "rwm"}]),
        ),
        (
            "mknod alone",
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "access": "m"}]),
        ),
        (
            "one major",
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c",
                "major": 120, "access": "rwm"}]),
        ),
        (
            "one node",
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c",
                "major": 120, "minor": 1, "access": "rw"}]),
        ),
        (
            "one node for reading",
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c",
                "major": 120, "minor": 1, "access": "rm"}]),
        ),
    ];
    let mut cases = Vec::new();
    for (name, list) in lists {
        let case = AREA.bare(name, try_all).set("/linux/resources/devices", list);
        cases.push(case.edit(|config| {
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(["CAP_MKNOD"]);
            }
        }));
    }
    cases
}

pub fn cases() -> Vec<Case> {
    nodes().into_iter().chain(rules()).collect()
}
