//! Other limits for a container that runs: in its cgroup in the guest, in the sandbox's on the
//! host, and in the size of the microVM. A change that fails leaves the old limits.
//!
//! What grows, grows from the outside to the inside, so that nothing has to wait for room; what
//! shrinks, from the inside to the outside.

mod guest;

use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use self::guest::Guest;
use super::lifecycle::Supervisor;
use crate::agent_client::AgentClient;
use crate::cgroup::{CgroupError, Undo, settings};
use crate::control::{ControlAnswer, ControlReply};
use crate::failure::Failure;
use crate::plan::{Fixed, ResourcePlan, dropped, plan_resources};
use crate::sandbox::{Machine, Size, resize};
use crate::state::Status;

const PHASE: &str = "updating the container";

impl Supervisor {
    /// Changes the limits that `change` names; one that is 0 or empty is not named, as with runc.
    pub(super) fn serve_update(&mut self, change: &LinuxResources) -> ControlReply {
        if self.container.claim.record.status == Status::Creating {
            return Err(Failure::new(PHASE, "container not running", ""));
        }
        let wanted = merged(&self.resources, change);
        let planned = plan_for_update(&wanted)?;
        let mut size = wanted_size(&planned, &wanted, self.fixed, self.own_size())?;
        size.mem_mib = size.mem_mib.saturating_add(self.members_mib());
        let id = self.container.id().clone();
        let old = std::mem::replace(&mut self.resources, wanted);
        if let Err(failure) = self.change(&id, size, &old, &planned.guest) {
            self.resources = old;
            return Err(failure);
        }
        self.note_dropped(change);
        Ok(ControlAnswer::Done)
    }

    /// The same for a container that has joined.
    pub(super) fn serve_update_member(
        &mut self,
        id: &ContainerId,
        change: &LinuxResources,
    ) -> ControlReply {
        let Some(index) = self.members.iter().position(|member| member.id == *id) else {
            return Err(Failure::new(PHASE, "container not running", ""));
        };
        let wanted = merged(&self.members[index].resources, change);
        let planned = plan_for_update(&wanted)?;
        if let Some(field) = settings::need_host(&planned.host) {
            let cause = format!("{field}: it holds for a whole microVM");
            let fix = "update the sandbox's first container";
            return Err(Failure::new(PHASE, cause, fix));
        }
        let own = self.own_size();
        let old = std::mem::replace(&mut self.members[index].resources, wanted);
        let mem_mib = own.mem_mib.saturating_add(self.members_mib());
        let size = Size { mem_mib, ..own };
        if let Err(failure) = self.change(id, size, &old, &planned.guest) {
            self.members[index].resources = old;
            return Err(failure);
        }
        self.note_dropped(change);
        Ok(ControlAnswer::Done)
    }

    /// What the machine would have without its other containers.
    fn own_size(&self) -> Size {
        let size = self.machine.size();
        Size { mem_mib: size.mem_mib.saturating_sub(self.members_mib()), ..size }
    }

    fn note_dropped(&mut self, change: &LinuxResources) {
        for note in dropped(change) {
            self.machine.note(&format!("{} is dropped: {}", note.field, note.reason));
        }
    }

    /// Gives the machine `size`, the container `id`, whose limits are `old`, its limits of now,
    /// and the sandbox's cgroup what follows.
    fn change(
        &mut self,
        id: &ContainerId,
        size: Size,
        old: &LinuxResources,
        limits: &LinuxResources,
    ) -> Result<(), Failure> {
        let old = plan_resources(old)?.guest;
        let undo = self.limit_host(size.mem_mib.max(self.machine.size().mem_mib))?;
        let agent = AgentClient::new(&self.container.agent_socket, self.container.call_limit);
        let mut serving = ServingGuest { machine: &mut self.machine, agent, id };
        if let Err(failure) = guest::change(&mut serving, size, &old, limits) {
            if let Some(cgroup) = &self.container.claim.cgroup {
                cgroup.undo(undo);
            }
            return Err(failure);
        }
        // Never more than before the last step: it cannot be refused, and undoes nothing.
        self.limit_host(self.machine.size().mem_mib).map(drop)
    }

    /// Gives the machine `size` and the sandbox's cgroup what follows, or changes nothing.
    pub(super) fn resize(&mut self, size: Size) -> Result<(), Failure> {
        let before = self.machine.size();
        let undo = self.limit_host(size.mem_mib.max(before.mem_mib))?;
        let agent = AgentClient::new(&self.container.agent_socket, self.container.call_limit);
        let reached = resize(&mut self.machine, &agent, size);
        let failure = match reached {
            Ok(reached) if reached.mem_mib >= size.mem_mib => {
                return self.limit_host(reached.mem_mib).map(drop);
            }
            Ok(reached) => guest::incomplete(reached, size),
            Err(failure) => failure,
        };
        // The first failure is the one to tell.
        let _ = resize(&mut self.machine, &agent, before);
        if let Some(cgroup) = &self.container.claim.cgroup {
            cgroup.undo(undo);
        }
        Err(failure)
    }

