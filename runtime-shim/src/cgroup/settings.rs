//! From `linux.resources` to the files of the sandbox's cgroup (runtime-spec, config-linux.md,
//! "Control groups"). Pure.
//!
//! Memory follows from the size of the microVM, not from the container's limit: what the
//! container uses is guest memory, which the host sees as the VMM's. Everything else is what
//! runc writes.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

/// What the processes of a sandbox need besides guest memory, in MiB: VMM, file server and
/// supervisor, their buffers, and what the kernel keeps for them.
const PROCESSES_MIB: u64 = 32;
/// One MiB of guest memory in so many is added for page tables: the VMM's and KVM's.
const PAGE_TABLE_DIVISOR: u64 = 64;
/// Threads and processes of a sandbox: 32 vCPUs, the queues of its devices, the file server's
/// workers and the supervisor stay far below. It bounds what a VMM that was taken over can start;
/// the container's own limit holds in the guest.
const PIDS_MAX: u32 = 512;
/// Period of a CPU quota where none is given, in microseconds (the kernel's default).
const PERIOD_US: u64 = 100_000;

/// One file of a cgroup and what to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Name of the file.
    pub file: String,
    /// Text without newline.
    pub value: String,
    /// What asks for it, for messages.
    pub field: &'static str,
    /// A cgroup without this file is fine.
    pub optional: bool,
}

impl Setting {
    fn new(file: &str, value: impl ToString, field: &'static str) -> Self {
        Self { file: file.to_owned(), value: value.to_string(), field, optional: false }
    }
}

impl Setting {
    /// What undoes this setting of a file that holds `text`. Files of disks have a line for
    /// each, and take one at a time.
    pub(super) fn before(&self, text: &str) -> String {
        let Some((device, _)) = self.value.split_once(' ').filter(|(d, _)| d.contains(':')) else {
            return text.trim_end().to_owned();
        };
        let of_device = |line: &&str| line.split_once(' ').is_some_and(|(d, _)| d == device);
        match (text.lines().find(of_device), self.file.as_str()) {
            (Some(line), _) => line.to_owned(),
            (None, "io.max") => format!("{device} rbps=max wbps=max riops=max wiops=max"),
            (None, _) => format!("{device} default"),
        }
    }
}

/// What the cgroup of a sandbox with so much guest memory may hold, in bytes.
pub fn memory_max_bytes(mem_mib: u32) -> u64 {
    let mem_mib = u64::from(mem_mib);
    (mem_mib + PROCESSES_MIB + mem_mib / PAGE_TABLE_DIVISOR) << 20
}

/// Whether these resources limit memory.
pub fn limits_memory(resources: &LinuxResources) -> bool {
    resources.memory().is_some_and(|memory| memory.limit().is_some_and(|limit| limit > 0))
}

/// All limits but [`quota`], for a sandbox with so much guest memory. `has` tells whether the
/// cgroup has a file.
pub fn limits(
    resources: &LinuxResources,
    mem_mib: u32,
    has: impl Fn(&str) -> bool,
) -> Vec<Setting> {
    let mut settings =
        vec![Setting { optional: true, ..Setting::new("pids.max", PIDS_MAX, "sandbox") }];
    if let Some(memory) = resources.memory() {
        settings.extend(memory_limits(memory, mem_mib));
    }
    if let Some(cpu) = resources.cpu() {
        settings.extend(cpu_shares(cpu));
    }
    if let Some(io) = resources.block_io() {
        settings.extend(block_io(io, has("io.bfq.weight")));
    }
    settings.extend(unified(resources.unified().as_ref(), |file| file != "cpu.max"));
    settings
}

/// The limit of CPU time. It is set once the guest has booted, which is not the tenant's work.
pub fn quota(resources: &LinuxResources) -> Vec<Setting> {
    let cpu = resources.cpu().as_ref();
    let mut settings = cpu.map(cpu_quota).unwrap_or_default();
    settings.extend(unified(resources.unified().as_ref(), |file| file == "cpu.max"));
    settings
}

/// The field that only a cgroup of the host can enforce, if there is one.
pub fn need_host(resources: &LinuxResources) -> Option<&'static str> {
    let cpu = resources.cpu().as_ref();
    let given = |list: Option<&Option<String>>| {
        list.is_some_and(|l| l.as_ref().is_some_and(|l| !l.is_empty()))
    };
    [
        (given(cpu.map(LinuxCpu::cpus)), "linux.resources.cpu.cpus"),
        (given(cpu.map(LinuxCpu::mems)), "linux.resources.cpu.mems"),
        (
            resources.block_io().as_ref().is_some_and(|io| !block_io(io, false).is_empty()),
            "linux.resources.blockIO",
        ),
        (resources.unified().is_some(), "linux.resources.unified"),
    ]
    .into_iter()
    .find_map(|(needed, field)| needed.then_some(field))
}

