//! One sandbox from claim to exit code.
//!
//! Whatever fails, nothing is left: the machine's processes end when it is dropped, then the
//! claim removes the container's directory.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::LinuxResources;

use super::claim::{Claim, first_record, plan_cgroup};
use super::oom::OomShield;
use super::relay::{GuestStreams, Relay};
use super::terminal::Terminal;
use super::workload::{start_failure, workload};
use crate::agent_client::{AgentClient, AgentError, Call, ExitStatus, Progress, wait_reply};
use crate::block::GuestDisks;
use crate::cgroup::settings;
use crate::config;
use crate::control::ControlServer;
use crate::failure::Failure;
use crate::hooks::{Hooks, Runner};
use crate::network::{self, Devices, Network};
use crate::plan::{Fixed, SandboxPlan, plan};
use crate::request::{SandboxOptions, SandboxRequest};
use crate::sandbox::{End, Event, Machine, SandboxError, boot_limit, prepare};
use crate::signal::{Signals, ends_a_program};
use crate::state::{CONTROL_SOCKET, Status, Store, VSOCK_SOCKET};
use crate::uplink::Uplink;

/// A call to the agent may take this many times the start-up limit.
const CALL_FACTOR: u32 = 2;
/// A guest that is to be killed must answer within this part of a call's limit.
pub(super) const KILL_DIVISOR: u32 = 5;

/// A container whose sandbox has booted. Fields are dropped in this order: the machine ends
/// before the directory goes.
pub(super) struct Supervisor {
    pub machine: Machine,
    pub network: Network,
    _uplink: Option<Uplink>,
    pub terminal: Terminal,
    pub server: ControlServer,
    pub signals: Signals,
    pub agent_socket: PathBuf,
    pub call_limit: Duration,
    pub program: String,
    pub hooks: Hooks,
    /// The container's resources, which updates change.
    pub resources: LinuxResources,
    pub fixed: Fixed,
    /// Serial numbers of the disks, in the order of the machine's.
    pub disks: Vec<String>,
    /// State of the container before it was paused.
    pub resumes_to: Status,
    pub claim: Claim,
}

/// A created container's streams and the wait for its end.
pub(super) struct Workload {
    pub relay: Relay,
    pub wait: Call,
}

/// Why the supervisor stops to watch the workload.
pub(super) enum Outcome {
    /// The workload ended by itself.
    Exited(ExitStatus),
    /// It was killed with its machine.
    Killed,
    /// The machine ended under it.
    Lost(End),
    /// It could not be started.
    NotStarted(Failure),
}

/// Makes the sandbox, tells `report` the supervisor's pid once the container is created (and
/// started, if it is to be), and stays until the workload has ended. Gives its exit code.
pub(super) fn supervise(
    request: SandboxRequest,
    report: impl FnOnce(u32) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let signals = Signals::block()
        .map_err(|e| Failure::new("preparing the supervisor", e.to_string(), ""))?;
    let SandboxRequest { options, root } = request;
    let policy = config::policy()?;
    let plan = plan(&options.id, &options.bundle, options.spec.clone(), &policy)?;
    if options.debug {
        for note in &plan.notes {
            eprintln!("bulkhead: {} is dropped: {}", note.field, note.reason);
        }
    }
    let prepared = prepare(&plan, root, options.debug || plan.debug_console)?;
    let guest_disks = prepared.guest_disks().clone();
    let limit = boot_limit(&plan)?;
    let boot = |claim: &mut Claim, signals: &mut Signals, network| {
        let Claim { dir, record, cgroup, .. } = claim;
        let dir = &*dir;
        prepared.boot(dir, signals, network, cgroup.as_mut(), |children| {
            record.children.extend(children);
            Ok(dir.write_record(record)?)
        })
    };
    let mut supervisor = Supervisor::boot(&options, &plan, limit, signals, boot)?;
    let mut workload = supervisor.create(&plan, guest_disks)?;
    supervisor.limit_cpu_time(&plan)?;
    if options.start {
        supervisor.check_signals()?;
        supervisor.start().map_err(|f| supervisor.explain(f))?;
    }
    report(std::process::id())?;
    supervisor.claim.keep = options.keep;
    let outcome = supervisor.watch(&mut workload.wait)?;
    supervisor.end(outcome, workload)
}

impl Supervisor {
    /// Claims the id and boots the machine by `boot`.
    fn boot(
        options: &SandboxOptions,
        plan: &SandboxPlan,
        limit: Duration,
        mut signals: Signals,
        boot: impl FnOnce(&mut Claim, &mut Signals, Devices) -> Result<Machine, Failure>,
    ) -> Result<Self, Failure> {
        let call_limit = limit * CALL_FACTOR;
        let store = Store::new(&options.state_root);
        let cgroup = plan_cgroup(options, plan)?;
        let process = options.spec.process().clone().unwrap_or_default();
        let runner = Runner::open()?;
        let namespace = network::enter(&plan.network)?;
        let record = first_record(options, plan, namespace, cgroup.as_ref(), call_limit)?;
        let dir = store.claim(&record, &process)?;
        let mut claim =
            Claim { store, dir, record, runner, cgroup: None, shield: None, keep: false };
        let server = ControlServer::bind(&claim.dir.path(CONTROL_SOCKET))?;
        // Before the boot: a client that is not there should not cost one.
        let terminal = Terminal::open(plan.terminal, &options.console)?;
        let uplink = claim.connect(options.uplink.as_ref())?;
        claim.run_create_hooks(&plan.hooks, &mut signals)?;
        let mut network =
            Network::open(claim.record.supervisor, plan.vcpus, plan.net_limits.clone())?;
        let devices = network.connect()?;
        claim.make_cgroup(cgroup, plan)?;
        let machine = boot(&mut claim, &mut signals, devices).map_err(|f| claim.name_oom(f))?;
        claim.shield = Some(OomShield::up());
        Ok(Self {
            machine,
            network,
            _uplink: uplink,
            terminal,
            server,
            signals,
            agent_socket: claim.dir.path(VSOCK_SOCKET),
            call_limit,
            program: process.args().iter().flatten().next().cloned().unwrap_or_default(),
            hooks: plan.hooks.clone(),
            resources: plan.resources.clone(),
            fixed: plan.fixed,
            disks: plan.disks.iter().map(|disk| disk.serial.clone()).collect(),
            resumes_to: Status::Created,
            claim,
        })
    }