    /// Holds the sandbox on the host to what its containers may have together.
    fn limit_host(&self, mem_mib: u32) -> Result<Undo, Failure> {
        let host = self.host_resources(&plan_for_update(&self.resources)?.host);
        let Some(cgroup) = &self.container.claim.cgroup else {
            return match settings::need_host(&host) {
                Some(field) => Err(CgroupError::Version(field).into()),
                None => Ok(Undo::default()),
            };
        };
        let mut wanted = settings::limits(&host, mem_mib, |file| cgroup.has(file));
        wanted.extend(settings::quota(&host));
        Ok(cgroup.apply(&wanted)?)
    }
}

fn plan_for_update(resources: &LinuxResources) -> Result<ResourcePlan, Failure> {
    plan_resources(resources).map_err(|e| Failure::new(PHASE, e.to_string(), "correct the value"))
}

/// A guest whose agent serves.
struct ServingGuest<'a> {
    machine: &'a mut Machine,
    agent: AgentClient<'a>,
    id: &'a ContainerId,
}

impl Guest for ServingGuest<'_> {
    fn size(&self) -> Size {
        self.machine.size()
    }

    fn resize(&mut self, size: Size) -> Result<Size, Failure> {
        resize(self.machine, &self.agent, size)
    }

    fn limit(&mut self, limits: &LinuxResources) -> Result<(), Failure> {
        let mut limits = limits.clone();
        // As runc: an update does not change which devices may be used.
        limits.set_devices(None);
        Ok(self.agent.update(self.id, &limits)?)
    }
}

/// Size of the microVM under these resources. What an annotation has set, and what no limit asks
/// for, stays.
fn wanted_size(
    planned: &ResourcePlan,
    resources: &LinuxResources,
    fixed: Fixed,
    now: Size,
) -> Result<Size, Failure> {
    let mut size = now;
    if settings::limits_memory(resources) {
        size.mem_mib = planned.mem_mib;
    }
    let cpu = resources.cpu().as_ref();
    let quota = cpu.and_then(LinuxCpu::quota).is_some_and(|quota| quota > 0);
    let listed = cpu.is_some_and(|c| c.cpus().as_ref().is_some_and(|list| !list.is_empty()));
    if quota || listed {
        size.vcpus = planned.vcpus;
    }
    let refuse = |field: &str, annotation: &str, is: u32| {
        let cause = format!("{field}: {annotation} has set the microVM's to {is}");
        Err(Failure::new(PHASE, cause, "create the container without the annotation"))
    };
    if fixed.memory {
        if size.mem_mib > now.mem_mib {
            let field = "linux.resources.memory.limit";
            return refuse(field, "annotation io.bulkhead.memory-mib", now.mem_mib);
        }
        size.mem_mib = now.mem_mib;
    }
    if fixed.vcpus {
        size.vcpus = now.vcpus;
    }
    Ok(size)
}

/// `old` with what `change` names.
fn merged(old: &LinuxResources, change: &LinuxResources) -> LinuxResources {
    let mut new = old.clone();
    if let Some(memory) = change.memory() {
        new.set_memory(Some(merged_memory(old.memory().unwrap_or_default(), memory)));
    }
    if let Some(cpu) = change.cpu() {
        new.set_cpu(Some(merged_cpu(old.cpu().clone().unwrap_or_default(), cpu)));
    }
    if let Some(pids) = change.pids().filter(|pids| pids.limit() != 0) {
        new.set_pids(Some(pids));
    }
    if let Some(io) = change.block_io() {
        new.set_block_io(Some(merged_io(old.block_io().clone().unwrap_or_default(), io)));
    }
    if let Some(unified) = change.unified() {
        let mut all = old.unified().clone().unwrap_or_default();
        all.extend(unified.iter().map(|(key, value)| (key.clone(), value.clone())));
        new.set_unified(Some(all));
    }
    new
}

fn merged_memory(mut new: LinuxMemory, change: &LinuxMemory) -> LinuxMemory {
    let given = |limit: Option<i64>| limit.filter(|limit| *limit != 0);
    let (old_limit, old_swap) = (given(new.limit()), given(new.swap()));
    let limit = given(change.limit()).or(old_limit);
    let swap = match (given(change.swap()), given(change.limit())) {
        (Some(swap), _) => Some(swap),
        // As runc: without a limit of memory, there is none of swap.
        (None, Some(-1)) => Some(-1),
        // Swap is told with memory; what the container has of it alone stays.
        (None, Some(limit)) => match (old_swap, old_limit) {
            (Some(swap @ 1..), Some(old @ 1..)) => Some(limit.saturating_add(swap - old)),
            (swap, _) => swap.filter(|swap| *swap == -1),
        },
        (None, None) => old_swap,
    };
    new.set_limit(limit);
    new.set_swap(swap);
    new.set_reservation(given(change.reservation()).or(new.reservation()));
    new
}

