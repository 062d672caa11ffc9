//! `linux.resources`: memory and CPU size the microVM. Each limit holds where it has a meaning:
//! in the guest's cgroup, so that a container that exceeds it fails as it would with runc, in the
//! sandbox's cgroup on the host, or in both.

use std::collections::HashMap;

use oci_spec::runtime::{Linux, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use bulkhead_protocol::limits::{MEM_MIB_MAX, MEM_MIB_MIN, VCPUS_MAX};

use super::{Note, Notes, PlanError};

/// Guest memory where the specification sets no limit, in MiB.
pub(super) const DEFAULT_MEM_MIB: u32 = 256;
/// What the guest kernel and the agent need besides the container's own limit, in MiB.
pub(super) const OVERHEAD_MIB: u32 = 64;
/// Most CPUs that a list may name: the kernel's largest number, and a bound for the reader.
const CPU_MAX: u32 = 8192;

/// What becomes of a container's resources.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourcePlan {
    /// vCPUs of the microVM.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub mem_mib: u32,
    /// What the sandbox's cgroup on the host enforces.
    pub host: LinuxResources,
    /// What the container's cgroup in the guest enforces.
    pub guest: LinuxResources,
}

/// Sizes the microVM, leaves in `linux.resources` what the guest's cgroup applies, and gives the
/// resources as they were with it.
pub(super) fn plan(
    linux: &mut Linux,
    notes: &mut Notes,
) -> Result<(LinuxResources, ResourcePlan), PlanError> {
    let Some(resources) = linux.resources().clone() else {
        return Ok((LinuxResources::default(), plan_resources(&LinuxResources::default())?));
    };
    note_dropped(&resources, notes);
    let planned = plan_resources(&resources)?;
    linux.set_resources(Some(planned.guest.clone()));
    Ok((resources, planned))
}

/// What of an update's resources has no meaning, and why.
pub fn dropped(change: &LinuxResources) -> Vec<Note> {
    let mut notes = Notes::default();
    note_dropped(change, &mut notes);
    let devices = change.devices().as_ref().is_some_and(|rules| !rules.is_empty());
    let reason = "as with runc, an update does not change which devices may be used";
    notes.dropped(devices, "linux.resources.devices", reason);
    notes.0
}

fn note_dropped(resources: &LinuxResources, notes: &mut Notes) {
    if let Some(memory) = resources.memory() {
        note_memory(memory, notes);
    }
    let pages = resources.hugepage_limits().as_ref().is_some_and(|l| !l.is_empty());
    notes.dropped(pages, "linux.resources.hugepageLimits", "the guest has no huge page pool");
    let rdma = resources.rdma().as_ref().is_some_and(|r| !r.is_empty());
    notes.dropped(rdma, "linux.resources.rdma", "the guest has no RDMA device");
    let network = resources.network().as_ref();
    let class = network.is_some_and(|n| n.class_id().is_some_and(|c| c != 0));
    let ranked =
        network.is_some_and(|n| n.priorities().as_ref().is_some_and(|list| !list.is_empty()));
    let old = "classes and priorities of cgroup v1 only";
    notes.dropped(class || ranked, "linux.resources.network", old);
}

fn note_memory(memory: &LinuxMemory, notes: &mut Notes) {
    let field = |name: &str| format!("linux.resources.memory.{name}");
    let old = "a limit of cgroup v1 only";
    let swappiness = memory.swappiness().is_some();
    notes.dropped(swappiness, &field("swappiness"), "the guest has no swap");
    notes.dropped(kernel(memory).is_some_and(|k| k > 0), &field("kernel"), old);
    notes.dropped(memory.kernel_tcp().is_some_and(|k| k > 0), &field("kernelTCP"), old);
    let no_killer = memory.disable_oom_killer().unwrap_or(false);
    notes.dropped(no_killer, &field("disableOOMKiller"), old);
    let check = memory.check_before_update().unwrap_or(false);
    let reason = "a limit below what is used ends processes, as cgroup v2 has it";
    notes.dropped(check, &field("checkBeforeUpdate"), reason);
    notes.dropped(memory.use_hierarchy().is_some(), &field("useHierarchy"), old);
}

