//! What the host's cgroup of a sandbox says that it uses.

use serde::{Deserialize, Serialize};

/// What a sandbox uses of the host: guest memory, VMM, file server and supervisor together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostUsage {
    /// Bytes of memory, page cache of files that it has read included.
    pub memory_bytes: u64,
    /// Most that it ever was; 0 where the kernel does not tell.
    pub memory_peak_bytes: u64,
    /// Limit; none if there is none.
    pub memory_limit_bytes: Option<u64>,
    /// Processes that were killed for want of memory.
    pub oom_kills: u64,
    /// CPU time.
    pub cpu_ns: u64,
    /// CPU time in the kernel.
    pub cpu_system_ns: u64,
    /// Periods in which it was held back.
    pub throttled_periods: u64,
    /// Threads and processes.
    pub pids: u64,
}

impl HostUsage {
    /// From the files of a cgroup; a missing one is zero.
    pub(super) fn read(file: impl Fn(&str) -> String) -> Self {
        let number = |name| file(name).trim().parse().unwrap_or(0);
        let cpu = file("cpu.stat");
        let ns = |key| keyed(&cpu, key).saturating_mul(1000);
        Self {
            memory_bytes: number("memory.current"),
            memory_peak_bytes: number("memory.peak"),
            memory_limit_bytes: file("memory.max").trim().parse().ok(),
            oom_kills: keyed(&file("memory.events"), "oom_kill"),
            cpu_ns: ns("usage_usec"),
            cpu_system_ns: ns("system_usec"),
            throttled_periods: keyed(&cpu, "nr_throttled"),
            pids: number("pids.current"),
        }
    }
}

/// Number behind `key` in a file with a name and a number on each line; 0 without.
pub(super) fn keyed(text: &str, key: &str) -> u64 {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    let found = pairs.filter(|(name, _)| *name == key).find_map(|(_, n)| n.trim().parse().ok());
    found.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_the_files_of_a_cgroup() {
        let usage = HostUsage::read(|file| {
            let text = match file {
                "memory.current" => "4096\n",
                "memory.max" => "max\n",
                "memory.events" => "oom 4\noom_kill 2\n",
                "cpu.stat" => "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_throttled 1\n",
                "pids.current" => "9\n",
                _ => "",
            };
            text.to_owned()
        });
        let expected = HostUsage {
            memory_bytes: 4096,
            oom_kills: 2,
            cpu_ns: 7000,
            cpu_system_ns: 3000,
            throttled_periods: 1,
            pids: 9,
            ..HostUsage::default()
        };
        assert_eq!(usage, expected);
    }
}
