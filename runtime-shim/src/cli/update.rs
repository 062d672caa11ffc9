//! `update`: runc's flags, as changes of `linux.resources`.

use std::io::Read;
use std::path::Path;

use bulkhead_protocol::id::ContainerId;
use bulkhead_protocol::limits::SPEC_MAX;
use clap::Args;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::Global;
use super::pause::ask_live;
use crate::control::ControlRequest;
use crate::failure::Failure;
use crate::launch::settings;

const PHASE: &str = "updating the container";

/// Arguments of `update`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct UpdateArgs {
    /// File with an OCI `linux.resources` object, or - for standard input; other flags are
    /// ignored then.
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<String>,
    /// Weight of the sandbox's disk access on the host, from 10 to 1000.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub blkio_weight: u16,
    /// Period of the CPU quota in microseconds.
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<String>,
    /// CPU time of each period in microseconds; -1 is no limit.
    #[arg(long, value_name = "US")]
    pub cpu_quota: Option<String>,
    /// CPU time that may be saved up for a burst, in microseconds.
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<String>,
    /// Weight of CPU time against other containers, from 2 to 262144.
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<String>,
    /// Refused above 0: cgroup v2 has no real-time bandwidth.
    #[arg(long, value_name = "US")]
    pub cpu_rt_period: Option<String>,
    /// Refused above 0: cgroup v2 has no real-time bandwidth.
    #[arg(long, value_name = "US")]
    pub cpu_rt_runtime: Option<String>,
    /// CPUs of the host to run on.
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes of the host to use.
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Accepted as runc's and ignored: a limit of cgroup v1 only.
    #[arg(long, value_name = "SIZE")]
    pub kernel_memory: Option<String>,
    /// Accepted as runc's and ignored: a limit of cgroup v1 only.
    #[arg(long, value_name = "SIZE")]
    pub kernel_memory_tcp: Option<String>,
    /// Memory of the container; -1 is no limit.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Memory that is protected from others.
    #[arg(long, value_name = "SIZE")]
    pub memory_reservation: Option<String>,
    /// Memory and swap together, on the host; -1 is no limit.
    #[arg(long, value_name = "SIZE")]
    pub memory_swap: Option<String>,
    /// Processes of the container; -1 is no limit.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub pids_limit: i64,
    /// Refused: the guest has no resctrl.
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// Refused: the guest has no resctrl.
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
    /// 1 for CPU time that nobody else wants, 0 for a share as usual.
    #[arg(long, value_name = "N")]
    pub cpu_idle: Option<String>,
    /// Name of the container.
    pub id: ContainerId,
}

pub(super) fn run(global: &Global, args: UpdateArgs) -> Result<u8, Failure> {
    let view = global.store().view(&args.id)?;
    let resources = match &args.resources {
        Some(file) => read_resources(file)?,
        None => from_flags(&args)?,
    };
    let request = ControlRequest::Update { resources: Box::new(resources) };
    ask_live(&view, PHASE, "container not running", &request)?;
    Ok(0)
}

fn read_resources(file: &str) -> Result<LinuxResources, Failure> {
    let failed = |cause: String| Failure::new("reading the resources", cause, "");
    let mut bytes = vec![];
    let read = match file {
        "-" => std::io::stdin().take(SPEC_MAX as u64 + 1).read_to_end(&mut bytes),
        path => std::fs::File::open(Path::new(path))
            .and_then(|file| file.take(SPEC_MAX as u64 + 1).read_to_end(&mut bytes)),
    };
    read.map_err(|e| failed(format!("{file}: {e}")))?;
    if bytes.len() > SPEC_MAX {
        return Err(failed(format!("{file} is too long (at most {SPEC_MAX} bytes)")));
    }
    serde_json::from_slice(&bytes).map_err(|e| failed(format!("{file}: {e}")))
}