/// Plans resources alone, as an update does.
pub fn plan_resources(resources: &LinuxResources) -> Result<ResourcePlan, PlanError> {
    let (mut host, mut guest) = (LinuxResources::default(), resources.clone());
    let (mut vcpus, mut mem_mib) = (1, DEFAULT_MEM_MIB);
    if let Some(memory) = resources.memory() {
        let (on_host, in_guest) = split_memory(memory)?;
        mem_mib = guest_mem_mib(memory.limit())?;
        host.set_memory(Some(on_host));
        guest.set_memory(Some(in_guest));
    }
    if let Some(cpu) = resources.cpu() {
        vcpus = plan_cpu(cpu)?;
        host.set_cpu(Some(cpu.clone()));
        let mut in_guest = cpu.clone();
        in_guest.set_cpus(None);
        in_guest.set_mems(None);
        guest.set_cpu(Some(in_guest));
    }
    host.set_block_io(resources.block_io().clone());
    // As runc: 0 is no limit, not none.
    guest.set_pids(resources.pids().filter(|pids: &LinuxPids| pids.limit() != 0));
    split_unified(resources.unified().as_ref(), &mut host, &mut guest)?;
    plan_rest(&mut guest)?;
    Ok(ResourcePlan { vcpus, mem_mib, host, guest })
}

/// Keys of `unified`: CPU time is the host's and the guest's, CPUs, nodes and disks are the
/// host's, the rest is the guest's.
fn split_unified(
    unified: Option<&HashMap<String, String>>,
    host: &mut LinuxResources,
    guest: &mut LinuxResources,
) -> Result<(), PlanError> {
    let Some(unified) = unified.filter(|map| !map.is_empty()) else {
        guest.set_unified(None);
        return Ok(());
    };
    let (mut on_host, mut in_guest) = (HashMap::new(), HashMap::new());
    for (key, value) in unified {
        let controller = key.split_once('.').map_or("", |(controller, _)| controller);
        if controller.is_empty() || controller == "cgroup" || key.contains('/') {
            let reason = "a file of a cgroup v2 controller is wanted";
            return Err(PlanError::invalid("linux.resources.unified", key, reason));
        }
        let copy = || (key.clone(), value.clone());
        if ["cpu", "cpuset", "io"].contains(&controller) {
            on_host.extend([copy()]);
        }
        if !["cpuset", "io"].contains(&controller) {
            in_guest.extend([copy()]);
        }
    }
    host.set_unified(Some(on_host).filter(|map| !map.is_empty()));
    guest.set_unified(Some(in_guest).filter(|map| !map.is_empty()));
    Ok(())
}

/// What the host and the guest enforce of memory. Swap is the host's: the guest has none.
fn split_memory(memory: &LinuxMemory) -> Result<(LinuxMemory, LinuxMemory), PlanError> {
    if let Some(swap @ 1..) = memory.swap() {
        // The words are runc's.
        let reason = match memory.limit() {
            Some(limit @ 1..) if swap < limit => "memory+swap limit should be >= memory limit",
            Some(1..) => "",
            _ => "unable to set swap limit without memory limit",
        };
        if !reason.is_empty() {
            return Err(PlanError::invalid("linux.resources.memory.swap", swap, reason));
        }
    }
    let mut guest = LinuxMemory::default();
    guest.set_limit(memory.limit());
    guest.set_reservation(memory.reservation());
    let mut host = guest;
    host.set_swap(memory.swap());
    Ok((host, guest))
}

#[allow(deprecated)] // The field is deprecated in the specification, which is why it is dropped.
fn kernel(memory: &LinuxMemory) -> Option<i64> {
    memory.kernel()
}