fn merged_cpu(mut new: LinuxCpu, change: &LinuxCpu) -> LinuxCpu {
    let named = |list: &Option<String>| list.clone().filter(|list| !list.is_empty());
    new.set_shares(change.shares().filter(|n| *n != 0).or(new.shares()));
    new.set_quota(change.quota().filter(|n| *n != 0).or(new.quota()));
    new.set_period(change.period().filter(|n| *n != 0).or(new.period()));
    new.set_burst(change.burst().or(new.burst()));
    new.set_idle(change.idle().or(new.idle()));
    new.set_realtime_runtime(change.realtime_runtime());
    new.set_realtime_period(change.realtime_period());
    let (cpus, mems) = (named(change.cpus()), named(change.mems()));
    new.set_cpus(cpus.or(new.cpus().clone()));
    new.set_mems(mems.or(new.mems().clone()));
    new
}

fn merged_io(mut new: LinuxBlockIo, change: &LinuxBlockIo) -> LinuxBlockIo {
    fn named<T: Clone>(new: &Option<Vec<T>>, old: &Option<Vec<T>>) -> Option<Vec<T>> {
        new.clone().filter(|list| !list.is_empty()).or(old.clone())
    }
    new.set_weight(change.weight().filter(|n| *n != 0).or(new.weight()));
    new.set_leaf_weight(change.leaf_weight());
    new.set_weight_device(named(change.weight_device(), new.weight_device()));
    let read_bps = named(change.throttle_read_bps_device(), new.throttle_read_bps_device());
    let write_bps = named(change.throttle_write_bps_device(), new.throttle_write_bps_device());
    let read_iops = named(change.throttle_read_iops_device(), new.throttle_read_iops_device());
    let write_iops = named(change.throttle_write_iops_device(), new.throttle_write_iops_device());
    new.set_throttle_read_bps_device(read_bps);
    new.set_throttle_write_bps_device(write_bps);
    new.set_throttle_read_iops_device(read_iops);
    new.set_throttle_write_iops_device(write_iops);
    new
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resources(value: Value) -> LinuxResources {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn change_replaces_what_it_names_and_leaves_the_rest() {
        let old = json!({"memory": {"limit": 100, "swap": 150, "reservation": 10},
            "cpu": {"shares": 7, "quota": 1000, "period": 5000, "cpus": "0"}, "pids": {"limit": 9}});
        for (change, expected) in [
            (json!({}), old.clone()),
            (
                json!({"memory": {"limit": 0}, "cpu": {"shares": 0, "cpus": ""}, "pids": {"limit": 0}}),
                old.clone(),
            ),
            (
                json!({"memory": {"limit": 200}, "cpu": {"quota": -1}, "pids": {"limit": -1}}),
                json!({"memory": {"limit": 200, "swap": 250, "reservation": 10},
                    "cpu": {"shares": 7, "quota": -1, "period": 5000, "cpus": "0"},
                    "pids": {"limit": -1}}),
            ),
            (
                json!({"memory": {"limit": -1}, "cpu": {"idle": 1}}),
                json!({"memory": {"limit": -1, "swap": -1, "reservation": 10},
                    "cpu": {"shares": 7, "quota": 1000, "period": 5000, "cpus": "0", "idle": 1},
                    "pids": {"limit": 9}}),
            ),
        ] {
            let new = merged(&resources(old.clone()), &resources(change.clone()));
            assert_eq!(serde_json::to_value(new).unwrap(), expected, "{change}");
        }
    }

    #[test]
    fn size_follows_limits_unless_an_annotation_has_set_it() {
        let now = Size { mem_mib: 128, vcpus: 1 };
        let free = Fixed::default();
        let size = |value: Value, fixed: Fixed| {
            let resources = resources(value);
            wanted_size(&plan_resources(&resources).unwrap(), &resources, fixed, now)
        };
        assert_eq!(size(json!({}), free), Ok(now));
        let more = json!({"memory": {"limit": 128 << 20}, "cpu": {"quota": 200_000}});
        assert_eq!(size(more.clone(), free), Ok(Size { mem_mib: 192, vcpus: 2 }));
        let refused = size(more, Fixed { memory: true, vcpus: true }).unwrap_err();
        assert!(refused.cause.starts_with("linux.resources.memory.limit: "), "{refused}");
        let less = json!({"memory": {"limit": 32 << 20}});
        assert_eq!(size(less, Fixed { memory: true, vcpus: true }), Ok(now));
    }
}
