//! One sandbox from claim to exit code.
//!
//! Whatever fails, nothing is left: the machine's processes end when it is dropped, then the
//! claim removes the container's directory.

use std::os::fd::AsFd;
use std::time::Duration;

use oci_spec::runtime::LinuxResources;

use super::claim::{Claim, first_record, plan_cgroup};
use super::container::{Container, program_of};
use super::joined;
use super::leader::Leader;
use super::members::Member;
use super::membership;
use super::oom::OomShield;
use super::relay::Relay;
use super::terminal::Terminal;
use crate::agent_client::{AgentError, Call, ExitStatus, Progress, wait_reply};
use crate::block::GuestDisks;
use crate::cgroup::{Planned, settings};
use crate::config;
use crate::control::ControlServer;
use crate::failure::Failure;
use crate::hooks::Runner;
use crate::network::{self, Devices, Network};
use crate::plan::{Fixed, SandboxPlan, plan};
use crate::preserved::Preserved;
use crate::request::{SandboxOptions, SandboxRequest};
use crate::sandbox::{End, Event, Machine, boot_limit, prepare};
use crate::signal::Signals;
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
    /// The guest can ask for the names that are served in the network namespace.
    pub carries_names: bool,
    _uplink: Option<Uplink>,
    /// The container's resources, which updates change.
    pub resources: LinuxResources,
    pub fixed: Fixed,
    /// Serial numbers of the disks, in the order of the machine's.
    pub disks: Vec<String>,
    /// The other containers in the machine.
    pub members: Vec<Member>,
    pub container: Container,
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
    leader: &Leader,
    report: impl FnOnce(u32) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let signals = leader.block_signals()?;
    let policy = config::policy()?;
    if let Some(place) = membership::find(&request.options, &policy)? {
        return joined::supervise(request, place, &policy, leader, signals, report);
    }
    let SandboxRequest { options, root, preserved } = request;
    let plan = plan(&options.id, &options.bundle, options.spec.clone(), &policy)?;
    tell_notes(&options, &plan);
    let mut prepared = prepare(&plan, root, options.debug || plan.debug_console)?;
    let guest_disks = prepared.guest_disks().clone();
    let view = prepared.take_view();
    let limit = boot_limit(&plan)?;
    let enter = || leader.enter(view);
    let boot = |claim: &mut Claim, signals: &mut Signals, network| {
        let Claim { dir, record, cgroup, .. } = claim;
        let dir = &*dir;
        prepared.boot(dir, signals, network, cgroup.as_mut(), |children| {
            record.children.extend(children);
            Ok(dir.write_record(record)?)
        })
    };
    let cgroup = plan_cgroup(&options, &plan, &policy)?;
    let mut supervisor = Supervisor::boot(&options, &plan, cgroup, limit, signals, enter, boot)?;
    let mut workload = supervisor.create(&plan, guest_disks, preserved)?;
    supervisor.limit_cpu_time(&plan)?;
    if options.start {
        supervisor.container.check_signals()?;
        supervisor.start().map_err(|f| supervisor.explain(f))?;
    }
    report(std::process::id())?;
    supervisor.container.claim.keep = options.keep;
    let outcome = supervisor.watch(&mut workload.wait)?;
    supervisor.end(outcome, workload)
}

/// Tells what of the specification is dropped, if somebody wants to know.
pub(super) fn tell_notes(options: &SandboxOptions, plan: &SandboxPlan) {
    for note in plan.notes.iter().filter(|_| options.debug) {
        eprintln!("bulkhead: {} is dropped: {}", note.field, note.reason);
    }
}

impl Supervisor {
    /// Claims the id, lets the first thread `enter` the container's namespaces, and boots the
    /// machine by `boot`.
    fn boot(
        options: &SandboxOptions,
        plan: &SandboxPlan,
        cgroup: Option<Planned>,
        limit: Duration,
        mut signals: Signals,
        enter: impl FnOnce() -> Result<(), Failure>,
        boot: impl FnOnce(&mut Claim, &mut Signals, Devices) -> Result<Machine, Failure>,
    ) -> Result<Self, Failure> {
        let call_limit = limit * CALL_FACTOR;
        let store = Store::new(&options.state_root);
        let process = options.spec.process().clone().unwrap_or_default();
        let runner = Runner::open()?;
        let namespace = network::enter(&plan.network)?;
        let record = first_record(options, plan, namespace, cgroup.as_ref(), call_limit)?;
        let dir = store.claim(&record, &process)?;
        let mut claim =
            Claim { store, dir, record, runner, cgroup: None, shield: None, keep: false };
        enter()?;
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
            carries_names: false,
            _uplink: uplink,
            resources: plan.resources.clone(),
            fixed: plan.fixed,
            disks: plan.disks.iter().map(|disk| disk.serial.clone()).collect(),
            members: vec![],
            container: Container {
                terminal,
                server,
                signals,
                agent_socket: claim.dir.path(VSOCK_SOCKET),
                call_limit,
                program: program_of(&process),
                hooks: plan.hooks.clone(),
                resumes_to: Status::Created,
                claim,
            },
        })
    }

    /// Creates the container in the guest, connects its streams, and begins to wait for its end.
    fn create(
        &mut self,
        plan: &SandboxPlan,
        disks: GuestDisks,
        preserved: Vec<Preserved>,
    ) -> Result<Workload, Failure> {
        let created = self.try_create(plan, disks, preserved);
        let workload = created.map_err(|f| self.explain(f))?;
        self.container.claim.set_status(Status::Created)?;
        Ok(workload)
    }

    /// Sets the quota of CPU time: the boot was not the tenant's work, and a small quota would
    /// make it last.
    fn limit_cpu_time(&self, plan: &SandboxPlan) -> Result<(), Failure> {
        match &self.container.claim.cgroup {
            Some(cgroup) => Ok(cgroup.apply(&settings::quota(&plan.host_resources)).map(drop)?),
            None => Ok(()),
        }
    }

    fn try_create(
        &mut self,
        plan: &SandboxPlan,
        disks: GuestDisks,
        preserved: Vec<Preserved>,
    ) -> Result<Workload, Failure> {
        self.introduce_network()?;
        self.container.create(plan, disks, &[], preserved)
    }

    pub fn start(&mut self) -> Result<(), Failure> {
        self.container.check_created()?;
        self.complete_network()?;
        self.container.start()
    }

    /// Serves signals and clients until the workload or its machine has ended.
    fn watch(&mut self, wait: &mut Call) -> Result<Outcome, Failure> {
        loop {
            let due = self.follow_network();
            let (signals, server) = (self.container.signals.as_fd(), self.container.server.as_fd());
            let mut extra = vec![signals, server, wait.as_fd(), self.network.as_fd()];
            let own = extra.len();
            extra.extend(self.members.iter().map(AsFd::as_fd));
            let outcome = match self.machine.next(&extra, due)? {
                Event::Extra(0) => {
                    self.container.serve_signal();
                    None
                }
                Event::Extra(1) => self.serve_client(),
                Event::Extra(2) => self.wait_outcome(wait)?,
                Event::Extra(n) if n >= own => {
                    self.release(n - own);
                    None
                }
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
}
