//! The other containers of a sandbox, as the supervisor of its first one has them: what of the
//! machine is held for each, for as long as its own supervisor stays connected.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bulkhead_protocol::id::ContainerId;
use bulkhead_protocol::limits::CONTAINERS_MAX;
use bulkhead_protocol::share::{RawShare, RawShareRequest};
use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::lifecycle::Supervisor;
use crate::control::{ControlAnswer, ControlClient, ControlReply};
use crate::failure::Failure;
use crate::process::has_ended;
use crate::sandbox::Size;
use crate::state::Status;

const PHASE: &str = "joining the sandbox";
/// Period of a CPU quota where none is given, in microseconds (the kernel's default).
const PERIOD_US: u64 = 100_000;

/// A container that has joined.
pub(super) struct Member {
    pub id: ContainerId,
    /// Its limits, which updates change.
    pub resources: LinuxResources,
    shares: Vec<String>,
    /// Its supervisor, whose end is the member's.
    client: ControlClient,
}

impl AsFd for Member {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }
}

impl Member {
    /// How much memory the machine has for it, in MiB.
    fn mem_mib(&self) -> u32 {
        let limit = self.resources.memory().and_then(|memory| memory.limit()).unwrap_or(0);
        let mib = u64::try_from(limit).unwrap_or(0).div_ceil(1 << 20);
        u32::try_from(mib).unwrap_or(u32::MAX)
    }
}

impl Supervisor {
    /// Takes a container in, and keeps `client`, who is answered; or refuses, and holds nothing.
    pub(super) fn serve_join(
        &mut self,
        mut client: ControlClient,
        id: ContainerId,
        shares: Vec<RawShare>,
        resources: LinuxResources,
    ) {
        // Whoever has ended holds an id that may be wanted again.
        while let Some(ended) = self.members.iter().position(has_ended) {
            self.release(ended);
        }
        if let Err(failure) = self.check_join(&id) {
            return client.answer(&Err(failure));
        }
        let fds = std::mem::take(&mut client.fds);
        let names = shares.iter().map(|share| share.name.clone()).collect();
        self.members.push(Member { id, resources, shares: names, client });
        let joined = self.admit(shares, &fds);
        let Some(member) = self.members.last() else { return };
        match joined {
            Ok(()) => member.client.answer(&Ok(ControlAnswer::Done)),
            Err(failure) => {
                member.client.answer(&Err(failure));
                self.members.pop();
                // What it was too much for has been undone; the cgroup follows those that stay.
                self.settle();
            }
        }
    }

    fn check_join(&self, id: &ContainerId) -> Result<(), Failure> {
        let status = self.container.claim.record.status;
        let sandbox = self.container.id();
        if !matches!(status, Status::Created | Status::Running | Status::Paused) {
            let cause = format!("container {sandbox} is {status}");
            return Err(Failure::new(PHASE, cause, "create it first"));
        }
        // The first container is one of them.
        if self.members.len() + 1 >= CONTAINERS_MAX {
            let cause = format!("{sandbox} has {CONTAINERS_MAX} containers in its microVM");
            return Err(Failure::new(PHASE, cause, "delete one, or use another sandbox"));
        }
        if id == sandbox || self.members.iter().any(|member| member.id == *id) {
            let cause = format!("{sandbox} has a container {id} in its microVM");
            return Err(Failure::new(PHASE, cause, "choose another id"));
        }
        Ok(())
    }

    /// Gives the newest member memory and shares: both, or none.
    fn admit(&mut self, shares: Vec<RawShare>, fds: &[OwnedFd]) -> Result<(), Failure> {
        let before = self.machine.size();
        let added = self.members.last().map_or(0, |member| self.counted_mib(member));
        let mem_mib = before.mem_mib.saturating_add(added);
        self.resize(Size { mem_mib, ..before })?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let shared = self.machine.share(&RawShareRequest::Add { shares }, &fds);
        shared.map_err(|e| {
            // The first failure is the one to tell.
            let _ = self.resize(before);
            Failure { phase: PHASE.to_owned(), ..e.into() }
        })
    }

