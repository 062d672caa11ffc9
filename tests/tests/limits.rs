//! What a container may use and does use: the sandbox's cgroup on the host, limits that change,
//! pauses, figures and OOM events.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bulkhead_tests::{Bundle, Created, LIMIT, Leftovers, Outcome, bulkhead, run, unique_id};
use serde_json::{Value, json};

const ROOT: &str = "/sys/fs/cgroup";
const MIB: u64 = 1 << 20;

/// A container in a cgroup of its own; removed at the end of the test.
struct Container {
    created: Created,
    cgroup: PathBuf,
}

impl Container {
    /// Creates and starts a container that does nothing, in the cgroup `/limits/ID`.
    fn start(resources: Value) -> Self {
        let container = Self::create(resources);
        container.created.start();
        container
    }

    fn create(resources: Value) -> Self {
        let id = unique_id("limits");
        let mut bundle = Bundle::script("while :; do sleep 1; done");
        bundle.edit(|config| {
            config["linux"]["cgroupsPath"] = json!(format!("/limits/{id}"));
            let all = config["linux"]["resources"].as_object_mut().expect("resources");
            all.extend(resources.as_object().expect("an object").clone());
        });
        let cgroup = Path::new(ROOT).join("limits").join(&id);
        Self { created: Created::new(id, bundle), cgroup }
    }

    /// `bulkhead WORDS... ID REST...`.
    fn command(&self, words: &[&str], rest: &[&str]) -> Outcome {
        self.created.command(words, rest)
    }

    fn exec(&self, args: &[&str]) -> Outcome {
        self.command(&["exec"], args)
    }

    fn state(&self) -> Value {
        let outcome = self.command(&["state"], &[]).expect(0);
        serde_json::from_slice(&outcome.stdout).expect("state is JSON")
    }

    /// A file of the cgroup on the host.
    fn file(&self, name: &str) -> String {
        let path = self.cgroup.join(name);
        fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            .trim()
            .into()
    }

    /// Figures as `events --stats` prints them.
    fn figures(&self) -> Value {
        let outcome = self.command(&["events", "--stats"], &[]).expect(0);
        let event: Value = serde_json::from_slice(&outcome.stdout).expect("one event");
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(self.created.id)));
        event["data"].clone()
    }

    /// `events` in the background, and its lines.
    fn events(&self) -> (Child, impl Iterator<Item = Value>) {
        let mut child = bulkhead()
            .args(["events", "--interval", "1h", &self.created.id])
            .stdout(Stdio::piped())
            .spawn()
            .expect("bulkhead starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let events = lines.map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON"));
        (child, events)
    }
}

/// Names of the processes of a cgroup, kernel threads left out.
fn processes(cgroup: &Path) -> Vec<String> {
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).expect("the cgroup");
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let name = |path: PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<String> = pids.lines().filter_map(|p| program(p).and_then(name)).collect();
    names.sort();
    names
}

fn host_memory(mem_mib: u64) -> String {
    ((mem_mib + 32 + mem_mib / 64) * MIB).to_string()
}

#[test]
fn sandbox_is_in_the_cgroup_of_the_specification_with_its_limits() {
    let before = Leftovers::now();
    let container = Container::start(json!({
        "memory": {"limit": 64 * MIB, "reservation": MIB},
        "cpu": {"shares": 512, "quota": 150_000, "period": 100_000, "cpus": "0"},
        "pids": {"limit": 50},
        "unified": {"memory.high": "60000000"},
    }));
    assert_eq!(processes(&container.cgroup), ["bulkhead", "bulkhead-fsd", "bulkhead-vmm"]);
    for (name, value) in [
        ("memory.max", host_memory(128).as_str()),
        ("memory.low", "1048576"),
        ("cpu.max", "150000 100000"),
        ("cpu.weight", "59"),
        ("cpuset.cpus", "0"),
        ("pids.max", "512"),
    ] {
        assert_eq!(container.file(name), value, "{name}");
    }
    let usage: u64 = container.file("memory.current").parse().expect("a number");
    assert!(usage > 16 * MIB, "guest memory is charged to it: {usage}");
    // In the guest, the container's own limits.
    let mut figures = container.figures();
    assert_eq!(figures["memory"]["usage"]["limit"], json!(64 * MIB));
    assert_eq!(figures["pids"]["limit"], json!(50));
    assert!(figures["bulkhead"]["host"]["memory_bytes"].take().as_u64() > Some(16 * MIB));
    container.created.delete().expect(0);
    before.assert_none();
}

