//! Processes by pid: start time, existence, killing without hitting a stranger.
//!
//! A pid alone may have been given to another process since it was recorded; with its start
//! time it is unique for as long as the machine is up.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process for as long as the machine is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid in the runtime's pid namespace.
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc(5), field 22 of `stat`).
    pub started: u64,
}

impl ProcessId {
    /// The calling process.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// The process that has `pid` now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let started = start_time(pid)?;
        Ok(Self { pid, started })
    }

    /// Opens the process, or tells that it is gone.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // Looked at after the descriptor is held: if it is the right process now, the
        // descriptor is that process's for ever.
        match start_time(self.pid) {
            Ok(started) if started == self.started => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Kills the process, if it still exists, and waits until it has ended.
    pub fn kill(self) -> io::Result<()> {
        let Some(pidfd) = self.open()? else {
            return Ok(());
        };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => await_end(&pidfd),
            Err(e) => Err(e.into()),
        }
    }
}

/// Waits until the process behind `pidfd` has ended; a zombie has.
fn await_end(pidfd: &OwnedFd) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Whether the process behind `pidfd` has ended.
pub fn has_ended(pidfd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).map_err(gone)?;
    start_time_of(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// A process that ends while its `stat` is read gives ESRCH.
fn gone(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ESRCH) => io::Error::from(io::ErrorKind::NotFound),
        _ => error,
    }
}

/// Field 22; the command name in field 2 may hold anything, so fields are counted behind its
/// closing bracket.
fn start_time_of(stat: &[u8]) -> Option<u64> {
    let bracket = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(stat.get(bracket + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_behind_a_hostile_name_is_found() {
        let stat = b"7 (a) b) ) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1\n";
        assert_eq!(start_time_of(stat), Some(4242));
        assert_eq!(start_time_of(b"7 (a"), None);
        assert_eq!(start_time_of(b"7 (a) S 1"), None);
    }

    #[test]
    fn process_with_another_start_time_is_not_opened() {
        let own = ProcessId::own().unwrap();
        assert!(own.open().unwrap().is_some());
        let other = ProcessId { started: own.started + 1, ..own };
        assert!(other.open().unwrap().is_none());
    }

    #[test]
    fn killed_process_has_ended_when_kill_returns() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        let pidfd = id.open().unwrap().unwrap();
        assert!(!has_ended(&pidfd));
        id.kill().unwrap();
        assert!(has_ended(&pidfd));
        child.wait().unwrap();
        assert!(id.open().unwrap().is_none());
        id.kill().unwrap();
    }
}
