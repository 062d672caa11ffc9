//! Tables of specifications and what becomes of them.

use oci_spec::runtime::LinuxNamespaceType;
use serde_json::{Value, json};

use super::*;

/// A specification like runc's default.
pub(super) fn base() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/", "env": ["A=b"]},
        "root": {"path": "rootfs"},
        "hostname": "h",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
            {"type": "mount"}
        ]}
    })
}

/// Sets the value at a JSON pointer, making objects on the way.
fn set(spec: &mut Value, pointer: &str, value: Value) {
    let mut at = spec;
    for key in pointer.split('/').skip(1) {
        at = match key.parse::<usize>() {
            Ok(i) => &mut at[i],
            Err(_) => &mut at[key],
        };
    }
    *at = value;
}

fn run(spec: Value) -> Result<SandboxPlan, PlanError> {
    let spec = serde_json::from_value(spec).unwrap();
    plan(&"c".parse().unwrap(), Path::new("/b"), spec, &Policy::default())
}

fn with(pointer: &str, value: Value) -> Result<SandboxPlan, PlanError> {
    let mut spec = base();
    set(&mut spec, pointer, value);
    run(spec)
}

#[test]
fn default_spec_becomes_a_plan_of_guest_paths() {
    let plan = run(base()).unwrap();
    assert_eq!((plan.vcpus, plan.mem_mib), (1, 256));
    assert_eq!(plan.root.source, Path::new("/b/rootfs"));
    assert!(!plan.root.read_only && plan.binds.is_empty() && !plan.makes_mount_points);
    let guest = serde_json::to_value(&plan.guest_spec).unwrap();
    assert_eq!(guest["root"]["path"], "/run/bulkhead/share/root");
    assert_eq!(guest["linux"]["cgroupsPath"], "/bulkhead/c");
    assert_eq!(guest["hostname"], "h");
    assert!(plan.notes.is_empty());
}

#[test]
fn group_named_twice_is_given_once() {
    let plan = with("/process/user/additionalGids", json!([7, 5, 7])).unwrap();
    let guest = serde_json::to_value(&plan.guest_spec).unwrap();
    assert_eq!(guest["process"]["user"]["additionalGids"], json!([7, 5]));
}