    /// Lets go of a member whose supervisor has ended, or who is deleted.
    pub(super) fn release(&mut self, index: usize) {
        let member = self.members.remove(index);
        let mut failed = vec![];
        // One that was never made, or that its supervisor has deleted, is not there.
        if let Err(error) = self.container.agent().delete(&member.id)
            && error.refused_as() != Some(ttrpc::Code::NOT_FOUND)
        {
            failed.push(crate::failure::chain(&error));
        }
        let request = RawShareRequest::Remove { names: member.shares.clone() };
        if let Err(error) = self.machine.share(&request, &[]) {
            failed.push(crate::failure::chain(&error));
        }
        let size = self.machine.size();
        let mem_mib = size.mem_mib.saturating_sub(self.counted_mib(&member));
        if let Err(failure) = self.resize(Size { mem_mib, ..size }) {
            failed.push(failure.to_string());
        }
        for cause in failed {
            self.machine.note(&format!("removing {} from the microVM: {cause}", member.id));
        }
    }

    pub(super) fn serve_release(&mut self, id: &ContainerId) -> ControlReply {
        if let Some(index) = self.members.iter().position(|member| member.id == *id) {
            self.release(index);
        }
        Ok(ControlAnswer::Done)
    }

    /// Makes the sandbox's cgroup what its containers may have now.
    fn settle(&mut self) {
        if let Err(failure) = self.resize(self.machine.size()) {
            self.machine.note(&failure.to_string());
        }
    }

    /// Memory of the machine that is the members', in MiB.
    pub(super) fn members_mib(&self) -> u32 {
        self.members.iter().fold(0, |sum, member| sum.saturating_add(self.counted_mib(member)))
    }

    /// An annotation that has set the machine's memory has set it for all containers.
    fn counted_mib(&self, member: &Member) -> u32 {
        if self.fixed.memory { 0 } else { member.mem_mib() }
    }

    /// What holds on the host, where `own` would for the first container alone.
    pub(super) fn host_resources(&self, own: &LinuxResources) -> LinuxResources {
        with_members(own, self.members.iter().map(|member| &member.resources))
    }
}

/// `own` with a CPU quota of all together, if each has one.
fn with_members<'a>(
    own: &LinuxResources,
    members: impl Iterator<Item = &'a LinuxResources>,
) -> LinuxResources {
    let mut all = own.clone();
    let Some(mut cpu) = own.cpu().clone().filter(|cpu| quota(cpu).is_some()) else { return all };
    let period = cpu.period().unwrap_or(PERIOD_US);
    let mut sum = quota(&cpu).unwrap_or(0);
    for member in members {
        let cpu_of = member.cpu().as_ref();
        let Some(more) = cpu_of.and_then(quota) else {
            cpu.set_quota(Some(-1));
            all.set_cpu(Some(cpu));
            return all;
        };
        let other = cpu_of.and_then(LinuxCpu::period).filter(|p| *p > 0).unwrap_or(PERIOD_US);
        let in_period = i128::from(more) * i128::from(period) / i128::from(other);
        sum = sum.saturating_add(i64::try_from(in_period).unwrap_or(i64::MAX));
    }
    cpu.set_quota(Some(sum));
    all.set_cpu(Some(cpu));
    all
}

fn quota(cpu: &LinuxCpu) -> Option<i64> {
    cpu.quota().filter(|quota| *quota > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn quota_of_a_sandbox_is_that_of_all_or_none() {
        let resources = |value: Value| -> LinuxResources { serde_json::from_value(value).unwrap() };
        let own = resources(json!({"cpu": {"quota": 50_000, "period": 100_000}}));
        let half = resources(json!({"cpu": {"quota": 5000, "period": 10_000}}));
        let none = resources(json!({}));
        let quota_with = |own: &LinuxResources, members: &[&LinuxResources]| {
            with_members(own, members.iter().copied()).cpu().as_ref().and_then(LinuxCpu::quota)
        };
        assert_eq!(quota_with(&own, &[]), Some(50_000));
        assert_eq!(quota_with(&own, &[&half, &half]), Some(150_000));
        assert_eq!(quota_with(&own, &[&half, &none]), Some(-1));
        assert_eq!(quota_with(&none, &[&half]), None);
    }
}
