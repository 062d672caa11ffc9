//! `mounts`: every type and option.

use crate::case::{Area, Case};

const AREA: Area = Area("mounts");
/// The mount at `/mnt`, without the device's name, and without an option of tmpfs that the guest's
/// kernel does not show (a variation of its own).
const LOOK: &str =
    "grep ' /mnt ' /proc/mounts | cut -d' ' -f2- | sed s/,inode64//; stat -c '%a %u %g %F' /mnt;";
/// What a bind mount lets be done; its file system has another name in a guest.
const USE: &str = "grep ' /mnt ' /proc/mounts | cut -d' ' -f4 | tr , '\\n' \
                   | grep -E '^(ro|rw|nosuid|nodev|noexec|noatime|nodiratime|relatime|strictatime|nosymfollow)$'; \
                   ls /mnt; stat -c '%a %u %g %F %s' /mnt /mnt/*; cat /mnt/file; /mnt/run; echo $?; \
                   (echo new > /mnt/new) 2>/dev/null; echo $?; ls /mnt; rm /mnt/new; mkdir /mnt/d; ls /mnt;";

fn tmpfs() -> Vec<Case> {
    let use_it = format!(
        "{LOOK} echo '#!/bin/sh' > /mnt/x; echo $?; [ -e /mnt/x ] && chmod 755 /mnt/x && /mnt/x; echo $?; \
                          mknod /mnt/n c 1 3; echo $?"
    );
    let lists: [&[&str]; 22] = [
        &[],
        &["size=1m"],
        &["size=64k"],
        &["size=65536k"],
        &["mode=755"],
        &["mode=1777"],
        &["mode=0700", "uid=5", "gid=6"],
        &["nr_inodes=10"],
        &["ro"],
        &["rw"],
        &["noexec"],
        &["nosuid"],
        &["nodev"],
        &["nosuid", "nodev", "noexec"],
        &["exec", "suid", "dev"],
        &["noatime"],
        &["nodiratime"],
        &["relatime"],
        &["strictatime"],
        &["sync"],
        &["dirsync"],
        &["ro", "noexec", "nosuid", "nodev", "size=1m", "mode=711"],
    ];
    let mut cases: Vec<Case> = lists
        .into_iter()
        .map(|options| {
            let case = AREA.bare(format!("tmpfs {options:?}"), &use_it);
            let syncs = matches!(options, ["sync" | "dirsync"]);
            let sync = format!("/mnt tmpfs rw,{},relatime 0 0", options.join(","));
            let case = if syncs {
                case.explained("tmpfs-sync", &[&sync], &["/mnt tmpfs rw,relatime 0 0"])
            } else {
                case
            };
            case.mount("/mnt", "tmpfs", "tmpfs", options)
        })
        .collect();
    let size =
        AREA.bare("tmpfs without a size", "df -k /mnt | tail -1; grep ' /mnt ' /proc/mounts");
    cases.push(size.mount("/mnt", "tmpfs", "tmpfs", &[]).explained(
        "tmpfs-size",
        &["*", "*inode64*"],
        &["*", "*"],
    ));
    let sized = AREA.bare(
        "tmpfs of a size",
        "df -k /mnt | tail -1; dd if=/dev/zero of=/mnt/x bs=64k \
        count=99 2>&1 | tail -1; stat -c %s /mnt/x",
    );
    cases.push(sized.mount("/mnt", "tmpfs", "tmpfs", &["size=1m"]));
    cases
}