#[test]
fn field_that_cannot_be_had_is_refused_by_name() {
    let ns = "/linux/namespaces/0";
    let mount = |m: Value| ("/mounts/0", m);
    let table: Vec<(&str, Value, &str)> = vec![
        ("/ociVersion", json!(""), "ociVersion"),
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/ociVersion", json!("1.0 x"), "ociVersion"),
        (
            "/process/capabilities",
            json!({"effective": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"]}),
            "process.capabilities.effective",
        ),
        ("/process/capabilities", json!({"effective": ["CAP_KILL"]}), "process.capabilities"),
        ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        ("/process/oomScoreAdj", json!(-1001), "process.oomScoreAdj"),
        ("/root", Value::Null, "root"),
        ("/root/path", json!(""), "root.path"),
        ("/process", Value::Null, "process"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!(["a\u{0}"]), "process.args[0]"),
        ("/process/env", json!(["x"]), "process.env[0]"),
        ("/process/env", json!(["a=b", "=x"]), "process.env[1]"),
        ("/process/cwd", json!("rel"), "process.cwd"),
        ("/process/commandLine", json!("x"), "process.commandLine"),
        ("/process/execCPUAffinity", json!({"initial": "0"}), "process.execCPUAffinity"),
        ("/linux", Value::Null, "linux"),
        ("/vm", json!({"kernel": {"path": "/k"}}), "vm"),
        ("/windows", json!({"layerFolders": ["x"]}), "windows"),
        (
            "/hooks",
            json!({"startContainer": [{"path": "/h"}, {"path": "h"}]}),
            "hooks.startContainer[1].path",
        ),
        ("/hooks", json!({"prestart": [{"path": "h"}]}), "hooks.prestart[0].path"),
        (
            "/hooks",
            json!({"createRuntime": [{"path": "/h"}, {"path": "/h", "timeout": 0}]}),
            "hooks.createRuntime[1].timeout",
        ),
        (
            "/hooks",
            json!({"poststop": [{"path": "/h", "args": ["a\u{0}"]}]}),
            "hooks.poststop[0].args[0]",
        ),
        (
            "/hooks",
            json!({"poststart": [{"path": "/h", "env": ["x"]}]}),
            "hooks.poststart[0].env[0]",
        ),
        (ns, json!({"type": "pid", "path": "/proc/1/ns/pid"}), "linux.namespaces[0].path"),
        (ns, json!({"type": "user"}), "linux.namespaces[0] (user)"),
        (ns, json!({"type": "time"}), "linux.namespaces[0] (time)"),
        (ns, json!({"type": "cgroup"}), "linux.namespaces"),
        (ns, json!({"type": "ipc"}), "linux.namespaces"),
        ("/linux/uidMappings", json!([{"hostID":0,"containerID":0,"size":1}]), "linux.uidMappings"),
        ("/linux/intelRdt", json!({}), "linux.intelRdt"),
        ("/linux/timeOffsets", json!({"boottime": {"secs": 1}}), "linux.timeOffsets"),
        ("/linux/rootfsPropagation", json!("shared"), "linux.rootfsPropagation"),
        ("/linux/rootfsPropagation", json!("x"), "linux.rootfsPropagation"),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s"}),
            "linux.seccomp.listenerPath",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "m"}),
            "linux.seccomp.listenerMetadata",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/ttyS0", "type": "c", "major": 4, "minor": 64}]),
            "linux.devices[0] (/dev/ttyS0)",
        ),
        ("/linux/resources", json!({"cpu": {"cpus": "3-1"}}), "linux.resources.cpu.cpus"),
        ("/linux/resources", json!({"cpu": {"mems": "x"}}), "linux.resources.cpu.mems"),
        (
            "/linux/resources",
            json!({"memory": {"limit": 2 << 20, "swap": 1 << 20}}),
            "linux.resources.memory.swap",
        ),
        ("/linux/resources", json!({"memory": {"swap": 1 << 20}}), "linux.resources.memory.swap"),
        (
            "/linux/resources",
            json!({"memory": {"limit": -1, "swap": 1 << 20}}),
            "linux.resources.memory.swap",
        ),
        ("/linux/resources", json!({"unified": {"../x": "1"}}), "linux.resources.unified"),
        ("/linux/resources", json!({"unified": {"cgroup.procs": "1"}}), "linux.resources.unified"),
        (
            "/linux/resources",
            json!({"cpu": {"realtimePeriod": 1000}}),
            "linux.resources.cpu.realtimePeriod",
        ),
        (
            "/linux/resources",
            json!({"blockIO": {"leafWeight": 10}}),
            "linux.resources.blockIO.leafWeight",
        ),
        (
            "/linux/resources",
            json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}}),
            "linux.resources.blockIO.weightDevice[0].leafWeight",
        ),
        (
            "/linux/resources",
            json!({"memory": {"limit": i64::MAX}}),
            "linux.resources.memory.limit",
        ),
        ("/annotations", json!({"io.bulkhead.vcpu": "1"}), "annotations[\"io.bulkhead.vcpu\"]"),
        (
            "/annotations",
            json!({"io.bulkhead.net.eth0": "rx=1"}),
            "annotations[\"io.bulkhead.net.eth0\"]",
        ),
        ("/annotations", json!({"io.bulkhead.vcpus": "33"}), "annotations[\"io.bulkhead.vcpus\"]"),
        (
            "/annotations",
            json!({"io.bulkhead.memory-mib": "47"}),
            "annotations[\"io.bulkhead.memory-mib\"]",
        ),
    ];
    for (pointer, value, field) in table {
        let shown = with(pointer, value.clone()).expect_err(field).to_string();
        assert!(shown.starts_with(field), "{pointer} {value}: {shown}");
    }
    let mounts = [
        (mount(json!({"destination": "rel", "type": "tmpfs"})), "mounts[0].destination"),
        (mount(json!({"destination": "/a/../b", "type": "tmpfs"})), "mounts[0].destination"),
        (mount(json!({"destination": "/", "type": "tmpfs"})), "mounts[0].destination"),
        (mount(json!({"destination": "/a", "type": "nfs"})), "mounts[0].type (nfs)"),
        (mount(json!({"destination": "/a", "type": "overlay"})), "mounts[0].options"),
        (mount(json!({"destination": "/a"})), "mounts[0]"),
        (mount(json!({"destination": "/a", "type": "bind"})), "mounts[0].source"),
        (
            mount(json!({"destination":"/a","source":"/x","options":["rbind","rshared"]})),
            "mounts[0].options (rshared)",
        ),
        (
            mount(json!({"destination":"/a","type":"tmpfs","options":["remount"]})),
            "mounts[0].options (remount)",
        ),
        (
            mount(json!({"destination":"/a","source":"/x","options":["bind","unbindable"]})),
            "mounts[0].options (unbindable)",
        ),
        (
            mount(json!({"destination":"/a","source":"/x","options":["bind","size=1m"]})),
            "mounts[0].options (size=1m)",
        ),
        (
            mount(json!({"destination":"/a","source":"/x","options":["bind","idmap"]})),
            "mounts[0].options (idmap)",
        ),
    ];
    for ((pointer, value), field) in mounts {
        let shown = with(pointer, value.clone()).expect_err(field).to_string();
        assert!(shown.starts_with(field), "{pointer} {value}: {shown}");
    }
}

