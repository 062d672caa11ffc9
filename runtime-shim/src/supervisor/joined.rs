//! The supervisor of a container in the microVM of another one. It makes the container's
//! surroundings on the host, joins the sandbox, creates the container in the guest, and ends with
//! its exit code; or, when the microVM ends first, as if it had been killed.
//!
//! What the sandbox holds for the container lasts as long as this process's connection to the
//! sandbox's supervisor: however this process ends, nothing is left.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_protocol::id::ContainerId;
use bulkhead_protocol::share::RawShare;
use bulkhead_protocol::vm::FdIndex;
use oci_spec::runtime::LinuxResources;
use rustix::event::{PollFd, PollFlags, poll};

use super::claim::{Claim, first_record, plan_cgroup};
use super::container::{Container, kill_failure, program_of};
use super::leader::Leader;
use super::lifecycle::{Workload, tell_notes};
use super::membership::Place;
use super::oom::OomShield;
use super::terminal::Terminal;
use super::workload::workload;
use crate::agent_client::{AgentError, Call, Progress, wait_reply};
use crate::block::GuestDisks;
use crate::control::{ControlReply, ControlRequest, ControlServer, ask, ask_with};
use crate::failure::Failure;
use crate::hooks::Runner;
use crate::network;
use crate::plan::{Membership, NetworkPlan, Policy, SandboxPlan, plan_member};
use crate::request::{SandboxOptions, SandboxRequest};
use crate::sandbox::{OpenShare, open_apart};
use crate::signal::Signals;
use crate::state::{CONTROL_SOCKET, Record, Status, Store, VSOCK_SOCKET, View};

const PHASE: &str = "joining the sandbox";

/// A container in the microVM of another one.
struct Joined {
    container: Container,
    sandbox: View,
    /// Its end is the sandbox's.
    connection: OwnedFd,
}

/// What has happened.
enum Happened {
    Signal,
    Client,
    /// What was waited for can be read.
    Awaited,
    SandboxEnded,
}

/// Why the workload is not watched any more.
enum Outcome {
    Exited(u8),
    SandboxEnded,
    NotStarted(Failure),
}

/// As [`super::lifecycle::supervise`], in the sandbox of `place`.
pub(super) fn supervise(
    request: SandboxRequest,
    place: Place,
    policy: &Policy,
    leader: &Leader,
    mut signals: Signals,
    report: impl FnOnce(u32) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let Place { sandbox, membership } = place;
    let SandboxRequest { options, root, preserved } = request;
    let (id, bundle) = (&options.id, &options.bundle);
    let plan = plan_member(id, bundle, options.spec.clone(), policy, &membership)?;
    tell_notes(&options, &plan);
    let (shares, view) = open_apart(&plan, root)?;
    let call_limit = Duration::from_secs(sandbox.record.call_limit_s);
    let claim = claim(&options, &plan, policy, &sandbox.record, &membership, call_limit)?;
    leader.enter(view)?;
    let server = ControlServer::bind(&claim.dir.path(CONTROL_SOCKET))?;
    let terminal = Terminal::open(plan.terminal, &options.console)?;
    claim.run_create_hooks(&plan.hooks, &mut signals)?;
    let mut container = Container {
        terminal,
        server,
        signals,
        agent_socket: claim.dir.path(VSOCK_SOCKET),
        call_limit,
        program: options.spec.process().as_ref().map(program_of).unwrap_or_default(),
        hooks: plan.hooks.clone(),
        resumes_to: Status::Created,
        claim,
    };
    let connection = join(&sandbox, container.id(), &plan.resources, shares)?;
    container.claim.shield = Some(OomShield::up());
    let workload = container.create(&plan, GuestDisks::default(), &membership.shared, preserved)?;
    container.claim.set_status(Status::Created)?;
    let mut joined = Joined { container, sandbox, connection };
    if options.start {
        joined.container.check_signals()?;
        joined.container.start()?;
    }
    report(std::process::id())?;
    joined.container.claim.keep = options.keep;
    joined.watch_to_the_end(workload)
}

/// Claims the id, in the network namespace and the cgroup that the container has on the host.
fn claim(
    options: &SandboxOptions,
    plan: &SandboxPlan,
    policy: &Policy,
    sandbox: &Record,
    membership: &Membership,
    call_limit: Duration,
) -> Result<Claim, Failure> {
    let store = Store::new(&options.state_root);
    let cgroup = plan_cgroup(options, plan, policy)?;
    let process = options.spec.process().clone().unwrap_or_default();
    let runner = Runner::open()?;
    // Where engines look for its network. Nothing is put there for this container, so there is
    // nothing to be recorded.
    let network = match membership.shares_network() {
        true => NetworkPlan::Path(format!("/proc/{}/ns/net", sandbox.supervisor.pid).into()),
        false => NetworkPlan::New,
    };
    network::enter(&network)?;
    let mut record = first_record(options, plan, None, cgroup.as_ref(), call_limit)?;
    record.sandbox = Some(membership.sandbox.clone());
    let dir = store.claim(&record, &process)?;
    let mut claim = Claim { store, dir, record, runner, cgroup: None, shield: None, keep: false };
    let of_sandbox = PathBuf::from(&options.state_root).join(membership.sandbox.as_str());
    claim.dir.link(VSOCK_SOCKET, &of_sandbox.join(VSOCK_SOCKET))?;
    claim.join_cgroup(cgroup)?;
    Ok(claim)
}

