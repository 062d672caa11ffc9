//! A container that `bulkhead create` made in the background.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, WaitOptions, WaitStatus, getpid, set_child_subreaper, waitpid};

use crate::bundle::Bundle;
use crate::process::{Outcome, bulkhead, log_tail, read_until, run};

/// A created container, deleted by force when dropped.
pub struct Created {
    /// Its id.
    pub id: String,
    /// What it was made of; what it prints goes to `stdout` and `stderr` in its directory.
    pub bundle: Bundle,
    /// Its supervisor, a child of this process.
    pub supervisor: Pid,
}

impl Created {
    /// Creates the container `id`.
    #[track_caller]
    pub fn new(id: String, bundle: Bundle) -> Self {
        Self::with_flags(id, bundle, &[])
    }

    /// The same with flags in front of the command.
    #[track_caller]
    pub fn with_flags(id: String, bundle: Bundle, flags: &[&str]) -> Self {
        // Orphans of `create` become children of this process, as with conmon or a shim.
        set_child_subreaper(Some(getpid())).expect("subreaper");
        let path = |name: &str| bundle.path().join(name);
        let file = |name: &str| File::create(path(name)).expect("file");
        // The supervisor inherits the standard streams: a pipe would not reach its end.
        let status = bulkhead()
            .args(flags)
            .args(["create", "--bundle"])
            .arg(bundle.path())
            .arg("--pid-file")
            .arg(path("pid"))
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .status()
            .expect("bulkhead starts");
        let said = fs::read_to_string(path("stderr")).expect("stderr");
        assert!(status.success(), "create: {status}: {said}\n{}", log_tail());
        let pid = fs::read_to_string(path("pid")).expect("pid file");
        let supervisor = pid.parse().ok().and_then(Pid::from_raw).expect("a pid");
        Self { id, bundle, supervisor }
    }

    /// `bulkhead WORDS... ID REST...`.
    pub fn command(&self, words: &[&str], rest: &[&str]) -> Outcome {
        run(bulkhead().args(words).arg(&self.id).args(rest))
    }

    /// Waits until the container has printed `text`; everything that it has printed by then.
    #[track_caller]
    pub fn prints(&self, text: &str) -> String {
        read_until(&self.bundle.path().join("stdout"), |printed| printed.contains(text))
    }

    /// Lets it run its program.
    #[track_caller]
    pub fn start(&self) {
        self.command(&["start"], &[]).expect(0);
    }

    /// Waits for the supervisor, unless that was done before: how it ended.
    pub fn ended(&self) -> Option<WaitStatus> {
        let ended = waitpid(Some(self.supervisor), WaitOptions::empty());
        ended.ok().flatten().map(|(_, status)| status)
    }

    /// Waits for the supervisor, which ends with the workload's status.
    #[track_caller]
    pub fn wait(&self) -> i32 {
        let status = self.ended().expect("the supervisor is a child of its subreaper");
        status.exit_status().unwrap_or_else(|| panic!("the supervisor ended with {status:?}"))
    }

    /// Removes all of it, and ends the supervisor's zombie.
    pub fn delete(&self) -> Outcome {
        let outcome = self.command(&["delete", "--force"], &[]);
        self.ended();
        outcome
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
            let log = read(&Path::new("/run/bulkhead").join(&self.id).join("log"));
            let [out, err] = ["stdout", "stderr"].map(|name| read(&self.bundle.path().join(name)));
            eprintln!("container {}: log: {log}\nstdout: {out}\nstderr: {err}", self.id);
        }
        let _ = self.delete();
    }
}