#[test]
fn namespace_of_the_host_that_is_not_named_is_refused() {
    for (kept, missing) in [
        (json!([{"type": "pid"}, {"type": "network"}, {"type": "ipc"}]), "no mount"),
        (json!([{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}]), "no network"),
        (json!([{"type": "network"}, {"type": "mount"}, {"type": "ipc"}]), "no pid"),
        (json!([{"type": "network"}, {"type": "mount"}, {"type": "pid"}]), "no ipc"),
    ] {
        let shown = with("/linux/namespaces", kept).unwrap_err().to_string();
        assert!(shown.contains(missing), "{shown}");
    }
}

#[test]
fn name_of_host_or_domain_needs_a_uts_namespace() {
    for name in ["hostname", "domainname"] {
        let mut spec = base();
        spec.as_object_mut().unwrap().remove("hostname");
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| n["type"] != "uts");
        assert!(run(spec.clone()).is_ok());
        set(&mut spec, &format!("/{name}"), json!("n"));
        assert!(run(spec).unwrap_err().to_string().contains("no uts"), "{name}");
    }
}

#[test]
fn network_namespace_is_one_of_the_host() {
    let path = json!({"type": "network", "path": "/run/netns/x"});
    let plan = with("/linux/namespaces/1", path).unwrap();
    assert_eq!(plan.network, NetworkPlan::Path("/run/netns/x".into()));
    assert!(plan.notes.is_empty());
    let without = with("/linux/namespaces/1", json!({"type": "network", "path": ""})).unwrap();
    assert_eq!(without.network, NetworkPlan::New);
    for plan in [plan, without] {
        let linux = plan.guest_spec.linux().as_ref().unwrap();
        let kinds = linux.namespaces().iter().flatten().map(|n| n.typ());
        assert!(!kinds.into_iter().any(|kind| kind == LinuxNamespaceType::Network));
    }
}

#[test]
fn bind_mount_becomes_a_share_read_only_on_the_host() {
    let plan = with(
        "/mounts",
        json!([
            {"destination": "/a", "type": "bind", "source": "data", "options": ["rbind", "ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/b", "type": "none", "source": "/x", "options": ["bind", "ro", "rw"]},
        ]),
    )
    .unwrap();
    let shares: Vec<_> = plan
        .binds
        .iter()
        .map(|s| (s.name.as_str(), s.source.to_str().unwrap(), s.read_only))
        .collect();
    assert_eq!(shares, [("v0", "/b/data", true), ("v1", "/x", false)]);
    let guest = serde_json::to_value(plan.guest_spec.mounts()).unwrap();
    assert_eq!(guest[0]["source"], "/run/bulkhead/share/v0");
    assert_eq!(guest[1]["type"], "tmpfs");
    assert_eq!(guest[2]["type"], "bind");
    assert_eq!(guest[2]["source"], "/run/bulkhead/share/v1");
}

#[test]
fn overlay_becomes_a_share_that_the_host_mounts() {
    let options = ["nosuid", "index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a\\:b:/c"];
    let mount = json!({"destination": "/o", "type": "overlay", "options": options});
    let plan = with("/mounts", json!([mount])).unwrap();
    let share = &plan.binds[0];
    assert_eq!(share.source, Path::new("/u"));
    let data = "index=off,workdir=/w,upperdir=/u,lowerdir=/a\\:b:/c";
    assert_eq!(share.overlay.as_deref(), Some(data));
    let guest = serde_json::to_value(plan.guest_spec.mounts()).unwrap();
    assert_eq!(guest[0]["type"], "bind");
    assert_eq!(guest[0]["options"], json!(["nosuid"]));

    let lower_only =
        json!({"destination": "/o", "type": "overlay", "options": ["lowerdir=/a\\:b"]});
    let plan = with("/mounts", json!([lower_only])).unwrap();
    assert_eq!(plan.binds[0].source, Path::new("/a:b"));
}

#[test]
fn overlay_that_says_too_little_or_too_much_is_refused() {
    for options in [
        vec!["upperdir=/u", "workdir=/w"],
        vec!["lowerdir=relative"],
        vec!["lowerdir=/l", "upperdir=/u"],
        vec!["lowerdir="],
        vec!["lowerdir=/l,xino=on"],
        vec!["lowerdir=/l", "context=x"],
        vec!["lowerdir=/l", "idmap"],
    ] {
        let mount = json!({"destination": "/o", "type": "overlay", "options": options});
        assert!(with("/mounts", json!([mount])).is_err(), "{options:?}");
    }
}

#[test]
fn owners_of_a_bind_mount_are_mapped_on_the_host() {
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 5}]);
    let mount = json!({
        "destination": "/a", "source": "/x", "options": ["rbind", "ridmap"],
        "uidMappings": map, "gidMappings": map,
    });
    let plan = with("/mounts", json!([mount])).unwrap();
    let range = IdRange { inside: 0, outside: 1000, size: 5 };
    let expected = IdMap { uids: vec![range], gids: vec![range], recursive: true };
    assert_eq!(plan.binds[0].id_map, Some(expected));
    let guest = serde_json::to_value(plan.guest_spec.mounts()).unwrap();
    assert_eq!(guest[0]["options"], json!(["rbind"]));
    assert!(guest[0].get("uidMappings").is_none());

    let full = json!([{"containerID": 0, "hostID": 4_294_967_295_u32, "size": 1}]);
    for (field, value) in [("uidMappings", json!([])), ("gidMappings", full)] {
        let mut mount = mount.clone();
        mount[field] = value;
        assert!(with("/mounts", json!([mount])).is_err(), "{field}");
    }
}

