//! Fields of a specification: each is applied or refused by name.

use serde_json::{Value, json};
use ttrpc::Code;

use crate::harness::{Agent, Wait, process, refusal};

/// Runs a shell script in a container whose specification `change` has changed.
fn output(agent: &Agent, script: &str, change: impl Fn(&mut Value)) -> String {
    let mut spec = agent.spec(&["sh", "-c", script]);
    change(&mut spec);
    let (wait, out, err) = agent.run_spec(&spec, b"");
    assert_eq!((wait, err.as_str()), (Wait::Code(0), ""), "{script}: {out}");
    out
}

#[test]
fn process_fields_are_applied() {
    let Some(agent) = Agent::start() else { return };
    let out = output(&agent, "ulimit -n; ulimit -Hn", |spec| {
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
    });
    assert_eq!(out, "77\n99\n");
    let out = output(&agent, "id -u; id -g; id -G; umask", |spec| {
        spec["process"]["user"] =
            json!({"uid": 5, "gid": 6, "additionalGids": [7, 8], "umask": 0o27});
    });
    assert_eq!(out, "5\n6\n6 7 8\n0027\n");
    let out = output(&agent, "cat /proc/self/oom_score_adj; pwd", |spec| {
        spec["process"]["oomScoreAdj"] = json!(123);
        spec["process"]["cwd"] = json!("/new/dir");
    });
    assert_eq!(out, "123\n/new/dir\n");
    assert!(agent.root().join("new/dir").is_dir());
}

#[test]
fn capabilities_are_those_of_the_specification() {
    let Some(agent) = Agent::start() else { return };
    let script = "grep ^Cap /proc/self/status; grep Seccomp: /proc/self/status";
    let none = "0000000000000000";
    let out = output(&agent, script, |spec| {
        spec["process"].as_object_mut().unwrap().remove("capabilities");
    });
    assert_eq!(
        out,
        format!(
            "CapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t{none}\nCapAmb:\t{none}\n\
             Seccomp:\t0\n"
        )
    );
    let out = output(&agent, script, |spec| {
        spec["process"]["user"] = json!({"uid": 1, "gid": 1});
        let all = json!(["CAP_NET_RAW"]);
        spec["process"]["capabilities"] = json!({
            "bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all,
        });
        // `false` must not be taken for "set": the filter would be installed too late.
        spec["process"]["noNewPrivileges"] = json!(false);
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    });
    let raw = "0000000000002000";
    assert_eq!(
        out,
        format!(
            "CapInh:\t{raw}\nCapPrm:\t{raw}\nCapEff:\t{raw}\nCapBnd:\t{raw}\nCapAmb:\t{raw}\n\
             Seccomp:\t2\n"
        )
    );
}

#[test]
fn environment_is_exact_and_home_comes_from_passwd() {
    let Some(agent) = Agent::start() else { return };
    let out = output(&agent, "", |spec| {
        spec["process"]["args"] = json!(["env"]);
        spec["process"]["env"] = json!(["PATH=/bin", "A=1", "B=x=y", "A=2"]);
    });
    assert_eq!(out.lines().count(), 4, "{out}");
    for entry in ["A=2", "B=x=y", "HOME=/root", "PATH=/bin"] {
        assert!(out.lines().any(|line| line == entry), "{entry} in {out}");
    }
}

#[test]
fn root_paths_and_network_are_set_up() {
    let Some(agent) = Agent::start() else { return };
    let script = "touch /x 2>/dev/null || echo read-only; touch /dev/shm/x && echo writable; \
                  ls /sys/firmware | wc -l; \
                  echo 1 2>/dev/null > /proc/sys/kernel/ostype || echo kept; \
                  cat /sys/class/net/lo/operstate /sys/class/net/lo/flags; echo $$";
    let out = output(&agent, script, |spec| {
        spec["root"]["readonly"] = json!(true);
    });
    assert_eq!(out, "read-only\nwritable\n0\nkept\nunknown\n0x9\n1\n");
}

#[test]
fn sysctl_and_device_nodes_are_made() {
    let Some(agent) = Agent::start() else { return };
    let script = "cat /proc/sys/kernel/shmmni; stat -c '%t %T %a' /dev/mine; \
                  head -c 1 /dev/mine | wc -c; ls /dev/null /dev/full /dev/tty";
    let out = output(&agent, script, |spec| {
        spec["linux"]["sysctl"] = json!({"kernel.shmmni": "4097"});
        spec["linux"]["devices"] = json!([
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640}
        ]);
    });
    assert_eq!(out, "4097\n1 5 640\n1\n/dev/full\n/dev/null\n/dev/tty\n");
}

#[test]
fn sysctl_that_is_missing_is_refused_by_name() {
    let Some(agent) = Agent::start() else { return };
    for (name, own_network) in
        [("fs.mqueue.nonsense", true), ("net.ipv4.nonsense", true), ("net.ipv4.nonsense", false)]
    {
        let mut spec = agent.spec(&["true"]);
        spec["linux"]["sysctl"] = json!({name: "1"});
        let spaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        spaces.retain(|space| own_network || space["type"] != "network");
        let (code, message) = refusal(agent.create(&spec));
        let words =
            format!("linux.sysctl {name}: no such setting in the guest's kernel (leave it out)");
        assert_eq!((code, message), (Code::INVALID_ARGUMENT, words));
    }
}