#[test]
fn container_without_cgroups_path_is_beside_its_caller() {
    let before = Leftovers::now();
    let id = unique_id("beside");
    let outcome =
        run(bulkhead().args(["run", "--bundle"]).arg(Bundle::script("exit 3").path()).arg(&id));
    outcome.expect(3);
    before.assert_none();
    let own = fs::read_to_string("/proc/self/cgroup").expect("cgroup");
    let own = Path::new(own.trim().strip_prefix("0::").expect("version 2")).to_owned();
    let bundle = Bundle::script("while :; do sleep 1; done");
    let mut child = bulkhead()
        .args(["run", "--detach", "--bundle"])
        .arg(bundle.path())
        .arg(&id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("bulkhead starts");
    assert!(child.wait().expect("ended").success());
    let beside = own.parent().unwrap_or(Path::new("/")).join(&id);
    let cgroup = Path::new(ROOT).join(beside.strip_prefix("/").expect("absolute"));
    assert_eq!(processes(&cgroup).len(), 3);
    run(bulkhead().args(["delete", "--force", &id])).expect(0);
    before.assert_none();
}

#[test]
fn cgroup_that_is_used_is_refused_and_left_as_it_was() {
    let cgroup = Path::new(ROOT).join("limits-used");
    fs::create_dir(&cgroup).expect("a cgroup");
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    fs::write(cgroup.join("cgroup.procs"), stranger.id().to_string()).expect("moved");
    let before = Leftovers::now();
    let mut bundle = Bundle::script("true");
    bundle.edit(|config| config["linux"]["cgroupsPath"] = json!("/limits-used"));
    let outcome =
        run(bulkhead().args(["run", "--bundle"]).arg(bundle.path()).arg(unique_id("used")));
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("container's cgroup is not empty: 1 process(es) found"));
    before.assert_none();
    assert!(stranger.try_wait().expect("wait").is_none());
    stranger.kill().expect("killed");
    stranger.wait().expect("ended");
    fs::remove_dir(&cgroup).expect("empty");
}

#[test]
fn killed_supervisor_leaves_nothing_after_forced_delete() {
    let before = Leftovers::now();
    let container = Container::start(json!({}));
    let pid = container.created.supervisor;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    assert!(container.cgroup.is_dir());
    container.created.delete().expect(0);
    before.assert_none();
}

#[test]
fn paused_container_takes_no_process_until_it_is_resumed() {
    let container = Container::create(json!({}));
    container.command(&["pause"], &[]).expect(0);
    assert_eq!(container.state()["status"], "paused");
    let refused = container.command(&["start"], &[]).expect(1);
    assert!(refused.stderr.contains("cannot start a container in the paused state"));
    container.command(&["resume"], &[]).expect(0);
    assert_eq!(container.state()["status"], "created");
    container.created.start();

    container.command(&["pause"], &[]).expect(0);
    let refused = container.exec(&["true"]).expect(255);
    assert!(refused.stderr.contains("cannot exec in a paused container"), "{}", refused.stderr);
    let refused = container.command(&["pause"], &[]).expect(1);
    assert!(refused.stderr.contains("container not running"), "{}", refused.stderr);
    let refused = container.command(&["delete"], &[]).expect(1);
    assert!(refused.stderr.contains("that is not stopped: paused"), "{}", refused.stderr);
    container.command(&["resume"], &[]).expect(0);
    let refused = container.command(&["resume"], &[]).expect(1);
    assert!(refused.stderr.contains("container not paused"), "{}", refused.stderr);
    container.exec(&["true"]).expect(0);

    container.command(&["pause"], &[]).expect(0);
    container.command(&["kill"], &["KILL"]).expect(0);
    assert_eq!(container.created.wait(), 137);
    let refused = container.command(&["pause"], &[]).expect(1);
    assert!(refused.stderr.contains("container not running"), "{}", refused.stderr);
}

