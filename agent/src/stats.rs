//! What a container uses, in the form of runc's `events --stats` (its package `types`): figures
//! of its cgroup (v2) and of its network namespace.
//!
//! Reads only. A figure that this kernel does not have is left out or zero, never an error; what
//! is read is bounded, since a container can make its own cgroups and interfaces.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use serde::Serialize;

/// Most that is read of one file.
const FILE_MAX: u64 = 64 << 10;
/// Most block devices and interfaces that are told.
const ENTRIES_MAX: usize = 64;
/// Nanoseconds of a microsecond: cgroup v2 counts these, runc tells those.
const NS_PER_US: u64 = 1000;

/// All figures of one container.
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: BlockIo,
    hugetlb: BTreeMap<String, u64>,
    intel_rdt: BTreeMap<String, u64>,
    network_interfaces: Option<Vec<Interface>>,
}

#[derive(Debug, Default, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

/// In nanoseconds.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    /// In nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

/// Flags of cgroup v1, which runc prints as zeros under v2.
#[derive(Debug, Default, Serialize)]
struct CpuSet {
    cpu_exclusive: u64,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

/// In bytes; no limit is the largest number, as runc writes it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct BlockIoEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Pressure {
    some: PressureLine,
    full: PressureLine,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct PressureLine {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

/// Counters of an interface as the container sees them; runc's names have capital letters.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Interface {
    name: String,
    rx_bytes: u64,
    rx_packets: u64,
    rx_errors: u64,
    rx_dropped: u64,
    tx_bytes: u64,
    tx_packets: u64,
    tx_errors: u64,
    tx_dropped: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Figures of the cgroup in `directory` and of the network namespace of process `init`.
pub fn collect(directory: &Path, init: u32) -> Stats {
    let file = |name: &str| read(&directory.join(name));
    let interfaces = interfaces(&read(Path::new(&format!("/proc/{init}/net/dev"))));
    let cpu_stat = flat(&file("cpu.stat"));
    let io_stat = file("io.stat");
    Stats {
        cpu: Cpu {
            usage: cpu_usage(&cpu_stat),
            throttling: throttling(&cpu_stat),
            psi: pressure(&file("cpu.pressure")),
        },
        memory: memory(file),
        pids: Pids {
            current: number(&file("pids.current")),
            // runc tells no limit as 0, and leaves it out.
            limit: Some(number(&file("pids.max"))).filter(|n| *n < u64::MAX).unwrap_or(0),
        },
        blkio: BlockIo {
            io_service_bytes_recursive: block_io(&io_stat, "rbytes", "wbytes"),
            io_serviced_recursive: block_io(&io_stat, "rios", "wios"),
            psi: pressure(&file("io.pressure")),
        },
        network_interfaces: Some(interfaces).filter(|list| !list.is_empty()),
        ..Stats::default()
    }
}

/// The text of a file, empty if there is none.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is not there; what was read until an error is told.
    let _ = File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A file with one number or `max`.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// A file with a name and a number on each line.
fn flat(text: &str) -> BTreeMap<String, u64> {
    let entry = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

fn of(table: &BTreeMap<String, u64>, name: &str) -> u64 {
    table.get(name).copied().unwrap_or(0)
}

fn cpu_usage(stat: &BTreeMap<String, u64>) -> CpuUsage {
    let ns = |name| of(stat, name).saturating_mul(NS_PER_US);
    CpuUsage { total: ns("usage_usec"), kernel: ns("system_usec"), user: ns("user_usec") }
}

fn throttling(stat: &BTreeMap<String, u64>) -> Throttling {
    Throttling {
        periods: of(stat, "nr_periods"),
        throttled_periods: of(stat, "nr_throttled"),
        throttled_time: of(stat, "throttled_usec").saturating_mul(NS_PER_US),
    }
}

/// runc tells swap as cgroup v1 did, together with memory.
fn memory(file: impl Fn(&str) -> String) -> Memory {
    let usage = MemoryEntry {
        limit: number(&file("memory.max")),
        usage: number(&file("memory.current")),
        max: number(&file("memory.peak")),
        failcnt: of(&flat(&file("memory.events")), "max"),
    };
    let swap_limit = number(&file("memory.swap.max"));
    let swap = MemoryEntry {
        limit: swap_limit.saturating_add(usage.limit),
        usage: number(&file("memory.swap.current")).saturating_add(usage.usage),
        ..MemoryEntry::default()
    };
    let raw = flat(&file("memory.stat"));
    Memory {
        cache: of(&raw, "file"),
        usage,
        swap,
        raw,
        psi: pressure(&file("memory.pressure")),
        ..Memory::default()
    }
}

/// Lines of `io.stat`: `MAJOR:MINOR` and pairs `NAME=NUMBER`.
fn block_io(text: &str, read: &str, write: &str) -> Vec<BlockIoEntry> {
    let mut entries = Vec::new();
    for line in text.lines().take(ENTRIES_MAX) {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|word| word.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let op = match name {
                name if name == read => "Read",
                name if name == write => "Write",
                _ => continue,
            };
            entries.push(BlockIoEntry { major, minor, op, value: value.parse().unwrap_or(0) });
        }
    }
    entries
}

/// `some` and `full`, or nothing from a kernel that does not count them (accounting/psi.rst).
fn pressure(text: &str) -> Option<Pressure> {
    let mut told = Pressure::default();
    let mut any = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let target = match words.next() {
            Some("some") => &mut told.some,
            Some("full") => &mut told.full,
            _ => continue,
        };
        any = true;
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let average = || value.parse().ok().filter(|n: &f64| n.is_finite()).unwrap_or(0.0);
            match name {
                "avg10" => target.avg10 = average(),
                "avg60" => target.avg60 = average(),
                "avg300" => target.avg300 = average(),
                "total" => target.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    any.then_some(told)
}

/// `/proc/PID/net/dev` without the loopback interface.
fn interfaces(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, counters) = line.rsplit_once(':')?;
        let n: Vec<u64> =
            counters.split_ascii_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
        (n.len() >= 16 && name.trim() != "lo").then(|| Interface {
            name: name.trim().to_owned(),
            rx_bytes: n[0],
            rx_packets: n[1],
            rx_errors: n[2],
            rx_dropped: n[3],
            tx_bytes: n[8],
            tx_packets: n[9],
            tx_errors: n[10],
            tx_dropped: n[11],
        })
    };
    text.lines().filter_map(interface).take(ENTRIES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn cgroup_without_files_is_zeros_in_the_form_of_runc() {
        let empty = tempfile::tempdir().unwrap();
        let stats = serde_json::to_value(collect(empty.path(), 0)).unwrap();
        let entry = json!({"limit": 0, "failcnt": 0});
        let expected = json!({
            "cpu": {"usage": {"kernel": 0, "user": 0}, "throttling": {}},
            "cpuset": {
                "cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0,
                "memory_spread_page": 0, "memory_spread_slab": 0, "memory_pressure": 0,
                "sched_load_balance": 0, "sched_relax_domain_level": 0,
            },
            "memory": {"usage": entry, "swap": entry, "kernel": entry, "kernelTCP": entry},
            "pids": {}, "blkio": {}, "hugetlb": {}, "intel_rdt": {}, "network_interfaces": null,
        });
        assert_eq!(stats, expected);
    }

    #[test]
    fn figures_are_converted_to_runcs_units() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
        };
        write("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 7\n");
        write("memory.max", "max\n");
        write("memory.current", "4096\n");
        write("memory.swap.max", "8192\n");
        write("memory.swap.current", "10\n");
        write("memory.stat", "anon 1\nfile 2\n");
        write("memory.events", "low 0\nmax 9\noom_kill 1\n");
        write("pids.current", "3\n");
        write("pids.max", "max\n");
        write("io.stat", "254:1 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nx\n");
        write("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\n");
        let stats = serde_json::to_value(collect(directory.path(), 0)).unwrap();
        assert_eq!(stats["cpu"]["usage"], json!({"total": 5000, "kernel": 2000, "user": 3000}));
        assert_eq!(stats["cpu"]["throttling"], json!({"throttledPeriods": 7}));
        assert_eq!(stats["cpu"]["psi"]["some"]["avg10"], json!(1.5));
        let memory = &stats["memory"];
        assert_eq!(memory["usage"], json!({"limit": u64::MAX, "usage": 4096, "failcnt": 9}));
        assert_eq!(memory["swap"], json!({"limit": u64::MAX, "usage": 4106, "failcnt": 0}));
        assert_eq!((&memory["cache"], &memory["raw"]["anon"]), (&json!(2), &json!(1)));
        assert_eq!(stats["pids"], json!({"current": 3}));
        let bytes = &stats["blkio"]["ioServiceBytesRecursive"];
        assert_eq!(
            *bytes,
            json!([
                {"major": 254, "minor": 1, "op": "Read", "value": 1},
                {"major": 254, "minor": 1, "op": "Write", "value": 2},
            ])
        );
    }

    #[test]
    fn interfaces_are_told_without_loopback() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n\
                    \x20   lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                    \x20 eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let told = interfaces(text);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].name.as_str(), told[0].rx_dropped), ("eth0", 4));
        assert_eq!((told[0].tx_bytes, told[0].tx_dropped), (9, 12));
    }

    proptest! {
        #[test]
        fn files_of_any_text_never_panic(text in "[ -~\n]{0,200}") {
            let _ = (flat(&text), number(&text), block_io(&text, "rbytes", "wbytes"));
            let _ = (pressure(&text), interfaces(&text));
        }
    }
}
