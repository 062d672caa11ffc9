//! `linux.sysctl`.

use serde_json::json;

use crate::case::{Area, Case};

const AREA: Area = Area("sysctl");
/// Settings that a container may have: of its ipc and network namespaces.
const ALLOWED: [(&str, &str); 18] = [
    ("kernel.msgmax", "16384"),
    ("kernel.msgmnb", "32768"),
    ("kernel.msgmni", "200"),
    ("kernel.sem", "100\t3200\t10\t100"),
    ("kernel.shmall", "100000"),
    ("kernel.shmmax", "1000000"),
    ("kernel.shmmni", "100"),
    ("kernel.shm_rmid_forced", "1"),
    ("fs.mqueue.msg_max", "20"),
    ("fs.mqueue.msgsize_max", "4096"),
    ("fs.mqueue.queues_max", "50"),
    ("net.core.somaxconn", "77"),
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv4.ip_unprivileged_port_start", "80"),
    ("net.ipv4.ip_local_port_range", "20000\t30000"),
    ("net.ipv4.ping_group_range", "0\t100"),
    ("net.ipv4.tcp_keepalive_time", "100"),
    ("net.ipv4.tcp_syncookies", "0"),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, value) in ALLOWED {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        let look = format!("cat {file}; (echo 1 > {file}) 2>/dev/null; echo $?");
        let case = AREA.bare(format!("{name}={value}"), &look);
        let case = case.edit(move |config| config["linux"]["sysctl"][name] = json!(value));
        let missing = name == "net.ipv4.tcp_syncookies";
        cases.push(if missing {
            case.explained(
                "settings-that-are-missing",
                &["0", "1", "ended with 0"],
                &["ended with 1"],
            )
        } else {
            case
        });
    }
    let two = AREA.bare("two of them", "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax");
    cases
        .push(two.set("/linux/sysctl", json!({"net.core.somaxconn": "9", "kernel.msgmax": "999"})));
    let default = "cd /proc/sys; cat kernel/msgmax kernel/msgmnb kernel/sem kernel/shmmax kernel/shmall kernel/shmmni \
                   fs/mqueue/msg_max fs/mqueue/msgsize_max fs/mqueue/queues_max net/ipv4/ip_forward \
                   net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range net/core/somaxconn net/ipv4/ip_local_port_range";
    cases.push(AREA.bare("none of them", default));
    for name in ["net.ipv4.nonsense", "kernel.nonsense"] {
        let says = format!("linux.sysctl {name}: no such setting in the guest's kernel");
        let case = AREA.bare(format!("{name} that is not there"), "echo runs").refused(says);
        cases.push(case.edit(move |config| config["linux"]["sysctl"][name] = json!("1")));
    }
    let value =
        AREA.bare("a value that the kernel refuses", "echo runs").refused("net.core.somaxconn");
    cases.push(value.set("/linux/sysctl", json!({"net.core.somaxconn": "many"})));
    for name in ["kernel.panic", "vm.swappiness", "fs.file-max"] {
        let case = AREA.bare(format!("{name} of the whole kernel"), "echo runs").refused(name);
        cases.push(case.edit(move |config| config["linux"]["sysctl"][name] = json!("7")));
    }
    cases
}