#[test]
fn device_without_state_is_bound_from_the_guest() {
    let mounts = json!([{"destination": "/etc/x", "source": "/dev/null", "options": ["bind"]}]);
    let plan = with("/mounts", mounts).unwrap();
    assert!(plan.binds.is_empty());
    let guest = serde_json::to_value(plan.guest_spec.mounts()).unwrap();
    assert_eq!(guest[0]["source"], "/dev/null");
}

#[test]
fn mount_without_a_source_is_one_of_its_type() {
    let plan = with("/mounts", json!([{"destination": "/tmp", "type": "tmpfs"}])).unwrap();
    let guest = serde_json::to_value(plan.guest_spec.mounts()).unwrap();
    assert_eq!(guest[0]["source"], "tmpfs");
}

#[test]
fn too_many_bind_mounts_are_refused() {
    let binds = |n| {
        let bind = |i| json!({"destination": format!("/m{i}"), "type": "bind", "source": "/x"});
        Value::Array((0..n).map(bind).collect())
    };
    assert_eq!(with("/mounts", binds(239)).unwrap().binds.len(), 239);
    assert!(with("/mounts", binds(240)).is_err());
}

#[test]
fn mount_points_in_a_read_only_root_are_made_before_it_is_served() {
    let mut spec = base();
    set(&mut spec, "/root", json!({"path": "/r", "readonly": true}));
    set(
        &mut spec,
        "/mounts",
        json!([
            {"destination": "/dev", "type": "tmpfs"},
            {"destination": "/dev/pts", "type": "devpts"},
            {"destination": "/device", "type": "tmpfs"},
            {"destination": "/etc/hosts", "source": "/h", "options": ["bind"]},
        ]),
    );
    let plan = run(spec).unwrap();
    assert!(plan.root.read_only);
    assert_eq!(plan.root.source, Path::new("/r"));
    assert!(plan.makes_mount_points);
    let points: Vec<_> =
        plan.mount_points.iter().map(|p| (p.path.to_str().unwrap(), p.kind, p.nested)).collect();
    let directory = MountPointKind::Directory;
    let wanted = [
        ("/dev", directory, false),
        ("/dev/pts", directory, true),
        ("/device", directory, false),
        ("/etc/hosts", MountPointKind::Bind(0), false),
    ];
    assert_eq!(points, wanted);
}

