//! Specifications with disks and what becomes of them.

use oci_spec::runtime::LinuxDeviceType;
use serde_json::{Value, json};

use super::super::{Policy, SandboxPlan, plan};
use super::*;

fn run(change: impl FnOnce(&mut Value)) -> Result<SandboxPlan, PlanError> {
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"},
                                 {"type": "uts"}, {"type": "mount"}]},
    });
    change(&mut spec);
    let spec = serde_json::from_value(spec).unwrap();
    plan(&"c".parse().unwrap(), Path::new("/b"), spec, &Policy::default())
}

fn annotated(pairs: &[(&str, &str)]) -> Result<SandboxPlan, PlanError> {
    run(|spec| {
        for (key, value) in pairs {
            spec["annotations"][key] = json!(value);
        }
    })
}

#[test]
fn root_annotation_takes_the_place_of_the_root_share() {
    let plan = annotated(&[(ROOT, "r.erofs,overlay=64m,iops=100")]).unwrap();
    let [disk] = &plan.disks[..] else { panic!("{:?}", plan.disks) };
    assert_eq!(disk.serial, "bulkhead-root");
    assert_eq!(disk.source, DiskSource::Path("/b/r.erofs".into()));
    assert!(disk.read_only && !plan.root_is_served);
    let ops = disk.rate.unwrap().ops.unwrap();
    assert_eq!((ops.size, ops.refill_time_ms), (100, 1000));
    let overlay = Some(Some(64 << 20));
    assert_eq!(disk.usage, DiskUse::Root { fstype: None, overlay, layer: false });
    assert_eq!(plan.guest_spec.root().as_ref().unwrap().path(), Path::new(ROOT_TARGET));

    let plan = annotated(&[(ROOT, "/r.img:rw,type=ext4,layer")]).unwrap();
    assert!(plan.root_is_served && plan.root.read_only && !plan.disks[0].read_only);
}

#[test]
fn mounts_of_image_files_become_disks_in_order() {
    let plan = run(|spec| {
        spec["annotations"][ROOT] = json!("/root.img");
        spec["mounts"] = json!([
            {"destination": "/a", "type": "erofs", "source": "/a.erofs", "options": ["loop", "nosuid"]},
            {"destination": "/t", "type": "tmpfs"},
            {"destination": "/b", "type": "ext4", "source": "b.img", "options": ["rw", "data=ordered"]},
        ]);
    })
    .unwrap();
    let serials: Vec<_> = plan.disks.iter().map(|disk| disk.serial.as_str()).collect();
    assert_eq!(serials, ["bulkhead-root", "bulkhead-mount-0", "bulkhead-mount-1"]);
    assert!(plan.disks[1].read_only && !plan.disks[2].read_only);
    let DiskUse::Mount { options, target, .. } = &plan.disks[2].usage else { panic!() };
    assert_eq!(options, &["data=ordered"]);
    let mounts = serde_json::to_value(plan.guest_spec.mounts()).unwrap();
    assert_eq!(mounts[2]["source"], json!(target));
    assert_eq!(mounts[0]["type"], "bind");
    assert_eq!(mounts[0]["options"], json!(["rbind", "nosuid"]));
    assert_eq!(mounts[2]["options"], json!(["rbind", "rw"]));
}

#[test]
fn block_annotations_are_nodes_or_mounts() {
    let plan = annotated(&[
        ("io.bulkhead.block.b", "/b.img,mount=/data"),
        ("io.bulkhead.block.a", "/a.img:ro,node=/dev/xvda,queues=2"),
        ("io.bulkhead.block.c", "/c.img"),
    ])
    .unwrap();
    let serials: Vec<_> = plan.disks.iter().map(|disk| disk.serial.as_str()).collect();
    assert_eq!(serials, ["a", "b", "c"]);
    let DiskUse::Node { path, access, .. } = &plan.disks[0].usage else { panic!() };
    assert_eq!((path.as_path(), access.as_str()), (Path::new("/dev/xvda"), "rm"));
    assert_eq!(plan.disks[0].queues, Some(2));
    assert!(matches!(&plan.disks[1].usage, DiskUse::Mount { .. }));
    let DiskUse::Node { path, access, .. } = &plan.disks[2].usage else { panic!() };
    assert_eq!((path.as_path(), access.as_str()), (Path::new("/dev/c"), "rwm"));
}

