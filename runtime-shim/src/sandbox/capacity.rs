//! How large a microVM starts, and how large it can become.
//!
//! Memory that may be added is address space until it is asked for, and a CPU that may be added is
//! parked in the kernel; both are decided when the machine is made. Pure but for [`Host::here`].

use bulkhead_protocol::limits::{MEM_MIB_MAX, VCPUS_MAX};

use super::resize::Size;
use crate::Failure;
use crate::plan::{Ceiling, SandboxPlan};

/// A guest can grow to so many times the memory of its start. The kernel describes each added
/// page in 64 bytes of memory that was there before: a quarter of it at the most.
const GROWTH: u32 = 16;
/// CPUs that a guest may be given later, where nothing else is said: each costs every guest
/// memory and a moment of its start (`cargo xtask bench boot`).
const SPARE_VCPUS: u32 = 0;

/// What the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Host {
    cpus: u32,
    mem_mib: u32,
}

impl Host {
    /// This host (sysconf, sysinfo).
    pub(super) fn here() -> Self {
        // SAFETY: the call takes an integer and reads no memory of ours.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        let info = rustix::system::sysinfo();
        let bytes = u64::from(info.mem_unit) * info.totalram;
        Self {
            cpus: u32::try_from(cpus).unwrap_or(1).max(1),
            mem_mib: u32::try_from(bytes >> 20).unwrap_or(MEM_MIB_MAX),
        }
    }
}

/// Sizes of one microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// What it starts with.
    pub start: Size,
    /// Most that it can have.
    pub most: Size,
}

impl Capacity {
    /// What `plan` says, and where it says nothing, what `host` can give.
    pub(super) fn new(plan: &SandboxPlan, host: Host) -> Self {
        // To a microVM, the host has no more than its operator allows.
        let Ceiling { vcpus, mem_mib } = plan.ceiling;
        let host = Host {
            cpus: host.cpus.min(vcpus.unwrap_or(u32::MAX)),
            mem_mib: host.mem_mib.min(mem_mib.unwrap_or(u32::MAX)),
        };
        let start = Size { mem_mib: plan.mem_mib, vcpus: plan.vcpus };
        Self::between(start, plan.mem_max_mib, plan.vcpus_max, host)
    }

    fn between(start: Size, mem_mib: Option<u32>, vcpus: Option<u32>, host: Host) -> Self {
        let grown = start.mem_mib.saturating_mul(GROWTH).min(host.mem_mib);
        let spare = start.vcpus.saturating_add(SPARE_VCPUS).min(host.cpus);
        let mem_mib = mem_mib.unwrap_or(grown).min(MEM_MIB_MAX);
        let vcpus = vcpus.unwrap_or(spare).min(VCPUS_MAX);
        let most = Size { mem_mib: mem_mib.max(start.mem_mib), vcpus: vcpus.max(start.vcpus) };
        Self { start, most }
    }

    /// Memory that can be added, in MiB.
    pub fn hotplug_mib(&self) -> u32 {
        self.most.mem_mib - self.start.mem_mib
    }

    /// `wanted` as far as this machine can have it. Memory that it cannot have is refused: a limit
    /// would hold that nobody set. CPUs that it does not have cost parallelism alone, as with a
    /// quota above what the host has.
    pub(super) fn within(&self, wanted: Size) -> Result<Size, Failure> {
        if wanted.mem_mib > self.most.mem_mib {
            let (mib, most) = (wanted.mem_mib, self.most.mem_mib);
            let cause =
                format!("{mib} MiB of guest memory (this microVM was made for at most {most})");
            let fix = format!("create it with the annotation io.bulkhead.memory.max={mib}");
            return Err(Failure::new("resizing the microVM", cause, &fix));
        }
        let vcpus = wanted.vcpus.clamp(1, self.most.vcpus);
        Ok(Size { vcpus, ..wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { cpus: 4, mem_mib: 16 << 10 };

    fn size(mem_mib: u32, vcpus: u32) -> Size {
        Size { mem_mib, vcpus }
    }

    #[test]
    fn guest_can_grow_within_what_it_can_describe_and_the_host_has() {
        let most = |host| Capacity::between(size(256, 1), None, None, host).most.mem_mib;
        assert_eq!(most(HOST), 4096);
        assert_eq!(most(Host { mem_mib: 1000, ..HOST }), 1000);
        assert_eq!(most(Host { mem_mib: 100, ..HOST }), 256);
        let capacity = Capacity::between(size(256, 1), None, None, HOST);
        assert_eq!(capacity.hotplug_mib(), 4096 - 256);
    }

    #[test]
    fn annotations_say_how_far_it_can_grow() {
        let most = |mem, vcpus| Capacity::between(size(256, 3), mem, vcpus, HOST).most;
        assert_eq!(most(Some(300), Some(7)), size(300, 7));
        assert_eq!(most(Some(64), Some(2)), size(256, 3));
        assert_eq!(most(Some(u32::MAX), Some(u32::MAX)), size(MEM_MIB_MAX, VCPUS_MAX));
    }

    #[test]
    fn memory_beyond_the_most_is_refused_and_cpus_are_fewer() {
        let capacity = Capacity::between(size(256, 1), None, Some(2), HOST);
        assert_eq!(capacity.within(size(4096, 9)).unwrap(), size(4096, 2));
        assert_eq!(capacity.within(size(64, 0)).unwrap(), size(64, 1));
        let refused = capacity.within(size(4097, 1)).unwrap_err();
        assert!(refused.fix.contains("io.bulkhead.memory.max=4097"), "{refused:?}");
    }
}
