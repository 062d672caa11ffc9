//! Every kind of mount that clients send, where it can be compared beside runc.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use bulkhead_tests::disk::{Ext4, Mounted};
use bulkhead_tests::{Bundle, Leftovers, bulkhead, run, unique_id};
use serde_json::json;

use crate::room::{bind, mount, privileged, run_bundle};

/// Fails unless the bundle's script says the same under both runtimes; what it says.
#[track_caller]
fn same_as_runc(bundle: &Bundle) -> String {
    let under = |mut command: Command| {
        run(command.args(["run", "--bundle"]).arg(bundle.path()).arg(unique_id("volume")))
    };
    let theirs = under(Command::new("runc"));
    let ours = under(bulkhead());
    assert_eq!((ours.code, ours.text()), (theirs.code, theirs.text()), "{}", ours.stderr);
    ours.text()
}

/// Mount point and those of the flags that a mount has under every kernel.
const FLAGS: &str = r#"flags() { awk -v at=$1 '$2 == at {
    flags = ""; split("ro rw nosuid nodev noexec noatime", known, " ");
    for (i = 1; i in known; i++) if (("," $4 ",") ~ ("," known[i] ",")) flags = flags " " known[i];
    print at, flags }' /proc/self/mounts; }
"#;

#[test]
fn mounts_of_the_kernel_are_as_under_runc() {
    let script = "dd if=/dev/zero of=/t/x bs=64k count=64 2>&1 | grep -c 'No space left'; \
                  stat -c '%s' /t/x; stat -c '%a' /t; \
                  dd if=/dev/zero of=/dev/shm/x bs=64k count=64 2>/dev/null; stat -c %s /dev/shm/x; \
                  stat -c %a /dev/shm; touch /dev/mqueue/q; grep -c QSIZE /dev/mqueue/q; \
                  ls /hidden; wc -c < /hidden.txt; echo x > /fixed/file; echo $?; \
                  wc -c < /etc/group; echo x > /proc/sysrq-trigger; echo $?; \
                  for at in /t /dev/shm /dev/mqueue /sys /proc /dev/pts /hidden; do flags $at; done";
    let mut bundle = Bundle::script(&format!("{FLAGS}{script}"));
    for directory in ["hidden", "fixed"] {
        fs::create_dir(bundle.root(directory)).expect("a directory");
        fs::write(bundle.root(directory).join("file"), "content").expect("a file");
    }
    fs::write(bundle.root("hidden.txt"), "content").expect("a file");
    bundle.edit(|config| {
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        let shm = mounts.iter_mut().find(|mount| mount["destination"] == "/dev/shm");
        shm.expect("/dev/shm")["options"] = json!(["nosuid", "nodev", "mode=1777", "size=1m"]);
        let options = ["nosuid", "nodev", "noexec", "noatime", "size=3m", "mode=1770"];
        mounts
            .push(json!({"destination": "/t", "type": "tmpfs", "source": "x", "options": options}));
        mounts.push(json!({"destination": "/etc/group", "type": "bind", "source": "/dev/null",
            "options": ["bind"]}));
        let linux = &mut config["linux"];
        for (list, paths) in [
            ("maskedPaths", vec!["/hidden", "/hidden.txt", "/not-there"]),
            ("readonlyPaths", vec!["/fixed", "/not-there"]),
        ] {
            let list = linux[list].as_array_mut().expect("a list of paths");
            list.extend(paths.into_iter().map(|path| json!(path)));
        }
    });
    let said = same_as_runc(&bundle);
    let begin =
        "1\n3145728\n1770\n1048576\n1777\n1\n0\n1\n0\n1\n/t  rw nosuid nodev noexec noatime";
    assert!(said.starts_with(begin), "{said}");
}

#[test]
fn binds_are_as_under_runc() {
    let source = tempfile::tempdir().expect("a directory");
    let at = |name: &str| source.path().join(name);
    fs::create_dir(at("sub")).expect("a directory");
    let below = Mounted::new(&["-t", "tmpfs", "tmpfs"], &at("sub"));
    for name in ["file", "sub/inner"] {
        fs::write(at(name), format!("content of {name}\n")).expect("a file");
    }
    fs::write(at("script"), "#!/bin/sh\necho ran\n").expect("a file");
    fs::set_permissions(at("script"), fs::Permissions::from_mode(0o755)).expect("its mode");
    // The last words put everything back for the other runtime.
    let script = "ls /b/sub; ls /r/sub; echo a > /rro/file; echo $?; echo a > /rro/sub/inner; \
                  echo $?; cat /r/sub/inner; cat /f; echo b > /f; echo $?; echo c > /a/new/file; \
                  echo $?; cat /r/file; /r/script; /nx/script; echo $?; cat /over/inner; \
                  for at in /rro /nx /f; do flags $at; done; echo content of file > /r/file";
    let mut bundle = Bundle::script(&format!("{FLAGS}{script}"));
    for (from, to, options) in [
        ("", "/r", &["rbind", "rw", "rprivate"][..]),
        ("", "/b", &["bind", "rw", "private"]),
        ("", "/rro", &["rbind", "rro"]),
        ("file", "/f", &["bind", "ro"]),
        ("", "/nx", &["rbind", "nosuid", "nodev", "noexec"]),
        ("file", "/a/new/file", &["rbind"]),
        ("", "/over", &["rbind"]),
        ("sub", "/over", &["rbind"]),
    ] {
        bind(&mut bundle, &at(from), to, options);
    }
    let said = same_as_runc(&bundle);
    assert!(said.starts_with("inner\n1\n1\ncontent of sub/inner\n"), "{said}");
    drop(below);
}

