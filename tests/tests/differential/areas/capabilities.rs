//! `process.capabilities` and `noNewPrivileges`.

use serde_json::{Value, json};

use crate::case::{Area, Case};

const AREA: Area = Area("capabilities");
const SETS: [&str; 5] = ["bounding", "effective", "inheritable", "permitted", "ambient"];
/// Every capability, by its number.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The same capabilities in each of the sets.
fn sets(names: &[&str], sets: &[&str]) -> Value {
    let list: Vec<String> = names.iter().map(|name| format!("CAP_{name}")).collect();
    sets.iter().map(|set| ((*set).to_owned(), json!(list))).collect()
}

fn with(name: String, capabilities: Value) -> Case {
    AREA.case(name, "").set("/process/capabilities", capabilities)
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (number, name) in ALL.iter().enumerate() {
        // Of root, and of a user who has what is ambient.
        let uid = if number % 2 == 0 { 0 } else { 1000 };
        let case = with(format!("{name} alone of user {uid}"), sets(&[name], &SETS));
        cases.push(case.set("/process/user/uid", json!(uid)));
    }
    for uid in [0, 1000] {
        let user = |case: Case| case.set("/process/user/uid", json!(uid));
        for count in 1..SETS.len() {
            let name = format!("all in the first {count} sets of user {uid}");
            let case = user(with(name, sets(&ALL, &SETS[..count])));
            // What is effective must be permitted.
            cases.push(match count {
                2 | 3 => case.refused("process.capabilities.effective"),
                _ => case,
            });
        }
        cases.push(user(with(format!("all in all sets of user {uid}"), sets(&ALL, &SETS))));
        cases.push(user(with(format!("sets that are empty of user {uid}"), sets(&[], &SETS))));
        let none = AREA.case(format!("none given of user {uid}"), "");
        cases.push(user(none.remove("/process", "capabilities")));
        let name = format!("bounding without the rest of user {uid}");
        cases.push(user(with(name, sets(&["NET_RAW", "CHOWN"], &["bounding", "permitted"]))));
    }
    for privileges in [true, false] {
        let name = format!("noNewPrivileges {privileges}");
        cases.push(AREA.case(name, "").set("/process/noNewPrivileges", json!(privileges)));
        let name = format!("a user with noNewPrivileges {privileges}");
        let case = AREA.case(name, "").set("/process/noNewPrivileges", json!(privileges));
        cases.push(case.set("/process/user", json!({"uid": 7, "gid": 8})));
    }
    // What capabilities are for.
    let chown = "cat /opt/secret; chown 5 /opt/secret; stat -c %u /opt/secret";
    for (name, list) in [("with", &["CHOWN"][..]), ("without", &[])] {
        let case = AREA.case(format!("chown by root {name} CAP_CHOWN"), chown);
        cases.push(case.set("/process/capabilities", sets(list, &SETS)));
    }
    cases
}