#[test]
fn resources_size_the_microvm() {
    let mib = 1 << 20;
    let table = [
        (json!({}), (1, 256)),
        (json!({"memory": {"limit": -1}}), (1, 256)),
        (json!({"memory": {"limit": 0}}), (1, 256)),
        (json!({"memory": {"limit": 128 * mib}}), (1, 192)),
        (json!({"memory": {"limit": 128 * mib + 1}}), (1, 193)),
        (json!({"cpu": {"quota": 150_000, "period": 100_000}}), (2, 256)),
        (json!({"cpu": {"quota": 50_000}}), (1, 256)),
        (json!({"cpu": {"quota": -1, "period": 100_000}}), (1, 256)),
        (json!({"cpu": {"quota": i64::MAX, "period": 1}}), (32, 256)),
        (json!({"cpu": {"quota": 100, "period": 0}}), (1, 256)),
        (json!({"cpu": {"cpus": "0-2,7"}}), (4, 256)),
        (json!({"cpu": {"cpus": "0", "quota": 400_000}}), (1, 256)),
        (json!({"cpu": {"cpus": "0-3", "quota": 200_000}}), (2, 256)),
    ];
    for (resources, size) in table {
        let plan = with("/linux/resources", resources.clone()).unwrap();
        assert_eq!((plan.vcpus, plan.mem_mib), size, "{resources}");
    }
}

#[test]
fn annotations_of_bulkhead_win_over_resources_and_stay_on_the_host() {
    let mut spec = base();
    set(
        &mut spec,
        "/annotations",
        json!({
            "io.bulkhead.vcpus": "4", "io.bulkhead.memory-mib": "512",
            "io.bulkhead.boot-timeout-s": "60", "io.bulkhead.net": "rx-bps=1m", "org.example": "x"
        }),
    );
    set(&mut spec, "/linux/resources", json!({"memory": {"limit": 1 << 20}}));
    let plan = run(spec).unwrap();
    assert_eq!((plan.vcpus, plan.mem_mib), (4, 512));
    assert_eq!(plan.boot_limit, Some(Duration::from_secs(60)));
    assert_eq!(plan.net_limits.of("eth0").rx.unwrap().bytes.unwrap().size, 1 << 20);
    assert!(plan.guest_spec.annotations().is_none());
}

#[test]
fn shared_mount_of_a_container_that_cannot_mount_is_private() {
    let mut config = base();
    let options = json!(["bind", "rw", "shared"]);
    config["mounts"] = json!([{"destination": "/a", "source": "/x", "options": options}]);
    for capability in ["CAP_SYS_ADMIN", "CAP_CHOWN"] {
        config["process"]["capabilities"] = json!({"bounding": [capability]});
        let plan = run(config.clone());
        assert_eq!(plan.is_ok(), capability == "CAP_CHOWN", "{capability}");
        if let Ok(plan) = plan {
            let mounts = plan.guest_spec.mounts().as_deref().unwrap();
            assert_eq!(mounts[0].options().as_deref().unwrap(), ["bind", "rw"]);
        }
    }
}

#[test]
fn field_without_meaning_is_dropped_with_a_note() {
    let table = [
        ("/process/apparmorProfile", json!("docker-default"), "process.apparmorProfile"),
        ("/process/selinuxLabel", json!("x"), "process.selinuxLabel"),
        ("/process/user/username", json!("docker-default"), "process.user.username"),
        ("/linux/mountLabel", json!("x"), "linux.mountLabel"),
        ("/linux/rootfsPropagation", json!("rslave"), "linux.rootfsPropagation"),
        (
            "/linux/resources",
            json!({"memory": {"swappiness": 1}}),
            "linux.resources.memory.swappiness",
        ),
        (
            "/linux/resources",
            json!({"memory": {"checkBeforeUpdate": true}}),
            "linux.resources.memory.checkBeforeUpdate",
        ),
        (
            "/linux/resources",
            json!({"network": {"priorities": [{"name": "eth0", "priority": 1}]}}),
            "linux.resources.network",
        ),
        (
            "/linux/resources",
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}),
            "linux.resources.hugepageLimits",
        ),
    ];
    for (pointer, value, field) in table {
        let plan = with(pointer, value).unwrap();
        let noted: Vec<_> = plan.notes.iter().map(|n| n.field.as_str()).collect();
        assert_eq!(noted, [field]);
        let guest = serde_json::to_string(&plan.guest_spec).unwrap();
        for dropped in ["docker-default", "selinuxLabel", "system.slice", "swap", "hugepage"] {
            assert!(!guest.contains(dropped), "{guest}");
        }
    }
}

#[test]
fn what_an_update_drops_is_noted() {
    let change = json!({
        "memory": {"limit": 1, "checkBeforeUpdate": true},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "devices": [{"allow": false, "access": "rwm"}],
    });
    let notes = dropped(&serde_json::from_value(change).unwrap());
    let fields: Vec<_> = notes.iter().map(|note| note.field.as_str()).collect();
    let expected = ["memory.checkBeforeUpdate", "hugepageLimits", "devices"];
    assert_eq!(fields, expected.map(|name| format!("linux.resources.{name}")));
}

