//! Scopes of systemd as cgroups of sandboxes (`--systemd-cgroup`), with a systemd of each test's
//! own: places, limits in both forms, updates, who ends what, and nothing left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bulkhead_tests::manager::{in_manager, property, systemctl};
use bulkhead_tests::netns::{self, Namespace};
use bulkhead_tests::podman::{INFRA, Podman};
use bulkhead_tests::{Bundle, Created, Leftovers, bulkhead, is_full, run, unique_id, wait_until};
use serde_json::{Value, json};

const ROOT: &str = "/sys/fs/cgroup";
const MIB: u64 = 1 << 20;
const FLAG: &str = "--systemd-cgroup";

/// Says when it is up, and ends with 9 at SIGTERM. Its processes are many, as of a shell.
const TRAPS: &str = "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.1; done";

/// A bundle whose scope is `test-ID.scope` in `slice`.
fn bundle(script: &str, slice: &str, id: &str) -> Bundle {
    let mut bundle = Bundle::script(script);
    bundle.edit(|config| config["linux"]["cgroupsPath"] = json!(format!("{slice}:test:{id}")));
    bundle
}

fn scope(id: &str) -> String {
    format!("test-{id}.scope")
}

/// A container that has started in a scope of `system.slice`.
fn started(script: &str, resources: Value) -> (Created, String, PathBuf) {
    let id = unique_id("scope");
    let mut bundle = bundle(script, "system.slice", &id);
    bundle.edit(|config| {
        let all = config["linux"]["resources"].as_object_mut().expect("resources");
        all.extend(resources.as_object().expect("an object").clone());
    });
    let unit = scope(&id);
    let cgroup = Path::new(ROOT).join("system.slice").join(&unit);
    let container = Created::with_flags(id, bundle, &[FLAG]);
    container.start();
    (container, unit, cgroup)
}

