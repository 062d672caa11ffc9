//! What `/proc/PID` of the guest says about a process of a container.
//!
//! The process chooses its own name and arguments, so nothing here trusts their form.

use std::{fs, io};

use bulkhead_protocol::agent::server::ProcessInfo;

/// Longest command line reported, in bytes, and the most that all of one reply take: a message of
/// the API has at most 4 MiB.
const COMMAND_MAX: usize = 4096;
const COMMANDS_MAX: usize = 2 << 20;
/// Major device number of `/dev/pts/N` (devices.txt).
const PTS_MAJOR: u32 = 136;

/// Details of these processes, without those that have ended.
pub fn describe(pids: &[u32]) -> Vec<ProcessInfo> {
    let booted_at = boot_time().unwrap_or(0);
    let command_max = (COMMANDS_MAX / pids.len().max(1)).min(COMMAND_MAX);
    pids.iter().filter_map(|pid| process_info(*pid, booted_at, command_max)).collect()
}

fn process_info(pid: u32, booted_at: u64, command_max: usize) -> Option<ProcessInfo> {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}"));
    let stat = Stat::parse(&read("stat").ok()?)?;
    let status = read("status").ok()?;
    let cmdline = read("cmdline").ok()?;
    let command = command(&cmdline[..cmdline.len().min(command_max)]);
    Some(ProcessInfo {
        pid,
        ppid: stat.ppid,
        uid: uid(&status).unwrap_or(0),
        cpu_ticks: stat.cpu_ticks,
        started_at: booted_at + stat.start_ticks / ticks_per_second(),
        tty: tty(stat.tty),
        command: command.unwrap_or_else(|| format!("[{}]", stat.name)),
        ..ProcessInfo::default()
    })
}

fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second().max(1)
}

/// Second of the epoch at which the guest booted.
fn boot_time() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    Ok(line.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
}

/// The fields of `/proc/PID/stat` that are used here (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    ppid: u32,
    tty: u32,
    cpu_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        // The name is in parentheses and may hold any character, those too.
        let (head, tail) = text.rsplit_once(") ")?;
        let (_, name) = head.split_once(" (")?;
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        // Field 3 (state) is the first one after the name.
        let field = |number: usize| -> Option<&str> { fields.get(number - 3).copied() };
        let ticks = |number: usize| -> Option<u64> { field(number)?.parse().ok() };
        Some(Self {
            name: name.to_owned(),
            ppid: field(4)?.parse().ok()?,
            tty: field(7)?.parse::<i32>().ok()?.cast_unsigned(),
            cpu_ticks: ticks(14)?.saturating_add(ticks(15)?),
            start_ticks: ticks(22)?,
        })
    }
}

/// Real user id in the text of `/proc/PID/status`.
fn uid(status: &[u8]) -> Option<u32> {
    let status = String::from_utf8_lossy(status);
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Arguments joined with spaces; `None` for a process without any.
fn command(cmdline: &[u8]) -> Option<String> {
    let args: Vec<_> = cmdline
        .split(|b| *b == 0)
        .filter(|arg| !arg.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    (!args.is_empty()).then(|| args.join(" "))
}

/// Name of a terminal device as `ps` writes it.
fn tty(device: u32) -> String {
    let major = (device >> 8) & 0xfff;
    let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
    match (device, major) {
        (0, _) => "?".to_owned(),
        // Each further major number has 256 (devices.txt, 136 to 143).
        (_, PTS_MAJOR..=143) => format!("pts/{}", (major - PTS_MAJOR) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn own_process_is_described() {
        let infos = describe(&[std::process::id(), u32::MAX]);
        let [info] = &infos[..] else {
            panic!("one process");
        };
        assert_eq!(info.pid, std::process::id());
        assert_eq!(info.ppid, std::os::unix::process::parent_id());
        assert!(info.started_at > 1_000_000_000);
        assert!(!info.command.is_empty());
    }

    #[test]
    fn stat_of_name_with_parentheses_is_parsed() {
        let text = b"7 (a) S 9 (b) R 1 7 7 34816 7 4 0 0 0 0 3 4 0 0 20 0 1 0 555 0 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.name, "a) S 9 (b");
        assert_eq!((stat.ppid, stat.cpu_ticks, stat.start_ticks), (1, 7, 555));
        assert_eq!(tty(stat.tty), "pts/0");
    }

    #[test]
    fn tty_is_named_as_ps_does() {
        assert_eq!(tty(0), "?");
        assert_eq!(tty(0x8805), "pts/5");
        assert_eq!(tty(0x0501), "5:1");
    }

    proptest! {
        #[test]
        fn stat_of_any_bytes_never_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Stat::parse(&text);
            let _ = uid(&text);
            let _ = command(&text);
        }
    }
}