fn from_flags(args: &UpdateArgs) -> Result<LinuxResources, Failure> {
    if args.l3_cache_schema.is_some() || args.mem_bw_schema.is_some() {
        let flag = if args.l3_cache_schema.is_some() { "l3-cache" } else { "mem-bw" };
        let cause = format!("--{flag}-schema: the guest has no resctrl");
        return Err(Failure::new(PHASE, cause, "leave it out"));
    }
    let mut cpu = LinuxCpu::default();
    cpu.set_period(number("cpu-period", &args.cpu_period)?);
    cpu.set_quota(number("cpu-quota", &args.cpu_quota)?);
    cpu.set_burst(number("cpu-burst", &args.cpu_burst)?);
    cpu.set_shares(number("cpu-share", &args.cpu_share)?);
    cpu.set_realtime_period(number("cpu-rt-period", &args.cpu_rt_period)?);
    cpu.set_realtime_runtime(number("cpu-rt-runtime", &args.cpu_rt_runtime)?);
    cpu.set_idle(number("cpu-idle", &args.cpu_idle)?);
    cpu.set_cpus(args.cpuset_cpus.clone());
    cpu.set_mems(args.cpuset_mems.clone());
    let mut memory = LinuxMemory::default();
    memory.set_limit(size("memory", &args.memory)?);
    memory.set_reservation(size("memory-reservation", &args.memory_reservation)?);
    memory.set_swap(size("memory-swap", &args.memory_swap)?);
    size("kernel-memory", &args.kernel_memory)?;
    size("kernel-memory-tcp", &args.kernel_memory_tcp)?;
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources.set_cpu(Some(cpu));
    resources.set_memory(Some(memory));
    if args.pids_limit != 0 {
        let mut pids = LinuxPids::default();
        pids.set_limit(args.pids_limit);
        resources.set_pids(Some(pids));
    }
    if args.blkio_weight != 0 {
        let mut io = LinuxBlockIo::default();
        io.set_weight(Some(args.blkio_weight));
        resources.set_block_io(Some(io));
    }
    Ok(resources)
}

/// runc's words for what is no number.
fn invalid(flag: &str, text: &str) -> Failure {
    let cause = format!("invalid value for {flag}: {text:?}");
    Failure::new("reading the command line", cause, "give a number")
}

fn number<T: std::str::FromStr>(flag: &str, text: &Option<String>) -> Result<Option<T>, Failure> {
    let given = text.as_ref().filter(|text| !text.is_empty());
    given.map(|text| text.parse().map_err(|_| invalid(flag, text))).transpose()
}

/// A size, or -1.
fn size(flag: &str, text: &Option<String>) -> Result<Option<i64>, Failure> {
    let Some(text) = text.as_ref().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if text == "-1" {
        return Ok(Some(-1));
    }
    let size = settings::size(text).ok().and_then(|size| i64::try_from(size).ok());
    size.map(Some).ok_or_else(|| invalid(flag, text))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn parsed(words: &[&str]) -> Result<serde_json::Value, Failure> {
        let line = Line::try_parse_from([&["update"], words].concat()).unwrap();
        from_flags(&line.args).map(|resources| serde_json::to_value(resources).unwrap())
    }

    #[test]
    fn flags_become_the_resources_that_runc_makes_of_them() {
        let words = "--memory 64m --memory-swap -1 --memory-reservation 1048576 --cpu-quota -1 \
                     --cpu-period 50000 --cpu-share 2 --cpu-burst 7 --cpu-idle 0 --cpuset-cpus 0-1 \
                     --cpuset-mems 0 --pids-limit -1 --blkio-weight 100 c";
        let words: Vec<&str> = words.split_whitespace().collect();
        let expected = json!({
            "memory": {"limit": 64 << 20, "swap": -1, "reservation": 1 << 20},
            "cpu": {"quota": -1, "period": 50000, "shares": 2, "burst": 7, "idle": 0,
                "cpus": "0-1", "mems": "0"},
            "pids": {"limit": -1},
            "blockIO": {"weight": 100},
        });
        assert_eq!(parsed(&words).unwrap(), expected);
        assert_eq!(parsed(&["c"]).unwrap(), json!({"memory": {}, "cpu": {}}));
    }

    #[test]
    fn value_that_is_no_number_is_refused_in_runcs_words() {
        for (flag, value) in [("memory", "much"), ("cpu-quota", "x"), ("cpu-period", "-1")] {
            let failure = parsed(&[&format!("--{flag}={value}"), "c"]).unwrap_err();
            assert!(failure.cause.starts_with(&format!("invalid value for {flag}: ")), "{failure}");
        }
        let failure = parsed(&["--l3-cache-schema=x", "c"]).unwrap_err();
        assert!(failure.cause.starts_with("--l3-cache-schema: "));
    }
}