#[track_caller]
fn read(cgroup: &Path, file: &str) -> String {
    let path = cgroup.join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

/// Names of the programs in a cgroup.
fn programs(cgroup: &Path) -> Vec<String> {
    let pids = read(cgroup, "cgroup.procs");
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let name = |path: PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<String> = pids.lines().filter_map(|p| program(p).and_then(name)).collect();
    names.sort();
    names
}

fn is_loaded(unit: &str) -> bool {
    property(unit, "LoadState") == "loaded"
}

#[test]
fn limits_hold_in_the_scope_through_updates_and_reloads() {
    in_manager("limits_hold_in_the_scope_through_updates_and_reloads", || {
        let before = Leftovers::now();
        let (container, unit, cgroup) = started(
            TRAPS,
            json!({
                "memory": {"limit": 64 * MIB, "reservation": MIB},
                "cpu": {"shares": 512, "quota": 123_450, "period": 100_000, "cpus": "0"},
            }),
        );
        assert_eq!(programs(&cgroup), ["bulkhead", "bulkhead-fsd", "bulkhead-vmm"]);
        assert_eq!(property(&unit, "ControlGroup"), format!("/system.slice/{unit}"));
        assert_eq!(property(&unit, "Delegate"), "yes");
        let max = |mem_mib: u64| ((mem_mib + 32 + mem_mib / 64) * MIB).to_string();
        let check = |mem_mib: u64, quota: u64, weight: &str, moment: &str| {
            for (file, name, in_file, in_unit) in [
                ("memory.max", "MemoryMax", max(mem_mib), max(mem_mib)),
                ("memory.low", "MemoryLow", MIB.to_string(), MIB.to_string()),
                ("pids.max", "TasksMax", "512".into(), "512".into()),
                ("cpu.weight", "CPUWeight", weight.into(), weight.into()),
                ("cpuset.cpus", "AllowedCPUs", "0".into(), "0".into()),
            ] {
                assert_eq!(read(&cgroup, file), in_file, "{moment}: {file}");
                assert_eq!(property(&unit, name), in_unit, "{moment}: {name}");
            }
            assert_eq!(read(&cgroup, "cpu.max"), format!("{quota} 100000"), "{moment}");
        };
        // In whole percents, which are what systemd can keep.
        check(128, 124_000, "59", "created");
        run(&mut systemctl(&["daemon-reload"])).expect(0);
        check(128, 124_000, "59", "reloaded");

        let flags = ["update", "--memory", "96m", "--cpu-quota", "50000", "--cpu-share", "2048"];
        container.command(&flags, &[]).expect(0);
        check(160, 50_000, "174", "updated");
        let failed = container.command(&["update", "--memory", "80m", "--cpuset-cpus", "77"], &[]);
        let failed = failed.expect(1).stderr;
        assert!(failed.contains("linux.resources.cpu.cpus"), "{failed}");
        run(&mut systemctl(&["daemon-reload"])).expect(0);
        check(160, 50_000, "174", "not updated, and reloaded");

        container.command(&["kill"], &["KILL"]).expect(0);
        assert_eq!(container.wait(), 137);
        container.delete().expect(0);
        assert!(!is_loaded(&unit) && !cgroup.exists());
        before.assert_none();
    });
}

#[test]
fn scope_ends_with_its_sandbox_however_that_ends() {
    in_manager("scope_ends_with_its_sandbox_however_that_ends", || {
        let before = Leftovers::now();
        // In the place of all that name none, and gone when the command is.
        let id = unique_id("plain");
        let own = Bundle::script("exit 3");
        let outcome = run(bulkhead().args([FLAG, "run", "--bundle"]).arg(own.path()).arg(&id));
        outcome.expect(3);
        assert!(!is_loaded(&format!("bulkhead-{id}.scope")));
        before.assert_none();

        // Killed from outside.
        let (container, unit, cgroup) = started(TRAPS, json!({}));
        rustix::process::kill_process(container.supervisor, rustix::process::Signal::KILL)
            .expect("killed");
        container.ended();
        container.delete().expect(0);
        assert!(!is_loaded(&unit) && !cgroup.exists());

        // Deleted while it runs, in a slice below another.
        let id = unique_id("sliced");
        let container = Created::with_flags(id.clone(), bundle(TRAPS, "a-b.slice", &id), &[FLAG]);
        let cgroup = Path::new(ROOT).join("a.slice/a-b.slice").join(scope(&id));
        assert_eq!(programs(&cgroup).len(), 3);
        container.delete().expect(0);
        assert!(!is_loaded(&scope(&id)) && !cgroup.exists());
        // The slices are systemd's, which keeps them.
        run(&mut systemctl(&["stop", "a.slice"])).expect(0);
        before.assert_none();
    });
}

#[test]
fn stopped_scope_ends_its_workload_in_order() {
    in_manager("stopped_scope_ends_its_workload_in_order", || {
        let (container, unit, _) = started(TRAPS, json!({}));
        container.prints("up");
        run(&mut systemctl(&["stop", &unit])).expect(0);
        assert_eq!(container.wait(), 9);
        container.prints("caught");
        let state = container.command(&["state"], &[]).expect(0);
        let state: Value = serde_json::from_slice(&state.stdout).expect("state is JSON");
        assert_eq!(state["status"], "stopped");
        container.command(&["delete"], &[]).expect(0);
        assert!(!is_loaded(&unit));
    });
}

#[test]
fn unit_of_another_is_neither_taken_nor_stopped() {
    in_manager("unit_of_another_is_neither_taken_nor_stopped", || {
        let id = unique_id("taken");
        let unit = scope(&id);
        let mut stranger = Command::new("systemd-run")
            .args(["--quiet", "--scope", "--unit", &unit, "sleep", "1000"])
            .stdin(Stdio::null())
            .spawn()
            .expect("systemd-run is installed");
        wait_until("the scope of another", || property(&unit, "ActiveState") == "active");
        let before = Leftovers::now();
        let taken = bundle("true", "system.slice", &id);
        let outcome = run(bulkhead().args([FLAG, "run", "--bundle"]).arg(taken.path()).arg(&id));
        assert_eq!(outcome.code, 1);
        assert!(outcome.stderr.contains("already"), "{}", outcome.stderr);
        for path in ["/a/b", "a:b:c:d", "system.slice:p:../x", "none:p:n", "a.slice:p:n.slice"] {
            let mut bundle = Bundle::script("true");
            bundle.edit(|config| config["linux"]["cgroupsPath"] = json!(path));
            let id = unique_id("refused");
            let mut command = bulkhead();
            let refused = run(command.args([FLAG, "run", "--bundle"]).arg(bundle.path()).arg(id));
            assert_eq!(refused.code, 1, "{path}");
            assert!(refused.stderr.contains("cgroupsPath"), "{path}: {}", refused.stderr);
        }
        before.assert_none();

        // A record that names it, of a container whose own scope has gone.
        let (container, own, _) = started(TRAPS, json!({}));
        container.command(&["kill"], &["KILL"]).expect(0);
        container.wait();
        let state = Path::new("/run/bulkhead").join(&container.id).join("state.json");
        let record = fs::read_to_string(&state).expect("the state").replace(&own, &unit);
        fs::write(&state, record).expect("the state");
        container.delete().expect(0);
        assert_eq!(property(&unit, "ActiveState"), "active");
        assert!(stranger.try_wait().expect("waiting").is_none());
        stranger.kill().expect("killed");
        stranger.wait().expect("ended");
        before.assert_none();
    });
}

/// `podman WORDS...`, and what it prints.
#[track_caller]
fn said(podman: &Podman, words: &[&str]) -> String {
    podman.run(words).expect(0).text()
}

#[test]
fn podman_has_containers_and_pods_in_scopes() {
    if !is_full() {
        return println!("skipped: a part of --full");
    }
    in_manager("podman_has_containers_and_pods_in_scopes", || {
        const IMAGE: &str = "localhost/busybox";
        let podman = Podman::with_cgroups_of("systemd");
        podman.import_busybox(IMAGE, "/bin/sh");
        podman.import_busybox(INFRA, "sleep 1000000");
        // The directory of named namespaces becomes a mount with the first one, and stays.
        drop(Namespace::new());
        let before = Leftovers::now();
        let flags = ["run", "--detach", "--name", "one", "--memory", "200m", "--network", "none"];
        let patient = "org.systemd.property.TimeoutStopUSec=uint64 300000000";
        let asked = ["--annotation", patient, "--stop-timeout", "300"];
        let rest = [IMAGE, "/bin/sh", "-c", TRAPS];
        let id = said(&podman, &[&flags[..], &asked, &rest].concat());
        let unit = format!("libpod-{id}.scope");
        wait_until("the container's output", || said(&podman, &["logs", "one"]) == "up");
        assert_eq!(property(&unit, "Slice"), "machine.slice");
        assert_eq!(property(&unit, "TimeoutStopUSec"), "5min");
        let cgroup = Path::new(ROOT).join("machine.slice").join(&unit);
        assert_eq!(programs(&cgroup), ["bulkhead", "bulkhead-fsd", "bulkhead-vmm"]);
        said(&podman, &["update", "--cpus", "0.5", "one"]);
        assert_eq!(property(&unit, "CPUQuotaPerSecUSec"), "500ms");
        // Started again under the name that it had.
        said(&podman, &["restart", "one"]);
        wait_until("the container's output", || said(&podman, &["logs", "one"]).ends_with("up"));
        said(&podman, &["stop", "one"]);
        assert_eq!(said(&podman, &["inspect", "--format", "{{.State.ExitCode}}", "one"]), "9");
        assert!(!is_loaded(&unit) && !cgroup.exists());
        said(&podman, &["rm", "one"]);

        let pod = said(&podman, &["pod", "create", "--name", "made"]);
        let words = ["run", "--detach", "--pod", "made", IMAGE, "/bin/sh", "-c", TRAPS];
        let id = said(&podman, &words);
        let slice = format!("machine-libpod_pod_{pod}.slice");
        assert_eq!(property(&format!("libpod-{id}.scope"), "Slice"), slice);
        said(&podman, &["pod", "rm", "--force", "--time", "0", "made"]);
        assert!(!is_loaded(&format!("libpod-{id}.scope")));
        run(&mut systemctl(&["stop", "machine.slice"])).expect(0);
        // What Podman leaves of its own.
        netns::ip("link del cni-podman0");
        before.assert_none();
    });
}
