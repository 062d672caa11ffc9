//! The end of a sandbox: the last output, the guest's power switch, and what its end is called.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::lifecycle::{Outcome, Supervisor, Workload};
use super::relay::Relay;
use crate::failure::{EXIT_FAILURE, EXIT_LOST, Failure};
use crate::sandbox::{End, Event};

/// How long to wait for the reason when the agent's connection breaks: as long as the guest may
/// live on without it.
const REASON_LIMIT: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Why the machine ends whose agent's connection broke.
    pub fn reason(&mut self) -> Result<End, Failure> {
        let deadline = Instant::now() + REASON_LIMIT;
        loop {
            match self.machine.next(&[], Some(deadline))? {
                Event::Ended(end) => return Ok(end),
                Event::Timeout => return Ok(End::AgentGone),
                _ => {}
            }
        }
    }

    /// Passes on what the workload has written, switches the guest off, and gives the exit code.
    pub fn end(mut self, outcome: Outcome, workload: Workload) -> Result<u8, Failure> {
        drop(workload.wait);
        match outcome {
            Outcome::Exited(status) => {
                let killed = self.drain(&workload.relay)?;
                if !killed {
                    self.switch_off();
                }
                Ok(status.code())
            }
            Outcome::Killed => {
                let _ = self.machine.kill();
                Ok(crate::signal::exit_code(libc::SIGKILL as u32))
            }
            Outcome::Lost(end) => {
                // What the workload had written is passed on all the same.
                let _ = self.machine.kill();
                workload.relay.wait();
                let failure = Failure::new("running the container", end.to_string(), end.fix());
                let failure = self.container.claim.name_oom(failure.with_code(EXIT_LOST));
                // A detached supervisor has nobody else to tell.
                self.machine.note(&failure.to_string());
                Err(failure.with_details(self.machine.last_words()))
            }
            Outcome::NotStarted(failure) => Err(failure),
        }
    }

    /// Waits until every output is passed on, which is as long as its reader takes. True if the
    /// machine was killed meanwhile.
    fn drain(&mut self, relay: &Relay) -> Result<bool, Failure> {
        loop {
            let extra =
                [self.container.signals.as_fd(), self.container.server.as_fd(), relay.as_fd()];
            let outcome = match self.machine.next(&extra, None)? {
                Event::Extra(0) => {
                    self.container.serve_signal();
                    None
                }
                Event::Extra(1) => self.serve_client(),
                Event::Extra(_) => return Ok(false),
                Event::Ended(_) => Some(Outcome::Killed),
                Event::Reply(_) | Event::Ready | Event::Timeout => None,
            };
            if outcome.is_some() {
                let _ = self.machine.kill();
                relay.wait();
                return Ok(true);
            }
        }
    }

    /// Lets the guest write everything back and power off; one that does not is killed.
    fn switch_off(&mut self) {
        let deadline = Instant::now() + self.container.call_limit;
        if self.container.agent().shutdown().is_ok() {
            // While the guest powers off; its own end does not wait for this process.
            self.leave_cgroup();
            let ended = |event| matches!(event, Ok(Event::Ended(_) | Event::Timeout) | Err(_));
            while !ended(self.machine.next(&[], Some(deadline))) {}
        }
        let _ = self.machine.kill();
    }

    /// Leaves the sandbox's cgroup if that is to be removed at the end of this process. What
    /// fails is tried again then.
    fn leave_cgroup(&mut self) {
        if let Some(cgroup) =
            self.container.claim.cgroup.as_mut().filter(|_| !self.container.claim.keep)
        {
            let _ = cgroup.leave();
        }
    }

    /// The failure with the sandbox's last words, which stay in the container's log, too. A call
    /// that failed because the machine has ended is told as that.
    pub fn explain(&mut self, failure: Failure) -> Failure {
        let failure = match self.ended_by_now() {
            Some(end) if failure.code == EXIT_FAILURE => {
                let phase = "creating the container";
                self.container.claim.name_oom(Failure::new(phase, end.to_string(), end.fix()))
            }
            _ => failure,
        };
        failure.with_details(self.machine.last_words())
    }

    fn ended_by_now(&mut self) -> Option<End> {
        let now = Instant::now();
        loop {
            match self.machine.next(&[], Some(now)) {
                Ok(Event::Ended(end)) => return Some(end),
                Ok(Event::Timeout) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}
