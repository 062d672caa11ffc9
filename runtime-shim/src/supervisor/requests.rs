//! What clients ask of a supervisor whose container exists, one function for each request.

use bulkhead_protocol::control::{Reply, Request};

use super::container::kill_failure;
use super::lifecycle::{KILL_DIVISOR, Outcome, Supervisor};
use super::workload::workload;
use crate::cgroup::HostCgroup;
use crate::control::{ControlAnswer, ControlReply, ControlRequest, SandboxStats};
use crate::failure::Failure;
use crate::install::VMM;
use crate::sandbox::SandboxError;
use crate::state::Status;

impl Supervisor {
    /// Takes a client that has connected, does what it asks, and answers.
    pub fn serve_client(&mut self) -> Option<Outcome> {
        let (client, request) = self.container.server.accept()?;
        let (reply, outcome) = match request {
            ControlRequest::Start => self.serve_start(),
            ControlRequest::Kill { signal, all } => self.serve_kill(signal, all),
            ControlRequest::Pause => (self.container.serve_pause(), None),
            ControlRequest::Resume => (self.container.serve_resume(), None),
            ControlRequest::Update { resources } => (self.serve_update(&resources), None),
            ControlRequest::Join { id, shares, resources } => {
                self.serve_join(client, id, shares, *resources);
                return None;
            }
            ControlRequest::UpdateMember { id, resources } => {
                (self.serve_update_member(&id, &resources), None)
            }
            ControlRequest::Release { id } => (self.serve_release(&id), None),
            ControlRequest::ResizeDisk { name } => (self.serve_resize_disk(&name), None),
            ControlRequest::Stats => (self.serve_stats(), None),
        };
        client.answer(&reply);
        outcome
    }

    fn serve_start(&mut self) -> (ControlReply, Option<Outcome>) {
        let created = self.container.claim.record.status == Status::Created;
        match self.start() {
            Ok(()) => (Ok(ControlAnswer::Done), None),
            // What could not be started never will be.
            Err(f) if created => (Err(f.clone()), Some(Outcome::NotStarted(f))),
            Err(f) => (Err(f), None),
        }
    }

    /// The monitor looks at the size of a disk's file and tells the guest.
    fn serve_resize_disk(&mut self, name: &str) -> ControlReply {
        let phase = "resizing the disk";
        let Some(block) = self.disks.iter().position(|serial| serial == name) else {
            let (cause, fix) = match self.disks.is_empty() {
                true => ("the container has no disks".to_owned(), String::new()),
                false => (format!("no disk {name:?}"), format!("it has {}", self.disks.join(", "))),
            };
            return Err(Failure::new(phase, cause, &fix));
        };
        let told = match self.machine.ask(&Request::ResizeBlock { block: block as u32 }, &[]) {
            Ok(Reply::Done { .. }) => Ok(ControlAnswer::Done),
            Ok(_) => Err(SandboxError::Garbage(VMM)),
            Err(e) => Err(e),
        };
        told.map_err(|e| Failure { phase: phase.to_owned(), ..e.into() })
    }

    /// What only the supervisor can tell: counters of the VMM, and the cgroup's figures.
    fn serve_stats(&mut self) -> ControlReply {
        let size = self.machine.size();
        let told = match self.machine.ask(&Request::Stats, &[]) {
            Ok(Reply::Stats { stats }) => Ok(*stats),
            Ok(_) => Err(SandboxError::Garbage(VMM)),
            Err(e) => Err(e),
        };
        let phase = "reading the container's figures";
        let devices = told.map_err(|e| Failure { phase: phase.to_owned(), ..e.into() })?;
        Ok(ControlAnswer::Stats(Box::new(SandboxStats {
            vcpus: size.vcpus,
            mem_mib: size.mem_mib,
            host: self.container.claim.cgroup.as_ref().map(HostCgroup::usage),
            devices,
        })))
    }

    /// A guest that does not let its workload be killed is killed itself.
    fn serve_kill(&mut self, signal: u32, all: bool) -> (ControlReply, Option<Outcome>) {
        let kill = signal == libc::SIGKILL as u32;
        let limit =
            if kill { self.container.call_limit / KILL_DIVISOR } else { self.container.call_limit };
        let sent = self.container.agent().with_limit(limit).signal(
            workload(self.container.id()),
            signal,
            all,
        );
        match sent {
            Ok(()) => (Ok(ControlAnswer::Done), None),
            Err(e) if e.refused_as().is_none() && kill => {
                (Ok(ControlAnswer::Done), Some(Outcome::Killed))
            }
            Err(e) => (Err(kill_failure(&e)), None),
        }
    }
}
