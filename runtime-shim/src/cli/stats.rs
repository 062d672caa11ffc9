//! `stats`: what a sandbox costs the host, and where in the guest it goes.

use std::fs;

use bulkhead_protocol::control::VmStats;
use bulkhead_protocol::id::ContainerId;
use clap::Args;
use serde::Serialize;

use super::events::sandbox_stats;
use super::list::{ListFormat, columns};
use super::{Global, print};
use crate::agent_client::{AgentClient, GuestMemory};
use crate::cgroup::HostUsage;
use crate::exec::require_live;
use crate::failure::{Failure, printable};
use crate::process::ProcessId;
use crate::state::{Status, VSOCK_SOCKET, View};

/// Arguments of `stats`.
#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Form of the listing.
    #[arg(short, long, value_enum, default_value = "table")]
    pub format: ListFormat,
    /// Names of containers; without one, all that run.
    pub ids: Vec<ContainerId>,
}

/// What one sandbox uses.
#[derive(Debug, Serialize)]
struct Usage {
    id: String,
    status: String,
    vcpus: u32,
    memory_mib: u32,
    /// Figures of its cgroup on the host.
    cgroup: Option<HostUsage>,
    processes: Vec<ProcessUsage>,
    guest: Option<GuestUsage>,
    devices: VmStats,
}

/// Memory of one process of the host, in bytes (proc_pid_smaps(5)).
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct ProcessUsage {
    name: String,
    pid: u32,
    /// Its part of what it shares, and all that is its own: these add up.
    pss_bytes: u64,
    private_bytes: u64,
    shared_bytes: u64,
}

/// Memory of the guest, in bytes, as the guest tells it.
#[derive(Debug, Serialize)]
struct GuestUsage {
    total_bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
    available_bytes: u64,
    cache_bytes: u64,
}

impl From<GuestMemory> for GuestUsage {
    fn from(memory: GuestMemory) -> Self {
        let idle = memory.free_bytes.saturating_add(memory.cached_bytes);
        Self {
            total_bytes: memory.total_bytes,
            used_bytes: memory.total_bytes.saturating_sub(idle),
            free_bytes: memory.free_bytes,
            available_bytes: memory.available_bytes,
            cache_bytes: memory.cached_bytes,
        }
    }
}

pub(super) fn run(global: &Global, args: StatsArgs) -> Result<u8, Failure> {
    let mut all = vec![];
    for id in &args.ids {
        all.push(usage(&global.store().view(id)?)?);
    }
    if args.ids.is_empty() {
        for view in global.store().list()?.into_iter().flatten() {
            if matches!(view.status(), Status::Stopped | Status::Creating) {
                continue;
            }
            match usage(&view) {
                Ok(usage) => all.push(usage),
                // It may have ended meanwhile; the others are told.
                Err(failure) => global.log().failure(&failure),
            }
        }
    }
    match args.format {
        ListFormat::Json => {
            let text = serde_json::to_string(&all)
                .map_err(|e| Failure::new("writing the output", e.to_string(), ""))?;
            print(&(text + "\n"))
        }
        ListFormat::Table => print(&table(&all)),
    }
}

fn usage(view: &View) -> Result<Usage, Failure> {
    let limit = require_live(view, "read the figures of")?;
    let sandbox = sandbox_stats(view)?;
    let socket = view.path(VSOCK_SOCKET);
    let guest = AgentClient::new(&socket, limit).guest_memory().ok();
    let record = &view.record;
    let processes = std::iter::once(&record.supervisor).chain(&record.children);
    Ok(Usage {
        id: record.id.to_string(),
        status: view.status().to_string(),
        vcpus: sandbox.vcpus,
        memory_mib: sandbox.mem_mib,
        cgroup: sandbox.host,
        processes: processes.filter_map(process_usage).collect(),
        guest: guest.map(GuestUsage::from),
        devices: sandbox.devices,
    })
}

/// None for a process that has ended.
fn process_usage(id: &ProcessId) -> Option<ProcessUsage> {
    // Held while its files are read: they are this process's and no other's.
    let _pidfd = id.open().ok()??;
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", id.pid));
    let rollup = read("smaps_rollup").ok()?;
    // A VMM that was taken over names itself.
    let name = printable(read("comm").unwrap_or_default().trim());
    Some(ProcessUsage { name, pid: id.pid, ..memory(&rollup) })
}