/// The container's limit in MiB, rounded up, and what the guest itself needs. No limit, which
/// runc's clients write as 0 or -1, is the default.
fn guest_mem_mib(limit: Option<i64>) -> Result<u32, PlanError> {
    let Some(bytes) = limit.and_then(|l| u64::try_from(l).ok()).filter(|l| *l > 0) else {
        return Ok(DEFAULT_MEM_MIB);
    };
    let mib = bytes.div_ceil(1 << 20) + u64::from(OVERHEAD_MIB);
    match u32::try_from(mib) {
        Ok(mib) if mib <= MEM_MIB_MAX => Ok(mib.max(MEM_MIB_MIN)),
        _ => Err(PlanError::invalid(
            "linux.resources.memory.limit",
            bytes,
            "a microVM has at most 1 TiB",
        )),
    }
}

fn plan_cpu(cpu: &LinuxCpu) -> Result<u32, PlanError> {
    let real_time = "cgroup v2 has no real-time bandwidth";
    if cpu.realtime_runtime().is_some_and(|r| r != 0) {
        return Err(PlanError::refused("linux.resources.cpu.realtimeRuntime", real_time));
    }
    if cpu.realtime_period().is_some_and(|p| p != 0) {
        return Err(PlanError::refused("linux.resources.cpu.realtimePeriod", real_time));
    }
    let listed = |list: &Option<String>, field: &str| match list.as_deref() {
        None | Some("") => Ok(None),
        Some(list) => match list_length(list) {
            Some(length) => Ok(Some(length)),
            None => Err(PlanError::invalid(field, list, "a list as 0-2,7 is wanted")),
        },
    };
    listed(cpu.mems(), "linux.resources.cpu.mems")?;
    let cpus = listed(cpu.cpus(), "linux.resources.cpu.cpus")?;
    Ok(vcpus(cpu.quota(), cpu.period(), cpus))
}

/// How many numbers a list of CPUs or nodes names (cpuset(7), "List format").
fn list_length(list: &str) -> Option<u32> {
    let mut length = 0u32;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n < CPU_MAX);
        let (first, last) = (number(first)?, number(last)?);
        length = length.checked_add(last.checked_sub(first)? + 1)?;
    }
    Some(length)
}

/// As many vCPUs as the quota can keep busy, and no more than the host CPUs that are named; with
/// neither, one. Both are enforced by the host's cgroup, so more than [`VCPUS_MAX`] loses nothing
/// but parallelism.
fn vcpus(quota: Option<i64>, period: Option<u64>, cpus: Option<u32>) -> u32 {
    let period = period.filter(|p| *p > 0).unwrap_or(100_000);
    let quota = quota.and_then(|q| u64::try_from(q).ok()).filter(|q| *q > 0);
    let busy = quota.map(|q| u32::try_from(q.div_ceil(period)).unwrap_or(VCPUS_MAX));
    let wanted = [busy, cpus].into_iter().flatten().min();
    wanted.unwrap_or(1).clamp(1, VCPUS_MAX)
}

/// Takes out what the guest does not apply.
fn plan_rest(resources: &mut LinuxResources) -> Result<(), PlanError> {
    if let Some(io) = resources.block_io() {
        let leaf = |weight: Option<u16>| weight.is_some_and(|w| w != 0);
        let reason = "cgroup v2 has no leaf weights";
        if leaf(io.leaf_weight()) {
            return Err(PlanError::refused("linux.resources.blockIO.leafWeight", reason));
        }
        for (i, device) in io.weight_device().iter().flatten().enumerate() {
            if leaf(device.leaf_weight()) {
                let field = format!("linux.resources.blockIO.weightDevice[{i}].leafWeight");
                return Err(PlanError::refused(field, reason));
            }
        }
        resources.set_block_io(None);
    }
    resources.set_hugepage_limits(None);
    resources.set_rdma(None);
    resources.set_network(None);
    Ok(())
}
