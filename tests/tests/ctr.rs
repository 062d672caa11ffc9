//! containerd with its client `ctr` and runc's shim, which calls `bulkhead` in runc's place: what
//! they ask of a runtime, and nothing left behind.

use std::fs;

use bulkhead_tests::containerd::Containerd;
use bulkhead_tests::terminal::{SIZES, resized};
use bulkhead_tests::{Leftovers, Outcome, read_until, run, wait_until};
use serde_json::Value;

fn shell(script: &str) -> [&str; 3] {
    ["/bin/sh", "-c", script]
}

#[test]
fn run_passes_streams_code_terminal_and_failure() {
    let containerd = Containerd::start();
    let before = Leftovers::now();
    let data = tempfile::tempdir().expect("temp dir");
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", data.path().display());
    let flags = ["--rm", "--env", "WORD=said", "--cwd", "/tmp", "--seccomp", "--read-only"];
    let script = "echo $WORD $(pwd); echo error >&2; echo file >/mnt/file; \
                  grep Seccomp: /proc/self/status; touch /no || exit 7";
    let flags = [&flags[..], &["--mount", &mount]].concat();
    let outcome = run(&mut containerd.run(&flags, "first", &shell(script))).expect(7);
    assert_eq!(outcome.text(), "said /tmp\nSeccomp:\t2");
    assert!(outcome.stderr.contains("error\n"), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(data.path().join("file")).expect("the file"), "file\n");

    resized(containerd.run(&["--rm", "--tty"], "terminal", &shell(SIZES)));

    let missing = run(&mut containerd.run(&["--rm"], "missing", &["/nowhere"])).expect(1);
    assert!(missing.stderr.contains("/nowhere: no such file or directory"), "{}", missing.stderr);
    before.assert_none();
    containerd.end_empty();
}

/// A task that runs, and what `ctr task` says of it.
struct Task<'a>(&'a Containerd);

impl Task<'_> {
    const ID: &'static str = "task";

    /// `ctr task WORDS... ID REST...`.
    fn ctr(&self, words: &[&str], rest: &[&str]) -> Outcome {
        run(&mut self.0.ctr(&[&["task"], words, &[Self::ID], rest].concat()))
    }

    #[track_caller]
    fn assert_status(&self, status: &str) {
        assert_eq!(self.0.status(Self::ID).as_deref(), Some(status), "{}", self.0.log());
    }
}

#[test]
fn task_is_entered_paused_measured_and_ended() {
    let containerd = Containerd::start();
    let before = Leftovers::now();
    let log = containerd.path("task.log");
    let uri = format!("file://{}", log.display());
    let script = "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.1; done";
    let flags = ["--detach", "--log-uri", &uri];
    run(&mut containerd.run(&flags, Task::ID, &shell(script))).expect(0);
    let task = Task(&containerd);
    read_until(&log, |text| text.contains("up"));

    let words = ["exec", "--exec-id", "one"];
    let outcome = task.ctr(&words, &shell("echo in; echo error >&2; exit 3")).expect(3);
    assert_eq!((outcome.text().as_str(), outcome.stderr.trim()), ("in", "error"));
    let missing = task.ctr(&words, &["/nowhere"]).expect(1);
    assert!(missing.stderr.contains("/nowhere: no such file or directory"), "{}", missing.stderr);
    let words = ["task", "exec", "--tty", "--exec-id", "two", Task::ID];
    resized(containerd.ctr(&[&words[..], &shell(SIZES)].concat()));

    task.ctr(&["pause"], &[]).expect(0);
    task.assert_status("PAUSED");
    task.ctr(&["resume"], &[]).expect(0);
    task.assert_status("RUNNING");

    let metrics = task.ctr(&["metrics", "--format", "json"], &[]).expect(0);
    let metrics: Value = serde_json::from_slice(&metrics.stdout).expect("metrics are JSON");
    for (controller, figure) in [("memory", "usage"), ("cpu", "usage_usec"), ("pids", "current")] {
        let found = metrics[controller][figure].as_u64();
        assert!(found.is_some_and(|found| found > 0), "{controller} {figure}: {metrics}");
    }
    let processes = task.ctr(&["ps"], &[]).expect(0).text();
    assert!(processes.lines().count() > 1, "{processes}");

    let refused = task.ctr(&["checkpoint"], &[]).expect(1);
    assert!(refused.stderr.contains("checkpoint"), "{}", refused.stderr);
    task.assert_status("RUNNING");

    task.ctr(&["kill", "--signal", "TERM"], &[]).expect(0);
    wait_until("the end of the task", || containerd.status(Task::ID).as_deref() == Some("STOPPED"));
    assert!(read_until(&log, |text| text.contains("caught")).starts_with("up"));
    // `ctr` tells the task's code, and succeeds.
    let deleted = task.ctr(&["delete"], &[]).expect(0);
    assert!(deleted.stderr.contains("exit code 9"), "{}", deleted.stderr);
    run(&mut containerd.ctr(&["container", "rm", Task::ID])).expect(0);
    before.assert_none();
    containerd.end_empty();
}