fn memory(rollup: &str) -> ProcessUsage {
    let kib = |key: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
    };
    ProcessUsage {
        pss_bytes: kib("Pss"),
        private_bytes: kib("Private_Clean").saturating_add(kib("Private_Dirty")),
        shared_bytes: kib("Shared_Clean").saturating_add(kib("Shared_Dirty")),
        ..ProcessUsage::default()
    }
}

fn table(all: &[Usage]) -> String {
    let head = [
        "ID",
        "STATUS",
        "CPU TIME",
        "HOST MEM",
        "PRIVATE",
        "GUEST USED",
        "GUEST CACHE",
        "GUEST MEM",
        "RETURNED",
        "NET RX/TX",
        "DISK R/W",
        "PIDS",
    ];
    let rows = all.iter().map(row);
    columns(&std::iter::once(head.map(str::to_owned)).chain(rows).collect::<Vec<_>>())
}

fn row(usage: &Usage) -> [String; 12] {
    let sum = |of: fn(&ProcessUsage) -> u64| usage.processes.iter().map(of).sum::<u64>();
    let guest =
        |of: fn(&GuestUsage) -> u64| usage.guest.as_ref().map_or("-".into(), |g| mib(of(g)));
    let cgroup = |of: &dyn Fn(&HostUsage) -> String| usage.cgroup.as_ref().map_or("-".into(), of);
    let devices = &usage.devices;
    let balloon = devices.balloon.unwrap_or_default();
    let (rx, tx) = devices.nets.iter().fold((0, 0), |(rx, tx), net| {
        (rx + u128::from(net.rx_bytes), tx + u128::from(net.tx_bytes))
    });
    let (read, written) = devices.blocks.iter().fold((0, 0), |(read, written), block| {
        (read + u128::from(block.read_bytes), written + u128::from(block.written_bytes))
    });
    [
        usage.id.clone(),
        usage.status.clone(),
        cgroup(&|c| format!("{:.2}s", c.cpu_ns as f64 / 1e9)),
        mib(sum(|p| p.pss_bytes)),
        mib(sum(|p| p.private_bytes)),
        guest(|g| g.used_bytes),
        guest(|g| g.cache_bytes),
        format!("{} MiB", usage.memory_mib),
        mib(balloon.reported_bytes),
        format!("{} / {}", mib(rx as u64), mib(tx as u64)),
        format!("{} / {}", mib(read as u64), mib(written as u64)),
        cgroup(&|c| c.pids.to_string()),
    ]
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_process_is_read_from_its_rollup() {
        let rollup = "5500-7ffd ---p 00000000 00:00 0 [rollup]\nRss: 40 kB\nPss: 12 kB\n\
                      Pss_Anon: 7 kB\nShared_Clean: 3 kB\nShared_Dirty: 1 kB\n\
                      Private_Clean: 4 kB\nPrivate_Dirty: 8 kB\n";
        let expected = ProcessUsage {
            pss_bytes: 12 << 10,
            private_bytes: 12 << 10,
            shared_bytes: 4 << 10,
            ..ProcessUsage::default()
        };
        assert_eq!(memory(rollup), expected);
        assert_eq!(memory(""), ProcessUsage::default());
    }

    #[test]
    fn own_process_has_memory() {
        let usage = process_usage(&ProcessId::own().unwrap()).unwrap();
        assert!(usage.pss_bytes > 0 && usage.private_bytes > 0);
        assert_eq!(usage.pid, std::process::id());
    }

    #[test]
    fn process_that_names_itself_writes_nothing_to_the_terminal() {
        let before = fs::read_to_string("/proc/self/comm").unwrap();
        fs::write("/proc/self/comm", "a\u{9b}2J\u{7f}b").unwrap();
        let usage = process_usage(&ProcessId::own().unwrap()).unwrap();
        fs::write("/proc/self/comm", before.trim()).unwrap();
        assert_eq!(usage.name, "a 2J b");
    }
}