#[test]
fn terminal_size_beyond_the_kernels_is_refused() {
    let mut spec = base();
    set(&mut spec, "/process/terminal", json!(true));
    set(&mut spec, "/process/consoleSize", json!({"height": 24, "width": 80}));
    let plan = run(spec.clone()).unwrap();
    assert_eq!((plan.terminal, plan.console_size), (true, Some((24, 80))));
    set(&mut spec, "/process/consoleSize", json!({"height": 65536, "width": 80}));
    assert!(run(spec).is_err());
}

#[test]
fn resources_hold_where_they_have_a_meaning() {
    let resources = json!({
        "memory": {"limit": 64 << 20, "swap": 64 << 20, "reservation": 4096},
        "cpu": {"shares": 7, "quota": 9000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 0},
        "blockIO": {"weight": 100},
        "unified": {"memory.high": "1", "cpu.weight": "2", "io.weight": "3", "cpuset.cpus": "0"},
    });
    let plan = with("/linux/resources", resources).unwrap();
    let host = serde_json::to_value(&plan.host_resources).unwrap();
    assert_eq!(
        host,
        json!({
            "memory": {"limit": 64 << 20, "swap": 64 << 20, "reservation": 4096},
            "cpu": {"shares": 7, "quota": 9000, "cpus": "0", "mems": "0"},
            "blockIO": {"weight": 100},
            "unified": {"cpu.weight": "2", "io.weight": "3", "cpuset.cpus": "0"},
        })
    );
    let guest = serde_json::to_value(plan.guest_spec.linux().as_ref().unwrap().resources());
    assert_eq!(
        guest.unwrap(),
        json!({
            "memory": {"limit": 64 << 20, "reservation": 4096},
            "cpu": {"shares": 7, "quota": 9000},
            "unified": {"memory.high": "1", "cpu.weight": "2"},
        })
    );
}

fn with_policy(policy: &str, change: Value) -> Result<SandboxPlan, PlanError> {
    let mut spec = base();
    for (pointer, value) in change.as_object().unwrap() {
        set(&mut spec, pointer, value.clone());
    }
    let spec = serde_json::from_value(spec).unwrap();
    plan(&"c".parse().unwrap(), Path::new("/b"), spec, &policy::parse(policy).unwrap())
}

#[test]
fn microvm_has_no_more_than_the_operator_allows() {
    let policy = "[limits]\nvcpus = 2\nmemory_mib = 200\n";
    let plan = with_policy(policy, json!({})).unwrap();
    assert_eq!((plan.vcpus, plan.mem_mib), (1, 200));
    assert_eq!(plan.ceiling, Ceiling { vcpus: Some(2), mem_mib: Some(200) });
    let cpu =
        json!({"/linux/resources": {"cpu": {"quota": 900_000}, "memory": {"limit": 1 << 20}}});
    let plan = with_policy(policy, cpu).unwrap();
    assert_eq!((plan.vcpus, plan.mem_mib), (2, 65));
    let memory = json!({"/linux/resources": {"memory": {"limit": 137 << 20}}});
    let shown = with_policy(policy, memory).unwrap_err().to_string();
    assert!(shown.starts_with("linux.resources.memory.limit: "), "{shown}");
    assert!(shown.contains("operator allows a guest at most 200 MiB"), "{shown}");
}

#[test]
fn disk_is_no_faster_than_the_operator_allows() {
    let policy = "[limits]\ndisk_iops = 100\n[kernel_parameters]\nalways = [\"a\"]\n";
    let disk = |text: &str| json!({"/annotations": {"io.bulkhead.block.a": text}});
    for (text, iops) in [("/a", 100), ("/a,iops=7", 7), ("/a,bps=9", 100)] {
        let plan = with_policy(policy, disk(text)).unwrap();
        assert_eq!(plan.disks[0].rate.unwrap().ops.unwrap().size, iops, "{text}");
        assert_eq!(plan.kernel_parameters, ["a"]);
    }
    let shown = with_policy(policy, disk("/a,iops=101")).unwrap_err().to_string();
    assert!(shown.starts_with("annotations[\"io.bulkhead.block.a\"]: \"101\" is not"), "{shown}");
    assert_eq!(with_policy("", disk("/a")).unwrap().disks[0].rate, None);
}