#[test]
fn update_holds_inside_and_outside_or_changes_nothing() {
    let container = Container::start(json!({"memory": {"limit": 64 * MIB}}));
    let flags = [
        "update",
        "--memory",
        "96m",
        "--cpu-quota",
        "50000",
        "--cpu-share",
        "2048",
        "--pids-limit",
        "60",
    ];
    container.command(&flags, &[]).expect(0);
    assert_eq!(container.file("memory.max"), host_memory(160));
    assert_eq!(container.file("cpu.max"), "50000 100000");
    let figures = container.figures();
    assert_eq!(figures["memory"]["usage"]["limit"], json!(96 * MIB));
    assert_eq!(figures["pids"]["limit"], json!(60));
    assert_eq!(figures["bulkhead"]["mem_mib"], json!(160));
    // The new memory is there, once Linux has put it online.
    let begun = Instant::now();
    loop {
        let meminfo = container.exec(&["grep", "MemTotal", "/proc/meminfo"]).expect(0).text();
        let kib = meminfo.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
        if kib.expect("kB") > 128 << 10 {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{meminfo}");
    }

    let failed = container.command(&["update", "--memory", "80m", "--cpuset-cpus", "77"], &[]);
    assert!(failed.expect(1).stderr.contains("linux.resources.cpu.cpus"));
    let failed = container.command(&["update", "--memory", "1000g"], &[]).expect(1);
    assert!(failed.stderr.contains("this microVM was made for at most"), "{}", failed.stderr);
    assert_eq!(container.file("memory.max"), host_memory(160));
    assert_eq!(container.figures()["memory"]["usage"]["limit"], json!(96 * MIB));

    let resources = container.created.bundle.path().join("resources.json");
    fs::write(&resources, json!({"memory": {"limit": 48 * MIB}, "cpu": {"quota": -1}}).to_string())
        .expect("a file");
    let file = resources.display().to_string();
    container.command(&["update", "--resources", &file], &[]).expect(0);
    assert_eq!(container.file("cpu.max"), "max 100000");
    assert_eq!(container.figures()["memory"]["usage"]["limit"], json!(48 * MIB));
    let max: u64 = container.file("memory.max").parse().expect("a number");
    assert!(max < 160 * MIB, "{max}");
}

#[test]
fn container_that_exceeds_its_memory_is_killed_in_the_guest_and_told() {
    let container = Container::start(json!({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}}));
    let (mut child, mut events) = container.events();
    let eat = "dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null";
    container.exec(&["sh", "-c", eat]).expect(137);
    let oom = json!({"type": "oom", "id": container.created.id});
    assert_eq!(events.next(), Some(oom.clone()));
    // The sandbox lives, and with its container the events end.
    assert_eq!(container.state()["status"], "running");
    container.command(&["kill"], &["KILL"]).expect(0);
    // How many processes the kernel ends is its own affair.
    assert!(events.all(|event| event == oom));
    assert!(child.wait().expect("ended").success());
}

#[test]
fn sandbox_that_exceeds_its_memory_is_told_by_name() {
    let container = Container::start(json!({"memory": {"limit": 64 * MIB}}));
    // Less than the guest has touched: the kernel ends what it can.
    fs::write(container.cgroup.join("memory.max"), "16777216").expect("a limit");
    assert_eq!(container.created.wait(), 137);
    let log =
        fs::read_to_string(format!("/run/bulkhead/{}/log", container.created.id)).expect("the log");
    let words = "the sandbox ran out of memory (limit 16 MiB for the whole sandbox) \
                 (raise linux.resources.memory.limit)";
    assert!(log.contains(words), "{log}");
}

/// Names of figures that the kernel chooses, which is another one in the guest: lines of
/// `memory.stat`, and sizes of huge pages.
const OF_THE_KERNEL: [&str; 2] = ["data/memory/raw", "data/hugetlb"];

/// What `reference` has, `ours` has with a value of the same kind; numbers may be missing, since
/// runc leaves out some that are 0.
fn assert_shape(reference: &Value, ours: &Value, path: &str) {
    match (reference, ours) {
        (Value::Object(reference), Value::Object(ours)) => {
            for (name, value) in reference {
                let path = format!("{path}/{name}");
                match ours.get(name) {
                    Some(our) => assert_shape(value, our, &path),
                    None => {
                        let chosen = OF_THE_KERNEL.iter().any(|prefix| path.starts_with(prefix));
                        assert!(chosen || value.is_number(), "{path} is missing");
                    }
                }
            }
        }
        (Value::Array(_), Value::Array(_) | Value::Null) | (Value::Null, _) => {}
        _ => assert_eq!(
            std::mem::discriminant(reference),
            std::mem::discriminant(ours),
            "{path}: {reference} and {ours}"
        ),
    }
}