/// Asks the sandbox's supervisor for a place; the connection that keeps it.
fn join(
    sandbox: &View,
    id: &ContainerId,
    resources: &LinuxResources,
    shares: Vec<OpenShare>,
) -> Result<OwnedFd, Failure> {
    let fds: Vec<_> = shares.iter().map(|share| share.fd.as_fd()).collect();
    let raw = (0..).zip(&shares).map(|(index, share)| RawShare {
        name: share.name.clone(),
        source: FdIndex(index),
        read_only: share.read_only,
    });
    let request = ControlRequest::Join {
        id: id.clone(),
        shares: raw.collect(),
        resources: Box::new(resources.clone()),
    };
    let (reply, connection) = ask_with(&sandbox.path(CONTROL_SOCKET), &request, &fds)?;
    reply.map(|_| connection)
}

impl Joined {
    /// Serves signals and clients until the workload has ended and its output is passed on. Gives
    /// its exit code.
    fn watch_to_the_end(mut self, mut workload: Workload) -> Result<u8, Failure> {
        match self.watch(&mut workload.wait)? {
            Outcome::Exited(code) => {
                self.drain(&workload)?;
                Ok(code)
            }
            Outcome::SandboxEnded => {
                workload.relay.wait();
                Ok(crate::signal::exit_code(libc::SIGKILL as u32))
            }
            Outcome::NotStarted(failure) => Err(failure),
        }
    }

    fn watch(&mut self, wait: &mut Call) -> Result<Outcome, Failure> {
        loop {
            match self.next(wait.as_fd())? {
                Happened::Signal => self.container.serve_signal(),
                Happened::Client => {
                    if let Some(outcome) = self.serve_client() {
                        return Ok(outcome);
                    }
                }
                Happened::Awaited => match wait.advance() {
                    Ok(Progress::Pending) => {}
                    Ok(Progress::Done(payload)) => {
                        return Ok(Outcome::Exited(wait_reply(&payload)?.code()));
                    }
                    Err(AgentError::Closed(_)) => return Ok(Outcome::SandboxEnded),
                    Err(e) => return Err(e.into()),
                },
                Happened::SandboxEnded => return Ok(Outcome::SandboxEnded),
            }
        }
    }

    /// Waits until every output is passed on.
    fn drain(&mut self, workload: &Workload) -> Result<(), Failure> {
        loop {
            match self.next(workload.relay.as_fd())? {
                Happened::Signal => self.container.serve_signal(),
                Happened::Client => drop(self.serve_client()),
                Happened::Awaited => return Ok(()),
                Happened::SandboxEnded => {
                    workload.relay.wait();
                    return Ok(());
                }
            }
        }
    }

    fn next(&self, awaited: BorrowedFd<'_>) -> Result<Happened, Failure> {
        loop {
            let mut fds = [
                self.container.signals.as_fd(),
                self.container.server.as_fd(),
                awaited,
                self.connection.as_fd(),
            ]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    return Err(Failure::new("waiting for the container", e.to_string(), ""));
                }
            }
            let happened =
                [Happened::Signal, Happened::Client, Happened::Awaited, Happened::SandboxEnded];
            let ready = fds.iter().map(|fd| !fd.revents().is_empty());
            if let Some((happened, _)) = happened.into_iter().zip(ready).find(|(_, ready)| *ready) {
                return Ok(happened);
            }
        }
    }

    fn serve_client(&mut self) -> Option<Outcome> {
        let (client, request) = self.container.server.accept()?;
        let mut outcome = None;
        let reply = match request {
            ControlRequest::Start => self.serve_start(&mut outcome),
            ControlRequest::Kill { signal, all } => self.serve_kill(signal, all),
            ControlRequest::Pause => self.container.serve_pause(),
            ControlRequest::Resume => self.container.serve_resume(),
            ControlRequest::Update { resources } => {
                let id = self.container.id().clone();
                self.ask_sandbox(&ControlRequest::UpdateMember { id, resources })
            }
            ControlRequest::Stats => self.ask_sandbox(&ControlRequest::Stats),
            ControlRequest::ResizeDisk { .. } => {
                let phase = "resizing the disk";
                Err(Failure::new(phase, "the container has no disks", ""))
            }
            ControlRequest::Join { .. }
            | ControlRequest::UpdateMember { .. }
            | ControlRequest::Release { .. } => {
                let cause = format!("container {} is no sandbox", self.container.id());
                let fix = format!("name {}", self.sandbox.record.id);
                Err(Failure::new(PHASE, cause, &fix))
            }
        };
        client.answer(&reply);
        outcome
    }

    fn ask_sandbox(&self, request: &ControlRequest) -> ControlReply {
        ask(&self.sandbox.path(CONTROL_SOCKET), request)?
    }

    fn serve_start(&mut self, outcome: &mut Option<Outcome>) -> ControlReply {
        self.container.check_created()?;
        let started = self.container.start();
        if let Err(failure) = &started {
            // What could not be started never will be.
            *outcome = Some(Outcome::NotStarted(failure.clone()));
        }
        started.map(|()| crate::control::ControlAnswer::Done)
    }

    fn serve_kill(&mut self, signal: u32, all: bool) -> ControlReply {
        let id = self.container.id();
        let sent = self.container.agent().signal(workload(id), signal, all);
        sent.map(|()| crate::control::ControlAnswer::Done).map_err(|e| kill_failure(&e))
    }
}