#[test]
fn device_that_no_rule_allows_cannot_be_opened() {
    let Some(agent) = Agent::start() else { return };
    let script = "head -c 1 /dev/zero | wc -c; head -c 1 /dev/mem 2>&1 | grep -c 'not permitted'";
    let out = output(&agent, script, |spec| {
        spec["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
        spec["linux"]["devices"] =
            json!([{"path": "/dev/mem", "type": "c", "major": 1, "minor": 1}]);
    });
    assert_eq!(out, "1\n1\n");
}

#[test]
fn field_that_cannot_be_applied_is_refused_by_name() {
    let Some(agent) = Agent::start() else { return };
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 12] = [
        ("process.apparmorProfile", |s| {
            s["process"]["apparmorProfile"] = json!("docker-default");
        }),
        ("process.selinuxLabel", |s| s["process"]["selinuxLabel"] = json!("x")),
        ("linux.mountLabel", |s| s["linux"]["mountLabel"] = json!("x")),
        ("hooks", |s| s["hooks"] = json!({"prestart": [{"path": "/bin/true"}]})),
        ("linux.intelRdt", |s| s["linux"]["intelRdt"] = json!({"closID": "x"})),
        ("linux.seccomp.listenerPath", |s| {
            s["linux"]["seccomp"] =
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"});
        }),
        ("a pid namespace", |s| {
            s["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}]);
        }),
        ("rshared", |s| {
            s["mounts"][0]["options"] = json!(["rshared"]);
        }),
        ("process.args", |s| s["process"]["args"] = json!([])),
        ("process.cwd", |s| s["process"]["cwd"] = json!("relative")),
        ("linux.netDevices", |s| s["linux"]["netDevices"] = json!({"eth0": {}})),
        ("version", |s| s["ociVersion"] = json!("2.0.0")),
    ];
    for (name, change) in cases {
        let mut spec = agent.spec(&["true"]);
        change(&mut spec);
        let (code, message) = refusal(agent.create(&spec));
        assert_eq!(code, Code::INVALID_ARGUMENT, "{name}: {message}");
        assert!(message.contains(name), "{name}: {message}");
    }
}

#[test]
fn failure_of_a_step_names_its_cause() {
    let Some(agent) = Agent::start() else { return };
    let mut spec = agent.spec(&["true"]);
    spec["root"]["path"] = json!("/nowhere");
    let (code, message) = refusal(agent.create(&spec));
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert_eq!(message, "root.path \"/nowhere\": no such file or directory");
    let mut spec = agent.spec(&["true"]);
    spec["process"]["cwd"] = json!("/etc/passwd");
    let (code, message) = refusal(agent.create(&spec));
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert_eq!(
        message,
        "chdir to cwd (\"/etc/passwd\") set in config.json failed: not a directory"
    );
    let mut spec = agent.spec(&["true"]);
    spec["mounts"][0]["source"] = json!("/absent");
    spec["mounts"][0]["options"] = json!(["bind"]);
    let (code, message) = refusal(agent.create(&spec));
    assert_eq!(code, Code::INTERNAL);
    assert!(message.contains("/absent"), "{message}");
}

/// A container with a user namespace of its own, whose root is uid 100000.
fn mapped(agent: &Agent, args: &[&str]) -> Value {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let root = agent.root();
    // Every directory on the way must be open to the mapped user.
    let way = root.parent().unwrap();
    std::fs::set_permissions(way, std::fs::Permissions::from_mode(0o755)).unwrap();
    chown(root.join("tmp"), Some(100_000), Some(100_000)).unwrap();
    symlink("busybox", root.join("bin/tr")).unwrap();
    let mut spec = agent.spec(args);
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    spec["linux"]["uidMappings"] = mapping.clone();
    spec["linux"]["gidMappings"] = mapping;
    let spaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    spaces.push(json!({"type": "user"}));
    spec
}

/// Without an absolute cgroup path libcontainer would ask for systemd here.
#[test]
fn user_namespace_maps_ids() {
    let Some(agent) = Agent::start() else { return };
    let script = "id -u; id -G; cat /proc/self/uid_map | tr -s ' '; touch /tmp/x; echo > /dev/null; \
                  echo again > /dev/stdout";
    let (wait, out, err) = agent.run_spec(&mapped(&agent, &["sh", "-c", script]), b"");
    assert_eq!((wait, err.as_str()), (Wait::Code(0), ""));
    assert_eq!(out, "0\n0\n 0 100000 65536\nagain\n");
    let made = std::fs::metadata(agent.root().join("tmp/x")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
}

/// libcontainer leaves the process in the user namespace of the guest.
#[test]
fn user_namespace_holds_added_processes_too() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&mapped(&agent, &["sleep", "1000"])).unwrap();
    container.start();
    for (uid, caps) in [(0, "0000000020000420"), (7, "0000000000000000")] {
        let script = "id -u; id -G; cat /proc/self/uid_map | tr -s ' '; \
                      grep ^CapEff /proc/self/status; echo again > /dev/stdout";
        let mut process = process(&["sh", "-c", script]);
        process["user"] = json!({"uid": uid, "gid": uid, "additionalGids": [9]});
        let (id, mut streams) = container.exec(&process).unwrap();
        let (out, err) = streams.read();
        assert_eq!((container.wait(&id), err.as_str()), (Wait::Code(0), ""));
        assert_eq!(out, format!("{uid}\n{uid} 9\n 0 100000 65536\nCapEff:\t{caps}\nagain\n"));
    }
}