fn memory_limits(memory: &LinuxMemory, mem_mib: u32) -> Vec<Setting> {
    let mut settings = vec![];
    match memory.limit() {
        Some(1..) => {
            let field = "linux.resources.memory.limit";
            settings.push(Setting::new("memory.max", memory_max_bytes(mem_mib), field));
        }
        Some(-1) => {
            let field = "linux.resources.memory.limit";
            settings.push(Setting::new("memory.max", "max", field));
        }
        _ => {}
    }
    settings.extend(swap(memory.swap(), memory.limit()));
    let field = "linux.resources.memory.reservation";
    match memory.reservation() {
        Some(-1) => settings.push(Setting::new("memory.low", "max", field)),
        Some(bytes @ 1..) => settings.push(Setting::new("memory.low", bytes, field)),
        _ => {}
    }
    settings
}

/// Memory and swap together become swap alone. A kernel without swap has nothing to limit.
fn swap(swap: Option<i64>, limit: Option<i64>) -> Option<Setting> {
    let field = "linux.resources.memory.swap";
    let setting = match (swap?, limit) {
        (-1, _) => Setting::new("memory.swap.max", "max", field),
        (total @ 1.., Some(limit @ 1..)) => {
            Setting::new("memory.swap.max", total.saturating_sub(limit).max(0), field)
        }
        _ => return None,
    };
    Some(Setting { optional: true, ..setting })
}

fn cpu_shares(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut settings = vec![];
    if let Some(idle) = cpu.idle() {
        settings.push(Setting::new("cpu.idle", idle, "linux.resources.cpu.idle"));
    }
    // An idle cgroup takes no weight.
    if let Some(shares @ 1..) = cpu.shares().filter(|_| cpu.idle() != Some(1)) {
        let field = "linux.resources.cpu.shares";
        settings.push(Setting::new("cpu.weight", weight_of_shares(shares), field));
    }
    for (file, value, field) in [
        ("cpuset.cpus", cpu.cpus(), "linux.resources.cpu.cpus"),
        ("cpuset.mems", cpu.mems(), "linux.resources.cpu.mems"),
    ] {
        if let Some(list) = value.as_ref().filter(|list| !list.is_empty()) {
            settings.push(Setting::new(file, list, field));
        }
    }
    settings
}

fn cpu_quota(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut settings = vec![];
    if cpu.quota().is_some_and(|quota| quota != 0) || cpu.period().is_some_and(|p| p > 0) {
        let period = cpu.period().filter(|p| *p > 0).unwrap_or(PERIOD_US);
        let value = match cpu.quota() {
            Some(quota @ 1..) => format!("{quota} {period}"),
            _ => format!("max {period}"),
        };
        settings.push(Setting::new("cpu.max", value, "linux.resources.cpu.quota"));
    }
    if let Some(burst) = cpu.burst() {
        settings.push(Setting::new("cpu.max.burst", burst, "linux.resources.cpu.burst"));
    }
    settings
}

/// Shares of cgroup v1 (2 to 262144, by default 1024) as weight of v2 (1 to 10000, by default
/// 100): a curve through both ends and the default, as runc 1.3 has it.
fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

fn block_io(io: &LinuxBlockIo, bfq: bool) -> Vec<Setting> {
    let field = "linux.resources.blockIO";
    // The scheduler BFQ has weights of its own, from 1 to 1000; the other scale ends at 10000.
    let file = if bfq { "io.bfq.weight" } else { "io.weight" };
    let scaled = |weight: u16| match bfq {
        true => u64::from(weight),
        false => 1 + u64::from(weight.saturating_sub(10)) * 9999 / 990,
    };
    let mut settings = vec![];
    if let Some(weight @ 1..) = io.weight() {
        settings.push(Setting::new(file, scaled(weight), field));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight @ 1..) = device.weight() {
            let value = format!("{}:{} {}", device.major(), device.minor(), scaled(weight));
            settings.push(Setting::new(file, value, field));
        }
    }
    for (key, devices) in [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ] {
        let throttle = |device: &LinuxThrottleDevice| {
            let value = format!("{}:{} {key}={}", device.major(), device.minor(), device.rate());
            Setting::new("io.max", value, field)
        };
        settings.extend(devices.iter().flatten().map(throttle));
    }
    settings
}

