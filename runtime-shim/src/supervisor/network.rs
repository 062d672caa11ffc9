//! The guest's network on its way through the supervisor's life: told before the container is
//! made, read again before its workload runs, followed while it runs. So are the names that an
//! engine serves in the namespace.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use bulkhead_protocol::agent::client as api;
use bulkhead_protocol::control::Request;
use bulkhead_protocol::vm::FdIndex;

use super::lifecycle::Supervisor;
use super::relay::open_stream;
use crate::agent_client::AgentClient;
use crate::failure::Failure;
use crate::network::{Guest, NetworkError, OpenNet, carry_names, names_are_served};
use crate::sandbox::Machine;
use crate::state::Status;

/// A guest whose agent serves.
struct ServingGuest<'a> {
    machine: &'a mut Machine,
    agent: AgentClient<'a>,
}

impl ServingGuest<'_> {
    fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let phase = "changing the guest's network";
        let asked = self.machine.ask(request, fds).map(drop);
        asked.map_err(|e| Failure { phase: phase.to_owned(), ..e.into() })
    }
}

impl Guest for ServingGuest<'_> {
    fn attach(&mut self, slot: u32, net: &OpenNet) -> Result<(), Failure> {
        let mut fds = vec![];
        let net = net.raw(|tap| {
            fds.push(tap.as_fd());
            FdIndex(fds.len() as u32 - 1)
        });
        self.ask(&Request::AttachNet { slot, net }, &fds)
    }

    fn detach(&mut self, slot: u32) -> Result<(), Failure> {
        self.ask(&Request::DetachNet { slot }, &[])
    }

    fn configure(&mut self, network: &api::Network) -> Result<(), Failure> {
        Ok(self.agent.configure_network(network)?)
    }
}

impl Supervisor {
    /// Before the container is made: its interfaces that were there before the boot.
    pub(super) fn introduce_network(&mut self) -> Result<(), Failure> {
        let agent = AgentClient::new(&self.container.agent_socket, self.container.call_limit);
        self.network.introduce(&mut ServingGuest { machine: &mut self.machine, agent })
    }

    /// Before the workload runs: what an engine has done to the namespace since.
    pub(super) fn complete_network(&mut self) -> Result<(), Failure> {
        if self.network.notice() || self.network.due().is_some() {
            self.sync_network().into_iter().next().map_or(Ok(()), Err)?;
        }
        self.connect_names()
    }

    /// While it runs: carries out what has changed, once that is due. Gives when something will
    /// be. What fails is told in the container's log. A paused guest is told when it goes on: it
    /// cannot answer before.
    pub(super) fn follow_network(&mut self) -> Option<Instant> {
        if self.container.claim.record.status == Status::Paused {
            return None;
        }
        if self.network.due().is_some_and(|due| due <= Instant::now()) {
            let failures = self.sync_network();
            // An engine that connects another network serves its names before that.
            for failure in failures.into_iter().chain(self.connect_names().err()) {
                self.machine.note(&failure.to_string());
            }
        }
        self.network.due()
    }

    fn sync_network(&mut self) -> Vec<Failure> {
        let agent = AgentClient::new(&self.container.agent_socket, self.container.call_limit);
        self.network.sync(&mut ServingGuest { machine: &mut self.machine, agent })
    }

    /// Lets the guest ask who serves names in the namespace, if somebody does. That stays so: who
    /// serves none any more is asked in vain, there as here.
    fn connect_names(&mut self) -> Result<(), Failure> {
        if self.carries_names || !names_are_served().map_err(NetworkError::Sockets)? {
            return Ok(());
        }
        self.network.let_answers_in()?;
        let (socket, limit) = (&self.container.agent_socket, self.container.call_limit);
        // The other streams of this process have the numbers behind it.
        let number = u64::from(std::process::id()) << 2;
        let stream = open_stream(socket, number, limit)?;
        AgentClient::new(socket, limit).serve_names(number)?;
        carry_names(stream).map_err(NetworkError::Names)?;
        self.carries_names = true;
        Ok(())
    }
}
