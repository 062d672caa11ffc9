//! One container of a microVM that serves, as its supervisor has it: its streams, its state, and
//! what is asked of it alone.

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::Process;

use super::claim::Claim;
use super::lifecycle::Workload;
use super::relay::{GuestStreams, Relay};
use super::terminal::Terminal;
use super::workload::{start_failure, workload};
use crate::agent_client::{AgentClient, AgentError, GuestSpec};
use crate::block::GuestDisks;
use crate::control::{ControlAnswer, ControlReply, ControlServer};
use crate::failure::Failure;
use crate::hooks::{Hooks, state_for_guest};
use crate::plan::{SandboxPlan, Shared};
use crate::preserved::Preserved;
use crate::sandbox::SandboxError;
use crate::signal::{Signals, ends_a_program};
use crate::state::Status;

/// A container in a microVM. Its directory goes last.
pub(super) struct Container {
    pub terminal: Terminal,
    pub server: ControlServer,
    pub signals: Signals,
    pub agent_socket: PathBuf,
    pub call_limit: Duration,
    pub program: String,
    pub hooks: Hooks,
    /// State of the container before it was paused.
    pub resumes_to: Status,
    pub claim: Claim,
}

/// The program that a process runs, for messages.
pub(super) fn program_of(process: &Process) -> String {
    process.args().iter().flatten().next().cloned().unwrap_or_default()
}

impl Container {
    pub fn agent(&self) -> AgentClient<'_> {
        AgentClient::new(&self.agent_socket, self.call_limit)
    }

    pub fn id(&self) -> &ContainerId {
        &self.claim.record.id
    }

    /// Creates it in the guest, connects its streams, and begins to wait for its end.
    pub fn create(
        &mut self,
        plan: &SandboxPlan,
        disks: GuestDisks,
        shared: &[Shared],
        preserved: Vec<Preserved>,
    ) -> Result<Workload, Failure> {
        let spec = self.guest_spec(plan);
        let spec = spec.map_err(|e| Failure::new("planning the sandbox", e.to_string(), ""))?;
        let stderr = !self.terminal.is_some();
        let streams = GuestStreams::open(&self.agent_socket, stderr, &preserved, self.call_limit)?;
        let agent = self.agent();
        let id = self.id();
        agent
            .create(id, spec, disks, shared, &streams.numbers)
            .map_err(|e| start_failure(e, &self.program))?;
        if let Some((rows, columns)) = self.terminal.size().or(plan.console_size) {
            agent.resize(workload(id), rows, columns)?;
        }
        let wait = agent.wait(workload(id))?;
        self.terminal.connect()?;
        let relay = Relay::start(self.terminal.streams()?, preserved, streams)?;
        Ok(Workload { relay, wait })
    }

    fn guest_spec(&self, plan: &SandboxPlan) -> serde_json::Result<GuestSpec> {
        let hook_state_json = match plan.guest_spec.hooks() {
            Some(_) => state_for_guest(&self.claim.record.for_hooks(None))?,
            None => vec![],
        };
        Ok(GuestSpec { json: serde_json::to_vec(&plan.guest_spec)?, hook_state_json })
    }

    /// Refuses what only a created container can do.
    pub fn check_created(&self) -> Result<(), Failure> {
        if self.claim.record.status == Status::Created {
            return Ok(());
        }
        let cause = format!("cannot start a container in the {} state", self.claim.record.status);
        Err(Failure::new("starting the container", cause, ""))
    }

    /// Lets the created container run.
    pub fn start(&mut self) -> Result<(), Failure> {
        self.agent().start(self.id()).map_err(|e| start_failure(e, &self.program))?;
        self.claim.set_status(Status::Running)?;
        self.claim.run_poststart_hooks(&self.hooks)
    }

    /// Ends the start if a signal has come that would end a program. The workload does not run
    /// yet, and the first process of a pid namespace ignores what it has no handler for.
    pub fn check_signals(&mut self) -> Result<(), Failure> {
        while let Some(signal) = self.signals.take() {
            if ends_a_program(signal) {
                return Err(SandboxError::Interrupted(signal).into());
            }
            self.forward(signal);
        }
        Ok(())
    }

    /// Passes on the signals that have come.
    pub fn serve_signal(&mut self) {
        while let Some(signal) = self.signals.take() {
            self.forward(signal);
        }
    }

    fn forward(&self, signal: u32) {
        if signal == libc::SIGWINCH as u32 {
            return self.resize();
        }
        // Whoever sent it gets no answer; a workload that has just ended is no error.
        let _ = self.agent().signal(workload(self.id()), signal, false);
    }

    fn resize(&self) {
        if let Some((rows, columns)) = self.terminal.size() {
            // The size of a terminal that has just gone does not matter.
            let _ = self.agent().resize(workload(self.id()), rows, columns);
        }
    }

    /// Freezes the container, not its guest: the agent goes on to answer. runc's words.
    pub fn serve_pause(&mut self) -> ControlReply {
        let before = self.claim.record.status;
        if !matches!(before, Status::Created | Status::Running) {
            return Err(Failure::new("pausing the container", "container not running", ""));
        }
        self.agent().pause(self.id())?;
        if let Err(failure) = self.claim.set_status(Status::Paused) {
            self.claim.record.status = before;
            // A container that is recorded as running must run.
            let _ = self.agent().unpause(self.id());
            return Err(failure);
        }
        self.resumes_to = before;
        Ok(ControlAnswer::Done)
    }

    pub fn serve_resume(&mut self) -> ControlReply {
        if self.claim.record.status != Status::Paused {
            return Err(Failure::new("resuming the container", "container not paused", ""));
        }
        self.agent().unpause(self.id())?;
        self.claim.set_status(self.resumes_to)?;
        Ok(ControlAnswer::Done)
    }
}

/// What a signal that the agent did not send is called; runc's words for a container that has
/// ended.
pub(super) fn kill_failure(error: &AgentError) -> Failure {
    let cause = match error.refused_as() {
        Some(_) => format!("container not running: {error}"),
        None => crate::failure::chain(error),
    };
    Failure::new("sending the signal", cause, "")
}