fn binds() -> Vec<Case> {
    let lists: [&[&str]; 18] = [
        &["bind"],
        &["rbind"],
        &["rbind", "rw"],
        &["bind", "ro"],
        &["rbind", "ro"],
        &["bind", "noexec"],
        &["bind", "nosuid"],
        &["bind", "nodev"],
        &["bind", "noexec", "nosuid", "nodev", "ro"],
        &["bind", "noatime"],
        &["bind", "nodiratime"],
        &["bind", "relatime"],
        &["bind", "strictatime"],
        &["bind", "private"],
        &["rbind", "rprivate"],
        &["rbind", "rprivate", "ro"],
        &["bind", "rw", "exec", "suid", "dev"],
        &["bind", "ro", "rw"],
    ];
    let mut cases: Vec<Case> = lists
        .into_iter()
        .map(|options| {
            AREA.bare(format!("bind {options:?}"), USE).mount("/mnt", "bind", "data", options)
        })
        .collect();
    let file = "cat /mnt; stat -c '%a %F %s' /mnt; (echo more >> /mnt) 2>/dev/null; echo $?; cat \
        /mnt; rm /mnt; echo $?";
    for options in [&["bind"][..], &["bind", "ro"], &["rbind", "rprivate"]] {
        cases.push(
            AREA.bare(format!("bind of a file {options:?}"), file)
                .mount("/mnt", "bind", "single", options),
        );
    }
    let deep = "cat /a/b/c/file; ls -d /a /a/b /a/b/c; stat -c '%a %u' /a /a/b";
    cases.push(AREA.bare("bind at a path that is made", deep).mount(
        "/a/b/c",
        "bind",
        "data",
        &["bind"],
    ));
    let within =
        AREA.bare("bind within a tmpfs", "cat /mnt/in/file; ls /mnt; grep -c ' /mnt' /proc/mounts");
    cases.push(within.mount("/mnt", "tmpfs", "tmpfs", &[]).mount(
        "/mnt/in",
        "bind",
        "data",
        &["bind"],
    ));
    let twice = AREA.bare("one over another", "cat /mnt/file; grep -c ' /mnt ' /proc/mounts");
    cases.push(twice.mount("/mnt", "tmpfs", "tmpfs", &[]).mount("/mnt", "bind", "data", &["bind"]));
    let hidden =
        AREA.bare("tmpfs over a directory of the root", "ls /opt; (echo x > /opt/x); ls /opt");
    cases.push(hidden.mount("/opt", "tmpfs", "tmpfs", &["mode=755"]));
    let device =
        AREA.bare("bind of /dev/null over a file", "cat /opt/text; stat -c '%F %t %T' /opt/text");
    cases.push(device.mount("/opt/text", "bind", "/dev/null", &["bind"]));
    cases.push(
        AREA.bare("bind of what is missing", "ls")
            .mount("/mnt", "bind", "missing", &["bind"])
            .refused("/missing: No such file"),
    );
    cases
}

/// File systems of the kernel.
fn kernel() -> Vec<Case> {
    let count = "ls -d /mnt/self /mnt/sys /mnt/mounts; ";
    let mut cases = vec![
        AREA.bare("a second proc", &format!("{LOOK} {count}")).mount("/mnt", "proc", "proc", &[]),
        AREA.bare(
            "proc that is read-only",
            &format!("{LOOK} (echo 1 > /mnt/self/oom_score_adj); echo $?"),
        )
        .mount("/mnt", "proc", "proc", &["ro", "nosuid", "nodev", "noexec"]),
        AREA.bare("sysfs", &format!("{LOOK} ls /mnt | tr '\\n' ' '"))
            .mount("/mnt", "sysfs", "sysfs", &["ro"])
            .explained(
                "sysfs",
                &["block bus class dev devices *"],
                &["block bus class dev devices *"],
            ),
        AREA.bare("mqueue", LOOK).mount("/mnt", "mqueue", "mqueue", &["nosuid"]),
        AREA.bare("devpts", &format!("{LOOK} ls -l /mnt | cut -c1-10")).mount(
            "/mnt",
            "devpts",
            "devpts",
            &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
    ];
    for (at, options) in [("/proc", &["nosuid", "noexec", "nodev"][..]), ("/sys", &["rw"])] {
        let name = format!("{at} with {options:?}");
        let kind = if at == "/proc" { "proc" } else { "sysfs" };
        let look = format!("grep ' {at} ' /proc/mounts");
        let edit = AREA.bare(name, &look).edit(move |config| {
            let list = config["mounts"].as_array_mut().expect("mounts");
            let mount = list.iter_mut().find(|mount| mount["type"] == kind).expect("it is there");
            mount["options"] = serde_json::json!(options);
        });
        cases.push(edit);
    }
    for kind in ["mqueue", "devpts", "sysfs", "cgroup"] {
        let case = AREA.bare(
            format!("without {kind}"),
            "cut -d' ' -f2,3 /proc/mounts | grep -E '^/(dev|sys)[/ ]' | sort",
        );
        cases.push(case.edit(move |config| {
            config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != kind);
        }));
    }
    cases
}

fn refused() -> Vec<Case> {
    vec![
        AREA.bare("type that does not exist", "ls")
            .mount("/mnt", "nosuchfs", "none", &[])
            .refused("mounts[7].type (nosuchfs)"),
        AREA.bare("tmpfs of a wrong size", "ls")
            .mount("/mnt", "tmpfs", "tmpfs", &["size=many"])
            .refused("/mnt"),
        AREA.bare("tmpfs of a wrong option", "ls")
            .mount("/mnt", "tmpfs", "tmpfs", &["nonsense=1"])
            .refused("/mnt"),
    ]
}

pub fn cases() -> Vec<Case> {
    [tmpfs(), binds(), kernel(), refused()].into_iter().flatten().collect()
}
