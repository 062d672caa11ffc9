//! Hooks as real scripts: what they are given, how they fail, and that none outlives its timeout.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

struct Rig {
    dir: TempDir,
    annotations: BTreeMap<String, String>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        Self { dir, annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn container<'a>(&'a self, rootfs: &'a Path) -> Container<'a> {
        Container {
            oci_version: "1.2.0",
            id: "c",
            pid: Some(7),
            bundle: self.dir.path(),
            rootfs,
            annotations: &self.annotations,
        }
    }

    fn hook(&self, script: &str) -> Hook {
        let path = self.path("hook");
        crate::script::write(&path, script);
        let (args, env) = (vec!["name".to_owned()], vec!["A=1".to_owned(), "B=x=y".to_owned()]);
        Hook { path, args, env, timeout: None }
    }

    fn run(&self, moment: Moment, hook: &Hook) -> Result<(), HookError> {
        let rootfs = self.path("rootfs");
        let container = self.container(&rootfs);
        Runner::open().unwrap().run(moment, 3, hook, &container, None)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

#[test]
fn hook_reads_the_state_of_its_moment() {
    let rig = Rig::new();
    let hook = rig.hook(&format!("/bin/cat > {}", rig.path("out").display()));
    for (moment, status) in [
        (Moment::Prestart, "creating"),
        (Moment::CreateRuntime, "creating"),
        (Moment::CreateContainer, "creating"),
        (Moment::Poststart, "running"),
        (Moment::Poststop, "stopped"),
    ] {
        rig.run(moment, &hook).unwrap();
        let state: Value = serde_json::from_str(&rig.read("out")).unwrap();
        let expected = json!({
            "ociVersion": "1.2.0", "id": "c", "status": status, "pid": 7,
            "bundle": rig.dir.path(), "annotations": {"a": "b"},
        });
        assert_eq!(state, expected);
    }
}

#[test]
fn hook_has_exactly_its_arguments_and_environment_and_a_group_of_its_own() {
    let rig = Rig::new();
    let out = rig.path("out").display().to_string();
    let hook = rig.hook(&format!(
        "set > {out}; tr '\\0' '|' < /proc/$$/cmdline >> {out}
         [ $(cut -d ' ' -f 5 /proc/$$/stat) = $$ ]"
    ));
    let hook = Hook { args: vec!["name".into(), "x y".into(), String::new()], ..hook };
    let path = "PATH=/usr/bin:/bin".to_owned();
    let hook = Hook { env: [&hook.env[..], &[path]].concat(), ..hook };
    rig.run(Moment::Poststart, &hook).unwrap();
    let variables = rig.read("out");
    assert!(variables.contains("A='1'\nB='x=y'"), "{variables}");
    assert!(!variables.contains("CARGO") && !variables.contains("HOME="), "{variables}");
    // The kernel puts the script in the place of the first argument.
    let script = format!("/bin/sh|{}|x y||", hook.path.display());
    assert!(variables.ends_with(&script), "{variables}");
}

#[test]
fn hook_starts_in_the_bundle_and_create_container_in_the_root() {
    let rig = Rig::new();
    let hook = rig.hook(&format!("pwd > {}", rig.path("out").display()));
    rig.run(Moment::CreateRuntime, &hook).unwrap();
    assert_eq!(Path::new(rig.read("out").trim()), rig.dir.path());
    rig.run(Moment::CreateContainer, &hook).unwrap();
    assert_eq!(Path::new(rig.read("out").trim()), rig.path("rootfs"));
}

#[test]
fn failure_names_hook_code_and_what_it_said() {
    let rig = Rig::new();
    let hook = rig.hook("echo out; echo err >&2; exit 3");
    let error = rig.run(Moment::Prestart, &hook).unwrap_err().to_string();
    let path = hook.path.display();
    assert_eq!(error, format!("hooks.prestart[3] ({path}) exited with code 3: out err"));
    let error = rig.run(Moment::Prestart, &rig.hook("kill -9 $$")).unwrap_err().to_string();
    assert!(error.ends_with("was killed by signal 9"), "{error}");
    let absent = Hook { path: rig.path("absent"), ..hook };
    let error = rig.run(Moment::Prestart, &absent).unwrap_err();
    assert!(matches!(error, HookError::Start { .. }), "{error:?}");
}

#[test]
fn hook_that_prints_without_end_is_stopped_by_its_timeout() {
    let rig = Rig::new();
    let hook = Hook { timeout: Some(Duration::from_millis(200)), ..rig.hook("yes") };
    let hook = Hook { env: vec!["PATH=/usr/bin:/bin".into()], ..hook };
    let error = rig.run(Moment::Poststart, &hook).unwrap_err();
    assert!(matches!(error, HookError::Timeout { .. }), "{error:?}");
}

#[test]
fn timeout_ends_the_whole_group() {
    let rig = Rig::new();
    let pid = rig.path("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    let mut limit = Duration::from_millis(500);
    // On a busy machine it may take longer until there is a child.
    let child: i32 = loop {
        let hook = Hook { timeout: Some(limit), ..rig.hook(&script) };
        let hook = Hook { env: vec!["PATH=/usr/bin:/bin".into()], ..hook };
        let error = rig.run(Moment::CreateRuntime, &hook).unwrap_err();
        assert!(matches!(error, HookError::Timeout { .. }), "{error:?}");
        match fs::read_to_string(&pid).map(|text| text.trim().parse()) {
            Ok(Ok(child)) => break child,
            other => assert!(limit < Duration::from_secs(120), "{other:?}"),
        }
        limit *= 2;
    };
    // Whoever reaps it does so later: a zombie has ended, too.
    let child = rustix::process::Pid::from_raw(child).unwrap();
    if let Ok(pidfd) = rustix::process::pidfd_open(child, rustix::process::PidfdFlags::empty()) {
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
    }
}

#[test]
fn what_a_hook_leaves_running_is_neither_waited_for_nor_killed() {
    let rig = Rig::new();
    let pid = rig.path("pid");
    let script = format!("sleep 1000 & echo $! > {}", pid.display());
    let hook = Hook { env: vec!["PATH=/usr/bin:/bin".into()], ..rig.hook(&script) };
    rig.run(Moment::Poststart, &hook).unwrap();
    let child: i32 = rig.read("pid").trim().parse().unwrap();
    let child = rustix::process::Pid::from_raw(child).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn poststop_hooks_run_on_behind_a_failure_each_crossed_off_before() {
    let rig = Rig::new();
    let out = rig.path("out");
    let script = format!("echo \"$1\" >> {}; exit \"$1\"", out.display());
    let hooks: Vec<Hook> = ["0", "1", "2"]
        .map(|code| Hook { args: vec!["x".into(), code.into()], ..rig.hook(&script) })
        .into();
    let rootfs = rig.path("rootfs");
    let mut left = vec![];
    run_poststop(None, &hooks, &rig.container(&rootfs), |rest| {
        left.push(rest.len());
        Ok::<(), ()>(())
    })
    .unwrap();
    assert_eq!(rig.read("out"), "0\n1\n2\n");
    assert_eq!(left, [2, 1, 0]);
}

#[test]
fn hooks_of_the_runtime_leave_the_namespace_that_their_caller_has_entered() {
    if !crate::privilege::is_root() {
        return;
    }
    let rig = Rig::new();
    let out = rig.path("out");
    let hook = rig.hook(&format!("/bin/readlink /proc/self/ns/net > {}", out.display()));
    let own = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = own();
    let runner = Runner::open().unwrap();
    // SAFETY: only this thread's network namespace changes; no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    let entered = own();
    assert_ne!(before, entered);
    let rootfs = rig.path("rootfs");
    let container = rig.container(&rootfs);
    for (moment, expected) in [
        (Moment::Prestart, &before),
        (Moment::CreateRuntime, &before),
        (Moment::CreateContainer, &entered),
        (Moment::Poststart, &before),
        (Moment::Poststop, &before),
    ] {
        runner.run(moment, 0, &hook, &container, None).unwrap();
        assert_eq!(Path::new(rig.read("out").trim()), expected, "{moment}");
    }
}