#[test]
fn figures_have_the_form_of_runcs() {
    let limits = json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 50}});
    let container = Container::start(limits.clone());
    let ours = container.figures();
    let mut bundle = Bundle::script("while :; do sleep 1; done");
    bundle.edit(|config| {
        config["linux"]["resources"]
            .as_object_mut()
            .expect("resources")
            .extend(limits.as_object().expect("an object").clone());
    });
    let id = unique_id("runc");
    let runc = |words: &[&str]| {
        let mut command = std::process::Command::new("runc");
        command.args(words).stdin(Stdio::null());
        command
    };
    let path = bundle.path().display().to_string();
    let mut started = runc(&["run", "--detach", "--bundle", &path, &id]);
    let started = started.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("runc");
    assert!(started.success());
    let output = runc(&["events", "--stats", &id]).output().expect("runc");
    let deleted = runc(&["delete", "--force", &id]).status().expect("runc");
    assert!(deleted.success());
    let event: Value = serde_json::from_slice(&output.stdout).expect("an event");
    assert_shape(&event["data"], &ours, "data");
    for field in ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt"] {
        assert!(event["data"].get(field).is_some() && ours.get(field).is_some(), "{field}");
    }
}

#[test]
fn stats_tell_what_every_process_costs() {
    let container = Container::start(json!({}));
    let outcome =
        run(bulkhead().args(["stats", "--format", "json", &container.created.id])).expect(0);
    let all: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    let usage = &all[0];
    let processes = usage["processes"].as_array().expect("a list");
    assert_eq!(processes.len(), 3);
    for process in processes {
        assert!(process["pss_bytes"].as_u64() > Some(0), "{process}");
    }
    let guest = &usage["guest"];
    let of = |name: &str| guest[name].as_u64().expect("a number");
    assert!(of("used_bytes") > 0 && of("used_bytes") < of("total_bytes"), "{guest}");
    let table = run(bulkhead().arg("stats")).expect(0).text();
    assert!(table.lines().any(|line| line.starts_with(&container.created.id)), "{table}");
}

/// `bulkhead` with the operator's file of this text, in a mount namespace of its own.
fn bulkhead_under(policy: &str) -> Command {
    let script = "mount -t tmpfs policy /etc && mkdir /etc/bulkhead \
                  && printf %s \"$0\" > /etc/bulkhead/config.toml && exec \"$@\"";
    let mut command = Command::new("unshare");
    let inner = bulkhead();
    command.args(["--mount", "sh", "-c", script, policy]);
    command.arg(inner.get_program()).args(inner.get_args());
    command
}

#[test]
fn operator_bounds_a_microvm_and_names_its_kernel_parameters() {
    let policy = "[limits]\nmemory_mib = 256\n[kernel_parameters]\n\
                  allow = [\"mitigations\"]\nalways = [\"page_alloc.shuffle=0\"]\n";
    let id = unique_id("limits");
    let mut bundle = Bundle::script("while :; do sleep 1; done");
    bundle.edit(|config| {
        config["annotations"]["io.bulkhead.kernel-parameters"] = json!("mitigations=off");
        config["linux"]["resources"]["memory"] = json!({"limit": 64 * MIB});
    });
    let quiet = |mut command: Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    let mut start = bulkhead_under(policy);
    start.args(["run", "--detach", "--bundle"]).arg(bundle.path()).arg(&id);
    assert!(quiet(start).expect("unshare starts").success());
    let line = run(bulkhead().args(["exec", &id, "cat", "/proc/cmdline"])).expect(0).text();
    assert!(line.contains(" page_alloc.shuffle=0 mitigations=off"), "{line}");
    run(bulkhead().args(["update", "--memory", "128m", &id])).expect(0);
    let refused = run(bulkhead().args(["update", "--memory", "1g", &id])).expect(1);
    assert!(refused.stderr.contains("made for at most 256"), "{}", refused.stderr);
    run(bulkhead().args(["delete", "--force", &id])).expect(0);

    let mut refused = bulkhead_under("[limits]\nmemory_mib = 256\n");
    let refused = run(refused.args(["run", "--bundle"]).arg(bundle.path()).arg(&id)).expect(1);
    let words = "\"mitigations\" is not allowed: this host's operator does not allow the kernel";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
}
