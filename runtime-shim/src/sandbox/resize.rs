//! Another size for a microVM that runs: memory by plugging blocks and by the balloon, CPUs by the
//! agent.
//!
//! Growing first empties the balloon, then plugs. Shrinking first unplugs, which gives whole
//! blocks back for good, then inflates the balloon by what is left.
//!
//! Trust: the guest need not comply, and need not tell the truth about it. So a size reached is
//! what the guest says, bounded by what was asked for; what it can really use is bounded by the
//! largest size that it was ever given, and enforced by the sandbox's cgroup.

use std::time::{Duration, Instant};

use bulkhead_protocol::control::{Reply, Request, VmStats};

use super::{Capacity, Event, Machine, SandboxError};
use crate::Failure;
use crate::agent_client::AgentClient;
use crate::install::VMM;

/// Between two looks at what the guest has done.
const STEP: Duration = Duration::from_millis(20);
/// A guest that does nothing for this part of the agent's limit will not do more.
const PATIENCE_DIVISOR: u32 = 5;
const MIB: u64 = 1 << 20;

/// Size of a microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Guest memory in MiB: the container's and what the guest itself needs.
    pub mem_mib: u32,
    /// CPUs on-line.
    pub vcpus: u32,
}

/// Gives the guest `wanted`, and returns what it has reached. A guest that runs out of memory to
/// give, or does not comply, keeps more than was wanted; one that cannot describe more memory
/// gets less. Neither is an error; memory that the machine was not made for is, and changes
/// nothing.
pub fn resize(
    machine: &mut Machine,
    agent: &AgentClient<'_>,
    wanted: Size,
) -> Result<Size, Failure> {
    let wanted = machine.capacity.within(wanted)?;
    if wanted.vcpus != machine.size.vcpus {
        agent.online_cpus(wanted.vcpus)?;
        machine.size.vcpus = wanted.vcpus;
    }
    if wanted.mem_mib != machine.size.mem_mib {
        let (capacity, limit) = (machine.capacity, agent.limit());
        let mut memory = Memory { guest: &mut *machine, capacity, limit };
        let resized = memory.resize(wanted.mem_mib);
        machine.size.mem_mib = resized
            .map_err(|e| Failure { phase: "resizing the microVM".to_owned(), ..e.into() })?;
    }
    Ok(machine.size)
}

/// A guest whose memory can be asked to change.
trait Guest {
    /// Asks the VMM for a size; the guest follows later.
    fn ask(&mut self, request: &Request) -> Result<(), SandboxError>;
    /// What the guest has done.
    fn stats(&mut self) -> Result<VmStats, SandboxError>;
    /// Lets the guest work for a moment.
    fn wait(&mut self) -> Result<(), SandboxError>;
    /// The time.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

impl Guest for Machine {
    fn ask(&mut self, request: &Request) -> Result<(), SandboxError> {
        Machine::ask(self, request, &[]).map(drop)
    }

    fn stats(&mut self) -> Result<VmStats, SandboxError> {
        match Machine::ask(self, &Request::Stats, &[])? {
            Reply::Stats { stats } => Ok(*stats),
            _ => Err(SandboxError::Garbage(VMM)),
        }
    }

    fn wait(&mut self) -> Result<(), SandboxError> {
        match self.next(&[], Some(Instant::now() + STEP))? {
            Event::Ended(end) => Err(SandboxError::Ended(end)),
            _ => Ok(()),
        }
    }
}

/// The memory of a guest.
struct Memory<'a, G> {
    guest: &'a mut G,
    capacity: Capacity,
    limit: Duration,
}

impl<G: Guest> Memory<'_, G> {
    fn resize(&mut self, wanted_mib: u32) -> Result<u32, SandboxError> {
        let boot_mib = self.capacity.start.mem_mib;
        let taken_mib = boot_mib.saturating_sub(wanted_mib);
        let mut balloon_mib = self.balloon()?;
        if balloon_mib > taken_mib {
            balloon_mib = self.inflate(taken_mib)?;
        }
        let mut plugged_mib = 0;
        if self.capacity.hotplug_mib() > 0 {
            plugged_mib = self.plug(wanted_mib.saturating_sub(boot_mib))?;
        }
        // Whatever the guest has not let go.
        let total_mib = boot_mib.saturating_add(plugged_mib);
        let excess_mib = total_mib.saturating_sub(wanted_mib).min(boot_mib.saturating_sub(1));
        if balloon_mib != excess_mib {
            balloon_mib = self.inflate(excess_mib)?;
        }
        Ok(total_mib.saturating_sub(balloon_mib))
    }

    /// Asks for `mib` MiB plugged; how many are.
    fn plug(&mut self, mib: u32) -> Result<u32, SandboxError> {
        self.guest.ask(&Request::Hotplug { mib })?;
        let plugged_mib = self.settle(|stats| {
            let hotplug = stats.hotplug?;
            Some((hotplug.plugged_bytes, hotplug.plugged_bytes == hotplug.requested_bytes))
        })?;
        Ok(plugged_mib.min(self.capacity.hotplug_mib()))
    }

    /// Asks for a balloon of `mib` MiB; how large it is.
    fn inflate(&mut self, mib: u32) -> Result<u32, SandboxError> {
        self.guest.ask(&Request::Balloon { mib })?;
        let size_mib = self.settle(|stats| {
            let balloon = stats.balloon?;
            Some((balloon.actual_bytes, balloon.actual_bytes == balloon.target_bytes))
        })?;
        Ok(size_mib.min(self.capacity.start.mem_mib))
    }

    /// The size of the balloon that was last asked for, in MiB.
    fn balloon(&mut self) -> Result<u32, SandboxError> {
        let balloon = self.guest.stats()?.balloon.ok_or(SandboxError::Garbage(VMM))?;
        Ok(mib(balloon.target_bytes))
    }

    /// Waits until a figure of the guest's is what it should be, or does not change any more; the
    /// figure in MiB.
    fn settle(
        &mut self,
        figure: impl Fn(&VmStats) -> Option<(u64, bool)>,
    ) -> Result<u32, SandboxError> {
        let now = self.guest.now();
        let end = now + self.limit;
        let patience = self.limit / PATIENCE_DIVISOR;
        let (mut last, mut changed) = (None, now);
        loop {
            let stats = self.guest.stats()?;
            let (bytes, reached) = figure(&stats).ok_or(SandboxError::Garbage(VMM))?;
            let now = self.guest.now();
            if last.replace(bytes) != Some(bytes) {
                changed = now;
            }
            if reached || now >= end || now >= changed + patience {
                return Ok(mib(bytes));
            }
            self.guest.wait()?;
        }
    }
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes / MIB).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