/// runc 1.1 cannot do this.
#[test]
fn id_mapped_bind_shows_other_owners_and_keeps_its_own() {
    let disk = Ext4::new(32);
    let (plain, mapped) = (disk.directory("plain"), disk.directory("mapped"));
    fs::write(mapped.join("file"), "content").expect("a file");
    for path in [mapped.clone(), mapped.join("file")] {
        chown(path, Some(100_000), Some(200_000)).expect("its owner");
    }
    let mut bundle = Bundle::script(
        "stat -c '%u %g' /mapped/file; echo x > /mapped/new; stat -c '%u %g' /mapped/new; \
         chown 7:8 /mapped/new; stat -c '%u %g' /mapped/new; stat -c '%u %g' /plain",
    );
    privileged(&mut bundle);
    bind(&mut bundle, &plain, "/plain", &["rbind"]);
    let ids = |first: u32| json!([{"containerID": first, "hostID": 0, "size": 1000}]);
    mount(
        &mut bundle,
        json!({
            "destination": "/mapped", "type": "bind", "source": mapped,
            "options": ["rbind", "idmap"],
            "uidMappings": ids(100_000), "gidMappings": ids(200_000),
        }),
    );
    let outcome = run_bundle(&bundle).expect(0);
    assert_eq!(outcome.text(), "0 0\n0 0\n7 8\n0 0", "{}", outcome.stderr);
    let new = mapped.join("new").metadata().expect("the new file");
    assert_eq!((new.uid(), new.gid()), (100_007, 200_008));
}

/// As containerd's snapshotters give it: mounted on the host where the root is to be, and as a
/// mount of its own.
#[test]
fn overlays_of_snapshotters_are_as_under_runc() {
    let layers = tempfile::Builder::new().tempdir_in("/var/tmp").expect("a directory");
    let layer = |name: &str| layers.path().join(name);
    let script = "cat /etc/lower; echo changed > /etc/lower; rm /etc/gone; mkdir /etc/new; \
                  rm -r /etc/dir; mkdir /etc/dir; ls /etc/dir; mv /etc/renamed /etc/moved; \
                  ls /etc; cat /data/file; echo more >> /data/file; cat /data/file";
    let bundle = Bundle::script(script);
    for name in ["lower", "gone", "renamed", "dir/inside"] {
        let path = bundle.root("etc").join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, format!("content of {name}\n")).expect("a file");
    }
    let options = |lower: &Path, name: &str| {
        for part in ["upper", "work"] {
            fs::create_dir_all(layer(name).join(part)).expect("a layer");
        }
        let at = |part: &str| layer(name).join(part).display().to_string();
        [
            format!("lowerdir={}", lower.display()),
            format!("upperdir={}", at("upper")),
            format!("workdir={}", at("work")),
        ]
    };
    fs::create_dir(layer("data")).expect("a layer");
    fs::write(layer("data").join("file"), "data\n").expect("a file");
    let root = bundle.root("");
    let mut said = vec![];
    for (program, name) in [(Command::new("runc"), "theirs"), (bulkhead(), "ours")] {
        let mut bundle = Bundle::script(script);
        let top = options(&root, name).join(",");
        let _root = Mounted::new(&["-t", "overlay", "overlay", "-o", &top], &bundle.root(""));
        mount(
            &mut bundle,
            json!({
                "destination": "/data", "type": "overlay", "source": "overlay",
                "options": options(&layer("data"), &format!("{name}-data")),
            }),
        );
        let before = Leftovers::now();
        let mut program = program;
        program.args(["run", "--bundle"]).arg(bundle.path()).arg(unique_id("volume"));
        let outcome = run(&mut program).expect(0);
        if name == "ours" {
            before.assert_none();
        }
        said.push(outcome.text());
        let upper = layer(name).join("upper/etc");
        let gone = upper.join("gone").symlink_metadata().expect("a whiteout");
        assert_eq!(gone.rdev(), 0, "{name}: a whiteout of what was removed");
        let changed = fs::read_to_string(upper.join("lower")).expect("the changed file");
        assert_eq!(changed, "changed\n");
        let data = layer(&format!("{name}-data")).join("upper/file");
        assert_eq!(fs::read_to_string(data).expect("the data"), "data\nmore\n", "{name}");
    }
    assert_eq!(said[1], said[0]);
    assert!(said[0].starts_with("content of lower\n"), "{}", said[0]);
}

/// What a tmpfs starts with is memory of the container, and no more than the container may have.
#[test]
fn content_of_a_copied_up_tmpfs_counts_as_the_containers_memory() {
    let with_limit = |mib: u64| {
        let mut bundle = Bundle::script("wc -c < /var/big; cat /sys/fs/cgroup/memory.current");
        fs::create_dir(bundle.root("var")).expect("a directory");
        fs::write(bundle.root("var/big"), vec![b'x'; 24 << 20]).expect("a file");
        bundle.edit(|config| {
            config["linux"]["resources"]["memory"] = json!({"limit": mib << 20});
        });
        mount(
            &mut bundle,
            json!({"destination": "/var", "type": "tmpfs", "source": "tmpfs",
                "options": ["tmpcopyup", "rw"]}),
        );
        bundle
    };
    let outcome = run_bundle(&with_limit(64)).expect(0);
    let text = outcome.text();
    let (size, charged) = text.split_once('\n').expect("two numbers");
    assert_eq!(size.trim(), (24 << 20).to_string());
    let charged: u64 = charged.trim().parse().expect("a number");
    assert!(charged > 24 << 20, "{charged} bytes are the container's");
    let before = Leftovers::now();
    let refused = run_bundle(&with_limit(16)).expect(1);
    assert!(refused.stderr.contains("tmpcopyup"), "{}", refused.stderr);
    assert!(refused.stderr.contains("memory limit"), "{}", refused.stderr);
    before.assert_none();
}
