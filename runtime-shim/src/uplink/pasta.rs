//! `pasta` of the passt project (version of Debian 12 or later): a process that carries the
//! connections of a namespace by sockets of the host.
//!
//! The guest's packets are parsed by it, so it is what a hostile guest can attack. It drops its
//! capabilities, enters an empty file system and installs a system call filter by itself; it is
//! kept root, because it could not enter a namespace of root otherwise. The host's loopback is
//! not shown to the guest, and nothing of the guest's namespace is bound on the host.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};

use super::{UplinkError, choose};
use crate::failure::{Failure, printable};
use crate::process::ProcessId;
use crate::spawn::{Child, Program};

/// Where it is installed; the caller's PATH is not asked.
const PROGRAMS: [&str; 3] = ["/usr/bin/pasta", "/usr/local/bin/pasta", "/bin/pasta"];
/// The container's address: of a network that no host should have, four addresses large.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 2);
/// Arguments. The addresses are the guest's, IPv4 and IPv6, and their gateways; IPv6 is there
/// where the host has a route for it.
const ARGUMENTS: [&str; 37] = [
    "--foreground",
    "--quiet",
    "--stderr",
    "--runas",
    "0:0",
    "--config-net",
    "--no-netns-quit",
    "--ns-ifname",
    super::INTERFACE,
    "--address",
    "10.240.0.2",
    "--netmask",
    "30",
    "--gateway",
    "10.240.0.1",
    "--address",
    "fd62:756c:6b68::2",
    "--gateway",
    "fd62:756c:6b68::1",
    // Nothing of the host's loopback, in either direction.
    "--no-map-gw",
    "--tcp-ports",
    "none",
    "--udp-ports",
    "none",
    "--tcp-ns",
    "none",
    "--udp-ns",
    "none",
    // The guest gets its addresses from the agent.
    "--no-dhcp",
    "--no-dhcpv6",
    "--no-ra",
    // Its pid goes to its standard output once everything is set up.
    "--pid",
    "/proc/self/fd/1",
    "--dns",
    "none",
    // It has given up the right to look at the supervisor's in /proc by the time it opens this.
    "--netns",
    "/proc/self/fd/0",
];
/// How long it may take to set the namespace up; an emulated machine is slow.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Most of what it says that is kept, in bytes.
const SAID_MAX: u64 = 4096;

/// The program, if it is installed.
pub(super) fn program() -> Option<&'static Path> {
    choose::first_of(&PROGRAMS)
}

/// Starts it for the calling thread's namespace, with its sockets in `host`, and waits until the
/// namespace is populated. `record` is told of it before it runs.
pub(super) fn start(
    host: BorrowedFd<'_>,
    record: impl FnOnce(ProcessId) -> Result<(), Failure>,
) -> Result<Child, Failure> {
    let path = program().ok_or(UplinkError::Unavailable("pasta is missing: install passt"))?;
    let failed = |e: io::Error| UplinkError::Pasta(path.to_owned(), e);
    let (ready, writer) = io::pipe().map_err(failed)?;
    let mut said = bounded_file().map_err(failed)?;
    let namespace = File::open("/proc/thread-self/ns/net").map_err(failed)?;
    let arguments = ARGUMENTS.iter().map(|text| CString::new(*text)).collect::<Result<_, _>>();
    let program = Program {
        path,
        name: "pasta",
        arguments: arguments.map_err(|e| failed(e.into()))?,
        input: Some(namespace.as_fd()),
        control: None,
        output: writer.as_fd(),
        log: said.as_fd(),
        network: Some(host),
        cgroup: None,
    };
    let gated = program.spawn().map_err(failed)?;
    drop(writer);
    record(gated.id())?;
    let child = gated.release().map_err(failed)?;
    match is_ready(ready.as_fd()).map_err(failed)? {
        true => Ok(child),
        false => Err(UplinkError::PastaEnded(words(&mut said).map_err(failed)?).into()),
    }
}

/// Whether it says its pid in time, rather than to end.
fn is_ready(pipe: BorrowedFd<'_>) -> io::Result<bool> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [PollFd::from_borrowed_fd(pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) => return Ok(false),
            result => result?,
        };
        return Ok(rustix::io::read(pipe, &mut [0; 16])? > 0);
    }
}

/// A file that takes [`SAID_MAX`] bytes and then no more, whatever makes pasta complain.
fn bounded_file() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("pasta", flags)?);
    file.set_len(SAID_MAX)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
    Ok(file)
}

/// What it said first, on one line.
fn words(said: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    said.rewind()?;
    said.read_to_end(&mut bytes)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]);
    // The lines about the system's log say nothing of the cause.
    let lines = text.lines().filter(|line| !line.contains("syslog"));
    let words = lines.map(str::trim).collect::<Vec<_>>().join("; ");
    Ok(if words.is_empty() { "it ended, or took too long".to_owned() } else { printable(&words) })
}
