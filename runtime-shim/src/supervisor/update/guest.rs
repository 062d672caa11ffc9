//! The guest's part of an update: its size, and the container's limits in it. What fails is undone.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::PHASE;
use crate::failure::Failure;
use crate::sandbox::Size;

/// A guest that can be changed.
pub(super) trait Guest {
    /// What it has.
    fn size(&self) -> Size;
    /// Gives it another size; gives what it has reached.
    fn resize(&mut self, size: Size) -> Result<Size, Failure>;
    /// Sets the container's limits in it: all that are named, or none.
    fn limit(&mut self, limits: &LinuxResources) -> Result<(), Failure>;
}

/// Gives the guest `size` and the container `new` limits. If that fails, it has those of before,
/// which are `old`, as far as the guest still does anything.
pub(super) fn change(
    guest: &mut impl Guest,
    size: Size,
    old: &LinuxResources,
    new: &LinuxResources,
) -> Result<(), Failure> {
    let before = guest.size();
    let changed = match size.mem_mib > before.mem_mib || size.vcpus > before.vcpus {
        true => grow(guest, size, new),
        false => shrink(guest, size, new),
    };
    changed.inspect_err(|_| {
        // The first failure is the one to tell; a guest that keeps the memory is held to its old
        // limit by its cgroup.
        let _ = guest.resize(before);
        let _ = guest.limit(&lifted(old, new));
    })
}

fn grow(guest: &mut impl Guest, size: Size, new: &LinuxResources) -> Result<(), Failure> {
    let reached = guest.resize(size)?;
    match reached.mem_mib < size.mem_mib {
        true => Err(incomplete(reached, size)),
        false => guest.limit(new),
    }
}

fn shrink(guest: &mut impl Guest, size: Size, new: &LinuxResources) -> Result<(), Failure> {
    guest.limit(new)?;
    match size == guest.size() {
        true => Ok(()),
        false => guest.resize(size).map(drop),
    }
}

/// `old`, and no limit where `new` alone has one.
fn lifted(old: &LinuxResources, new: &LinuxResources) -> LinuxResources {
    let limited = |all: &LinuxResources| all.memory().is_some_and(|m| m.limit().is_some());
    let mut limits = old.clone();
    if limited(new) && !limited(old) {
        let mut memory: LinuxMemory = old.memory().unwrap_or_default();
        memory.set_limit(Some(-1));
        limits.set_memory(Some(memory));
    }
    let quota = |all: &LinuxResources| all.cpu().as_ref().and_then(LinuxCpu::quota);
    if quota(new).is_some() && quota(old).is_none() {
        let mut cpu = old.cpu().clone().unwrap_or_default();
        cpu.set_quota(Some(-1));
        limits.set_cpu(Some(cpu));
    }
    if new.pids().is_some() && old.pids().is_none() {
        let mut pids = LinuxPids::default();
        pids.set_limit(-1);
        limits.set_pids(Some(pids));
    }
    limits
}

pub(super) fn incomplete(reached: Size, wanted: Size) -> Failure {
    let cause = format!(
        "linux.resources.memory.limit: the guest has taken {} of {} MiB",
        reached.mem_mib, wanted.mem_mib
    );
    Failure::new(
        PHASE,
        cause,
        "the guest kernel needs free memory to manage more: raise it in steps",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A guest that refuses one call, counted from 0.
    struct Model {
        size: Size,
        limits: Value,
        calls: u32,
        refused: Option<u32>,
        most_mib: u32,
    }

    impl Model {
        fn call(&mut self) -> Result<(), Failure> {
            let call = self.calls;
            self.calls += 1;
            match self.refused == Some(call) {
                true => Err(Failure::new("test", "refused", "")),
                false => Ok(()),
            }
        }
    }

    impl Guest for Model {
        fn size(&self) -> Size {
            self.size
        }

        fn resize(&mut self, size: Size) -> Result<Size, Failure> {
            self.call()?;
            self.size = Size { mem_mib: size.mem_mib.min(self.most_mib), ..size };
            Ok(self.size)
        }

        fn limit(&mut self, limits: &LinuxResources) -> Result<(), Failure> {
            self.call()?;
            self.limits = serde_json::to_value(limits).unwrap();
            Ok(())
        }
    }

    fn changed(from_mib: u32, to_mib: u32, refused: Option<u32>) -> (Model, bool) {
        let size = |mem_mib| Size { mem_mib, vcpus: 1 };
        let mut model =
            Model { size: size(from_mib), limits: old(), calls: 0, refused, most_mib: 512 };
        let limits = |value| serde_json::from_value(value).unwrap();
        let result = change(&mut model, size(to_mib), &limits(old()), &limits(new()));
        (model, result.is_ok())
    }

    fn old() -> Value {
        json!({"cpu": {"quota": 7000}, "pids": {"limit": 9}})
    }

    fn new() -> Value {
        json!({"memory": {"limit": 1}, "cpu": {"quota": 1000}, "pids": {"limit": 3}})
    }

    #[test]
    fn guest_that_complies_has_the_new_size_and_limits() {
        for (from_mib, to_mib) in [(256, 128), (256, 256), (256, 512)] {
            let (model, done) = changed(from_mib, to_mib, None);
            assert!(done && model.size.mem_mib == to_mib && model.limits == new());
        }
    }

    #[test]
    fn change_that_fails_at_any_step_leaves_size_and_limits() {
        let mut restored = old();
        restored["memory"] = json!({"limit": -1});
        for (from_mib, to_mib, refused) in
            [(256, 128, Some(0)), (256, 128, Some(1)), (256, 512, Some(0)), (256, 512, Some(1))]
        {
            let (model, done) = changed(from_mib, to_mib, refused);
            assert!(!done, "{to_mib} {refused:?}");
            assert_eq!((model.size.mem_mib, &model.limits), (from_mib, &restored));
        }
        let (model, done) = changed(256, 1024, None);
        assert!(!done && model.size.mem_mib == 256 && model.limits == restored);
    }
}