/// Keys for which the host is the place, in the order of their names.
fn unified(
    unified: Option<&HashMap<String, String>>,
    wanted: impl Fn(&str) -> bool,
) -> Vec<Setting> {
    let mut settings: Vec<Setting> = unified
        .into_iter()
        .flatten()
        .filter(|(file, _)| wanted(file))
        .map(|(file, value)| Setting::new(file, value, "linux.resources.unified"))
        .collect();
    settings.sort_by(|a, b| a.file.cmp(&b.file));
    settings
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn written(resources: Value, bfq: bool) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        let mut settings = limits(&resources, 192, |file| bfq && file == "io.bfq.weight");
        settings.extend(quota(&resources));
        settings.iter().map(|s| format!("{} = {}", s.file, s.value)).collect()
    }

    #[test]
    fn resources_become_the_files_that_runc_writes() {
        let mib = 1u64 << 20;
        let max = format!("memory.max = {}", (192 + 32 + 3) * mib);
        let table: [(Value, &[&str]); 16] = [
            (json!({}), &[]),
            (json!({"memory": {"limit": 128 * mib}}), &[&max]),
            (
                json!({"memory": {"limit": 128 * mib, "swap": 129 * mib}}),
                &[&max, "memory.swap.max = 1048576"],
            ),
            (
                json!({"memory": {"limit": -1, "swap": -1}}),
                &["memory.max = max", "memory.swap.max = max"],
            ),
            (json!({"memory": {"swap": -1}}), &["memory.swap.max = max"]),
            (json!({"memory": {"reservation": -1}}), &["memory.low = max"]),
            (json!({"memory": {"limit": 0, "reservation": 4096}}), &["memory.low = 4096"]),
            (json!({"cpu": {"shares": 1024}}), &["cpu.weight = 100"]),
            (json!({"cpu": {"shares": 2, "idle": 0}}), &["cpu.idle = 0", "cpu.weight = 1"]),
            (json!({"cpu": {"shares": 262_144, "idle": 1}}), &["cpu.idle = 1"]),
            (json!({"cpu": {"quota": 5000}}), &["cpu.max = 5000 100000"]),
            (json!({"cpu": {"quota": -1, "period": 7000}}), &["cpu.max = max 7000"]),
            (
                json!({"cpu": {"quota": 5000, "period": 10000, "burst": 100}}),
                &["cpu.max = 5000 10000", "cpu.max.burst = 100"],
            ),
            (
                json!({"cpu": {"cpus": "0-1", "mems": "0", "shares": 0, "quota": 0}}),
                &["cpuset.cpus = 0-1", "cpuset.mems = 0"],
            ),
            (
                json!({"blockIO": {
                    "weight": 1000, "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
                    "throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 1000}],
                    "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 7}],
                }}),
                &[
                    "io.weight = 10000",
                    "io.weight = 8:0 1",
                    "io.max = 8:16 rbps=1000",
                    "io.max = 8:16 wiops=7",
                ],
            ),
            (
                json!({"unified": {"cpu.max": "max 9000", "cpu.weight": "7", "io.weight": "50"}}),
                &["cpu.weight = 7", "io.weight = 50", "cpu.max = max 9000"],
            ),
        ];
        for (resources, expected) in table {
            let settings = written(resources.clone(), false);
            assert_eq!(settings[0], "pids.max = 512");
            assert_eq!(settings[1..], *expected, "{resources}");
        }
        let weight = written(json!({"blockIO": {"weight": 500}}), true);
        assert_eq!(weight[1..], ["io.bfq.weight = 500"]);
    }

    #[test]
    fn setting_of_a_disk_is_undone_alone() {
        let throttle = Setting::new("io.max", "8:0 rbps=1", "f");
        let text = "8:16 rbps=7 wbps=max riops=max wiops=max\n8:0 rbps=9 wbps=max\n";
        assert_eq!(throttle.before(text), "8:0 rbps=9 wbps=max");
        assert_eq!(throttle.before(""), "8:0 rbps=max wbps=max riops=max wiops=max");
        assert_eq!(Setting::new("io.weight", "8:0 5", "f").before("default 100\n"), "8:0 default");
        assert_eq!(Setting::new("cpu.max", "1 2", "f").before("max 100000\n"), "max 100000");
    }

    #[test]
    fn weight_rises_with_shares_between_its_bounds() {
        let weights: Vec<u64> = (0..=300_000).step_by(97).map(weight_of_shares).collect();
        assert!(weights.is_sorted());
        assert_eq!((weights[0], weights[weights.len() - 1]), (1, 10_000));
    }
}
