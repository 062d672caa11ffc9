//! Daemons of engines: asked until they answer, and ended before their files go.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a daemon may take to answer and to end; an emulated machine is slow.
const LIMIT: Duration = Duration::from_secs(240);
/// Between two questions.
const STEP: Duration = Duration::from_millis(500);

/// A daemon that ends when this is dropped.
pub struct Daemon {
    process: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, which writes to `log`, and waits until it is `ready`.
    #[track_caller]
    pub fn start(command: &mut Command, log: &Path, ready: impl Fn() -> bool) -> Self {
        let file = File::create(log).expect("the log");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("the log")).stderr(file);
        let process = command.spawn().expect("the daemon is installed");
        let mut daemon = Self { process, log: log.to_owned() };
        let deadline = Instant::now() + LIMIT;
        while !ready() {
            let ended = daemon.process.try_wait().expect("waiting for the daemon");
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}\n{}", daemon.log());
            std::thread::sleep(STEP);
        }
        daemon
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it, unless it has ended.
    pub fn end(&mut self) {
        let deadline = Instant::now() + LIMIT;
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw)
            && self.process.try_wait().is_ok_and(|ended| ended.is_none())
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        while self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() > deadline {
                let _ = self.process.kill();
            }
            std::thread::sleep(STEP);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}
