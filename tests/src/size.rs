//! The size of a running `bulkhead-vmm`'s guest: changing it, and seeing what it costs the host.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bulkhead_protocol::control::{Reply, Request, VmState, VmStats};

use crate::vmm::{Machine, Vmm};

/// Between two looks at what a guest has done.
const STEP: Duration = Duration::from_millis(100);

impl Machine {
    /// With a balloon, and so much memory that can be added.
    pub fn resizable(mut self, hotplug_mib: u32) -> Self {
        self.config.balloon = true;
        self.config.hotplug_mib = hotplug_mib;
        self
    }
}

impl Vmm {
    /// Asks the guest for a balloon.
    pub fn inflate(&self, mib: u32) -> Result<()> {
        self.send(&Request::Balloon { mib }, &[])?;
        self.done(VmState::Running)
    }

    /// Asks the guest to use so much of the memory that can be added.
    pub fn plug(&self, mib: u32) -> Result<()> {
        self.send(&Request::Hotplug { mib }, &[])?;
        self.done(VmState::Running)
    }

    /// What the devices have done.
    pub fn stats(&self) -> Result<VmStats> {
        self.send(&Request::Stats, &[])?;
        match self.receive()? {
            Reply::Stats { stats } => Ok(*stats),
            other => bail!("bulkhead-vmm answered {other:?}"),
        }
    }

    /// Looks at the statistics until `found` is true of them; how long that took.
    pub fn wait_until(
        &self,
        limit: Duration,
        mut found: impl FnMut(&VmStats) -> bool,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let stats = self.stats()?;
            if found(&stats) {
                return Ok(start.elapsed());
            }
            ensure!(start.elapsed() < limit, "after {limit:?} it is {stats:?}");
            thread::sleep(STEP);
        }
    }

    /// Memory in KiB that the process has for itself (proc_pid_smaps(5)).
    pub fn private_kib(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("no {path}"))?;
        let private = text.lines().filter(|line| line.starts_with("Private_"));
        let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        Ok(kib.sum())
    }
}
