//! Another process in a running container: planned as runc plans it, run by the agent, relayed
//! by a process of the host that ends with its exit code.

mod process;
mod session;

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::announce::{Announcement, EXEC};
use crate::failure::Failure;
use crate::plan::plan_process;
use crate::preserved::{self, Preserved};
use crate::request::ConsoleMode;
use crate::state::{Status, Store, View};
use crate::supervisor::{check_terminal, serve, start};

pub use process::{ProcessChanges, UserChange};

/// Hidden command of a detached exec's process.
pub const EXEC_PROCESS: &str = "exec-process";

/// One process to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecOptions {
    /// Directory of the containers' state.
    pub state_root: PathBuf,
    /// The container.
    pub id: ContainerId,
    /// What to run.
    pub process: Process,
    /// The part of the container's cgroup to run in, a path below it; where its init is without.
    pub cgroup: Option<String>,
    /// Where the terminal is, if the process has one.
    pub console: ConsoleMode,
    /// Where the process of the host is told.
    pub announcement: Announcement,
}

impl ExecOptions {
    fn plan(self, detached: bool) -> Result<Self, Failure> {
        let process = plan_process(self.process)?;
        check_terminal(process.terminal().unwrap_or(false), detached, &self.console)?;
        Ok(Self { process, ..self })
    }

    fn announce(&self, pid: u32) -> Result<(), Failure> {
        self.announcement.make(pid, EXEC)
    }
}

/// Runs a process and gives its exit code.
pub fn exec_attached(options: ExecOptions, preserved: Vec<Preserved>) -> Result<u8, Failure> {
    let options = options.plan(false)?;
    session::run(&options, preserved, &|pid| options.announce(pid))
}

/// Runs a process and returns as soon as it runs, with the pid of a process of the host that
/// will end with its exit code.
pub fn exec_detached(options: ExecOptions, preserved: &[Preserved]) -> Result<u32, Failure> {
    let options = options.plan(true)?;
    start(&[EXEC_PROCESS, options.id.as_str()], &options, &preserved::borrowed(preserved))
}

/// The process that [`exec_detached`] starts.
pub fn serve_detached(channel: i32) -> Result<u8, Failure> {
    serve(channel, |options: ExecOptions, fds, report| {
        let preserved = preserved::sent(fds)?;
        session::run(&options, preserved, &|pid| options.announce(pid).and_then(|()| report(pid)))
    })
}

/// As [`require_live`], and that the container takes another process; runc's words.
pub fn require_exec(view: &View) -> Result<Duration, Failure> {
    match view.status() {
        Status::Paused => {
            let cause = "cannot exec in a paused container";
            let fix = "`bulkhead resume` lets it run; a process cannot join while it is frozen";
            Err(Failure::new("looking up the container", cause, fix))
        }
        _ => require_live(view, "exec in"),
    }
}

/// How long a call to the agent of `view` may take, or that it cannot be called.
pub fn require_live(view: &View, doing: &str) -> Result<Duration, Failure> {
    match view.status() {
        Status::Created | Status::Running | Status::Paused => {
            Ok(Duration::from_secs(view.record.call_limit_s))
        }
        status => {
            let cause = format!("cannot {doing} a container in the {status} state");
            // runc's words for the common case.
            let cause = cause.replace("a container in the stopped state", "a stopped container");
            Err(Failure::new("looking up the container", cause, "`bulkhead list` shows states"))
        }
    }
}

fn view(options: &ExecOptions) -> Result<View, Failure> {
    Ok(Store::new(&options.state_root).view(&options.id)?)
}
