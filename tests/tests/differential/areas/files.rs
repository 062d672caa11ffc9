//! The root file system: read-only or not, masked and read-only paths, propagation.

use serde_json::json;

use crate::case::{Area, Case};

const AREA: Area = Area("files");

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for readonly in [true, false] {
        for uid in [0, 1000] {
            let write = "for f in /x /tmp/x /opt/x /dev/x /dev/shm/x; do (echo > $f) \
                2>/dev/null; echo $f $?; done";
            let case = AREA.case(format!("root with readonly {readonly} of {uid}"), write);
            cases.push(
                case.set("/root/readonly", json!(readonly)).set("/process/user/uid", json!(uid)),
            );
        }
    }
    let mounted = AREA
        .bare("mounts on a read-only root", "ls /new /n2; (echo x > /n2/x); echo $?; cat /n2/x");
    cases.push(
        mounted
            .set("/root/readonly", json!(true))
            .mount("/new", "bind", "data", &["bind", "ro"])
            .mount("/n2", "tmpfs", "tmpfs", &[]),
    );
    let look = "for p in /opt /opt/text /proc/version /sys/kernel; do \
                [ -s $p ]; echo $p $?; [ -d $p ] && [ -z \"$(ls -A $p)\" ]; echo $?; (echo x > $p/x) \
                    2>/dev/null; echo $?; done";
    for (kind, paths) in [
        ("maskedPaths", json!([])),
        ("maskedPaths", json!(["/opt"])),
        ("maskedPaths", json!(["/opt/text"])),
        ("maskedPaths", json!(["/proc/version", "/sys/kernel"])),
        ("maskedPaths", json!(["/not/there", "/opt/text"])),
        ("maskedPaths", json!(["/opt/text", "/opt"])),
    ] {
        let case = AREA.bare(format!("{kind} {paths}"), look);
        cases.push(case.set(&format!("/linux/{kind}"), paths));
    }
    let write = "for f in /opt/text /opt/new /tmp/new /proc/self/oom_score_adj; do (echo 1 > $f) \
        2>/dev/null; echo $f $?; done; grep -E ' /(opt|tmp)' /proc/mounts | cut -d' ' -f2";
    for paths in [
        json!([]),
        json!(["/opt"]),
        json!(["/opt/text"]),
        json!(["/proc"]),
        json!(["/not/there", "/tmp"]),
    ] {
        let case = AREA.bare(format!("readonlyPaths {paths}"), write);
        cases.push(case.set("/linux/readonlyPaths", paths));
    }
    cases.push(
        AREA.bare(
            "neither masked nor read-only",
            "(echo x > /proc/sys/kernel/domainname) 2>/dev/null; echo $?; \
        cat /proc/sys/kernel/domainname; ls -A /sys/firmware | wc -l",
        )
        .remove("/linux", "maskedPaths")
        .remove("/linux", "readonlyPaths")
        .explained("firmware", &["*"], &["0"]),
    );
    for kind in ["private", "rprivate", "slave", "rslave"] {
        let case = AREA.bare(
            format!("rootfsPropagation {kind}"),
            "grep ' / / \\| / ' /proc/self/mountinfo | grep -c shared; echo end",
        );
        cases.push(case.set("/linux/rootfsPropagation", json!(kind)));
    }
    let masks = "grep -E ' /(proc|sys)/' /proc/mounts | cut -d' ' -f2 | sort";
    cases.push(AREA.bare("paths of the default", masks).explained(
        "paths-without-a-file",
        &["/proc/acpi", "/proc/kcore", "/proc/sysrq-trigger"],
        &[],
    ));
    cases
}
