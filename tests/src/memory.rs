//! Private memory of a sandbox's host processes, without the guest's own memory.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{bulkhead, run};

/// One line of `/proc/PID/smaps` with private pages (proc_pid_smaps(5)).
const PRIVATE: [&str; 2] = ["Private_Clean:", "Private_Dirty:"];

/// Private memory of a running sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// KiB of `bulkhead-vmm`, without the guest's memory.
    pub monitor_kib: u64,
    /// KiB of all host processes of the sandbox, without the guest's memory.
    pub sandbox_kib: u64,
    /// KiB of guest memory that are in use on the host.
    pub guest_kib: u64,
}

/// What the running container `id` costs.
pub fn cost(id: &str) -> Result<Cost> {
    let state = run(bulkhead().args(["state", id]));
    ensure!(state.code == 0, "`bulkhead state {id}` failed: {}", state.stderr);
    let state: Value =
        serde_json::from_str(&state.text()).context("`bulkhead state` wrote no JSON")?;
    let supervisor = state["pid"].as_u64().context("the state has no pid")?;
    let mut monitor = None;
    let mut sandbox_kib = 0;
    for pid in family(supervisor)? {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))
            .with_context(|| format!("cannot read the memory of {}", name.trim_end()))?;
        let (kib, guest_kib) = private_kib(&smaps);
        sandbox_kib += kib;
        if name.trim_end() == "bulkhead-vmm" {
            sandbox_kib -= guest_kib;
            monitor = Some((kib - guest_kib, guest_kib));
        }
    }
    let (monitor_kib, guest_kib) = monitor.context("the sandbox has no bulkhead-vmm")?;
    Ok(Cost { monitor_kib, sandbox_kib, guest_kib })
}

/// A process and all that descend from it.
fn family(root: u64) -> Result<Vec<u64>> {
    let mut members = vec![root];
    let mut index = 0;
    while let Some(pid) = members.get(index).copied() {
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        for task in fs::read_dir(&tasks).with_context(|| format!("no {}", tasks.display()))? {
            let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            members.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u64>().ok()));
        }
        index += 1;
    }
    ensure!(members.len() > 1, "the supervisor has no child");
    Ok(members)
}

/// Private pages of a process in KiB: of all mappings, and of the largest run of adjacent writable
/// ones. Of a monitor that run is its guest: memory with kernel and initrd mapped over parts of it.
fn private_kib(smaps: &str) -> (u64, u64) {
    let mut all_kib = 0;
    let mut runs: Vec<Run> = Vec::new();
    for line in smaps.lines() {
        let Some((key, rest)) = line.split_once(char::is_whitespace) else { continue };
        if let Some((start, end)) = addresses(key) {
            let writable = rest.starts_with("rw-p");
            match runs.last_mut().filter(|run| writable && run.writable && run.end == start) {
                Some(run) => run.end = end,
                None => runs.push(Run { start, end, writable, private_kib: 0 }),
            }
        } else if PRIVATE.contains(&key) {
            let number = rest.split_whitespace().next().and_then(|text| text.parse::<u64>().ok());
            let kib = number.unwrap_or(0);
            all_kib += kib;
            if let Some(run) = runs.last_mut() {
                run.private_kib += kib;
            }
        }
    }
    let largest = runs.iter().filter(|run| run.writable).max_by_key(|run| run.end - run.start);
    (all_kib, largest.map_or(0, |run| run.private_kib))
}

/// Adjacent mappings.
struct Run {
    start: u64,
    end: u64,
    writable: bool,
    private_kib: u64,
}

/// `START-END` in hexadecimal, as a mapping's line begins.
fn addresses(text: &str) -> Option<(u64, u64)> {
    let (start, end) = text.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
        7f0000000000-7f0001000000 rw-p 00000000 00:00 0\n\
        Size:              16384 kB\nPrivate_Clean:        0 kB\nPrivate_Dirty:     9000 kB\n\
        7f0001000000-7f0002000000 rw-p 00000000 08:01 7 /x/vmlinux\n\
        Size:              16384 kB\nPrivate_Clean:        5 kB\nPrivate_Dirty:      100 kB\n\
        7f0002000000-7f0002001000 ---p 00000000 00:00 0\n\
        Size:                  4 kB\nPrivate_Clean:        0 kB\nPrivate_Dirty:        0 kB\n\
        5500000000-5500001000 r-xp 00000000 00:00 0 /bin/x\n\
        Size:                  4 kB\nPrivate_Clean:        3 kB\nPrivate_Dirty:        1 kB\n";

    #[test]
    fn private_pages_of_the_guest_are_told_apart() {
        assert_eq!(private_kib(SMAPS), (9109, 9105));
    }
}