    pub fn agent(&self) -> AgentClient<'_> {
        AgentClient::new(&self.agent_socket, self.call_limit)
    }

    pub fn id(&self) -> &ContainerId {
        &self.claim.record.id
    }

    /// Creates the container in the guest, connects its streams, and begins to wait for its end.
    fn create(&mut self, plan: &SandboxPlan, disks: GuestDisks) -> Result<Workload, Failure> {
        let created = self.try_create(plan, disks);
        let workload = created.map_err(|f| self.explain(f))?;
        self.claim.set_status(Status::Created)?;
        Ok(workload)
    }

    /// Sets the quota of CPU time: the boot was not the tenant's work, and a small quota would
    /// make it last.
    fn limit_cpu_time(&self, plan: &SandboxPlan) -> Result<(), Failure> {
        match &self.claim.cgroup {
            Some(cgroup) => Ok(cgroup.apply(&settings::quota(&plan.host_resources)).map(drop)?),
            None => Ok(()),
        }
    }

    fn try_create(&mut self, plan: &SandboxPlan, disks: GuestDisks) -> Result<Workload, Failure> {
        let spec = serde_json::to_vec(&plan.guest_spec)
            .map_err(|e| Failure::new("planning the sandbox", e.to_string(), ""))?;
        let stderr = !self.terminal.is_some();
        self.introduce_network()?;
        let streams = GuestStreams::open(&self.agent_socket, stderr, self.call_limit)?;
        let agent = self.agent();
        let id = self.id();
        agent
            .create(id, spec, disks, streams.numbers)
            .map_err(|e| start_failure(e, &self.program))?;
        if let Some((rows, columns)) = self.terminal.size().or(plan.console_size) {
            agent.resize(workload(id), rows, columns)?;
        }
        let wait = agent.wait(workload(id))?;
        self.terminal.connect()?;
        let relay = Relay::start(self.terminal.streams()?, streams)?;
        Ok(Workload { relay, wait })
    }

    /// Ends the start if a signal has come that would end a program. The workload does not run
    /// yet, and the first process of a pid namespace ignores what it has no handler for.
    fn check_signals(&mut self) -> Result<(), Failure> {
        while let Some(signal) = self.signals.take() {
            if ends_a_program(signal) {
                return Err(SandboxError::Interrupted(signal).into());
            }
            self.forward(signal);
        }
        Ok(())
    }

    pub fn start(&mut self) -> Result<(), Failure> {
        if self.claim.record.status != Status::Created {
            let cause =
                format!("cannot start a container in the {} state", self.claim.record.status);
            return Err(Failure::new("starting the container", cause, ""));
        }
        self.complete_network()?;
        self.agent().start(self.id()).map_err(|e| start_failure(e, &self.program))?;
        self.claim.set_status(Status::Running)?;
        self.claim.run_poststart_hooks(&self.hooks)
    }

    /// Serves signals and clients until the workload or its machine has ended.
    fn watch(&mut self, wait: &mut Call) -> Result<Outcome, Failure> {
        loop {
            let due = self.follow_network();
            let (signals, server) = (self.signals.as_fd(), self.server.as_fd());
            let extra = [signals, server, wait.as_fd(), self.network.as_fd()];
            let outcome = match self.machine.next(&extra, due)? {
                Event::Extra(0) => self.serve_signal(),
                Event::Extra(1) => self.serve_client(),
                Event::Extra(2) => self.wait_outcome(wait)?,
                Event::Extra(_) => {
                    self.network.notice();
                    None
                }
                Event::Ended(end) => Some(Outcome::Lost(end)),
                // The VMM was asked nothing.
                Event::Reply(_) | Event::Ready | Event::Timeout => None,
            };
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
        }
    }

    fn wait_outcome(&mut self, wait: &mut Call) -> Result<Option<Outcome>, Failure> {
        match wait.advance() {
            Ok(Progress::Pending) => Ok(None),
            Ok(Progress::Done(payload)) => Ok(Some(Outcome::Exited(wait_reply(&payload)?))),
            // A broken connection is a machine that ends; a moment later it is known why.
            Err(AgentError::Closed(_)) => Ok(Some(Outcome::Lost(self.reason()?))),
            Err(e) => Err(e.into()),
        }
    }

    pub fn serve_signal(&mut self) -> Option<Outcome> {
        while let Some(signal) = self.signals.take() {
            self.forward(signal);
        }
        None
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
}