#[test]
fn block_device_gets_the_access_that_the_host_would_give() {
    let table = [
        (json!([]), ""),
        (json!([{"allow": false, "access": "rwm"}]), ""),
        (
            json!([{"allow": false, "access": "rwm"},
                {"allow": true, "type": "b", "major": 7, "minor": 3, "access": "r"}]),
            "r",
        ),
        (json!([{"allow": true, "access": "rwm"}]), "rwm"),
        (
            json!([{"allow": true, "type": "b", "major": 7, "access": "rw"},
                {"allow": false, "type": "b", "major": 7, "minor": 3, "access": "w"}]),
            "r",
        ),
        (json!([{"allow": true, "type": "c", "major": 7, "minor": 3, "access": "rwm"}]), ""),
    ];
    for (rules, expected) in table {
        let plan = run(|spec| {
            spec["linux"]["devices"] = json!([
                {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
                {"path": "/dev/loop3", "type": "b", "major": 7, "minor": 3, "fileMode": 0o600},
            ]);
            spec["linux"]["resources"] = json!({"devices": rules});
        })
        .unwrap();
        let disk = &plan.disks[0];
        let DiskUse::Node { access, mode, .. } = &disk.usage else { panic!() };
        assert_eq!((access.as_str(), *mode), (expected, 0o600), "{rules}");
        assert_eq!(disk.read_only, !expected.contains('w'));
        assert_eq!(disk.serial, "bulkhead-device-1");
        let linux = plan.guest_spec.linux().as_ref().unwrap();
        assert_eq!(linux.devices().as_ref().unwrap().len(), 1);
        let left = linux.resources().as_ref().unwrap().devices().clone().unwrap_or_default();
        assert!(
            left.iter()
                .all(|rule| rule.major().is_none() || rule.typ() != Some(LinuxDeviceType::B))
        );
    }
}

#[test]
fn disk_that_cannot_be_had_is_refused_by_field() {
    let long = format!("io.bulkhead.block.{}", "x".repeat(21));
    for (key, value) in [
        (ROOT, ""),
        (ROOT, "/r,mount=/x"),
        (ROOT, "/r,type=xfs"),
        (ROOT, "/r,overlay=0"),
        (ROOT, "/r,queues=9"),
        (ROOT, "/r,unknown"),
        (ROOT, "/r,iops=0"),
        ("io.bulkhead.block.a", "/a,mount=rel"),
        ("io.bulkhead.block.a", "/a,mount=/"),
        ("io.bulkhead.block.a", "/a,mount=/x/../y"),
        ("io.bulkhead.block.a", "/a,mount=/x,node=/dev/y"),
        ("io.bulkhead.block.a", "/a,overlay"),
        ("io.bulkhead.block.a", "/a,type=ext4"),
        ("io.bulkhead.block.", "/a"),
        ("io.bulkhead.block.a/b", "/a"),
        ("io.bulkhead.block.bulkhead-root", "/a"),
        (long.as_str(), "/a"),
    ] {
        let refused = annotated(&[(key, value)]).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("annotations[{key:?}]")), "{key} {value}: {refused}");
    }
    let xfs = run(|spec| {
        spec["mounts"] = json!([{"destination": "/x", "type": "xfs", "source": "/x"}]);
    });
    assert!(xfs.unwrap_err().to_string().starts_with("mounts[0].type (xfs): "));
    let relative = run(|spec| {
        let device = json!({"path": "loop3", "type": "b", "major": 7, "minor": 3});
        spec["linux"]["devices"] = json!([device]);
    });
    assert!(relative.unwrap_err().to_string().starts_with("linux.devices[0] (loop3): "));
    let many: Vec<_> = (0..17).map(|i| (format!("io.bulkhead.block.d{i}"), "/d")).collect();
    let many: Vec<_> = many.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    assert!(annotated(&many).unwrap_err().to_string().starts_with("block devices: "));
}
