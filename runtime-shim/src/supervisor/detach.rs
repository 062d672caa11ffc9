//! A supervisor in a process of its own: this program again, leader of a session, with the
//! standard streams of its caller and one socket, over which it gets its request and reports
//! success or one failure.
//!
//! It is executed anew rather than forked, so that it starts with the memory of a fresh program
//! and `ps` shows what it is.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use bulkhead_protocol::limits::SPEC_MAX;
use rustix::io::FdFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{check_console, lead, lifecycle};
use crate::announce;
use crate::failure::Failure;
use crate::fd_message;
use crate::preserved;
use crate::request::{RootSource, SandboxOptions, SandboxRequest};
use crate::state::{Store, delete};

/// Hidden command of a detached supervisor.
pub const SUPERVISE: &str = "supervise";
/// Largest request: a specification, escaped, and little else.
const REQUEST_MAX: u64 = 4 * SPEC_MAX as u64;
/// Longest report: a line, and the last words of guest and processes, escaped.
const REPORT_MAX: u64 = 512 << 10;
const PHASE: &str = "starting the supervisor";

/// What a detached process reports: its pid, or why it failed.
type Report = Result<u32, Failure>;

/// Starts a supervisor and waits until its container is created (or started, if it is to be).
/// Gives its pid.
pub fn run_detached(request: SandboxRequest) -> Result<u32, Failure> {
    check_console(&request, true)?;
    let mut fds = preserved::borrowed(&request.preserved);
    let has_root = match &request.root {
        RootSource::Bundle => false,
        RootSource::Fd(fd) => {
            fds.push(fd.as_fd());
            true
        }
    };
    let options = &request.options;
    let pid = start(&[SUPERVISE, options.id.as_str()], &(options, has_root), &fds)?;
    if let Err(failure) = options.announcement.make(pid, announce::CONTAINER) {
        // Nobody would know whom to wait for.
        delete(&Store::new(&options.state_root), &options.id, true)?;
        return Err(failure);
    }
    Ok(pid)
}

/// Starts this program as `arguments` with `request`, and waits for its report.
pub fn start(
    arguments: &[&str],
    request: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<u32, Failure> {
    let failed = |e: io::Error| Failure::new(PHASE, e.to_string(), "");
    let (socket, theirs) = UnixStream::pair().map_err(failed)?;
    let mut child = spawn_self(arguments, &theirs).map_err(failed)?;
    drop(theirs);
    let report = write_request(&socket, request, fds).and_then(|()| read_report(&socket));
    match report {
        Ok(Ok(pid)) => Ok(pid),
        Ok(Err(failure)) => {
            let _ = child.wait();
            Err(failure)
        }
        Err(e) => {
            let how = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
            Err(Failure::new(PHASE, format!("it ended without a word ({e}): {how}"), ""))
        }
    }
}

/// In the new process: takes the request, supervises, and gives the exit code.
pub fn serve_detached(channel: RawFd) -> Result<u8, Failure> {
    lead(|leader| {
        serve(channel, |(options, has_root): (SandboxOptions, bool), mut fds, report| {
            // Sent behind the others.
            let root = if has_root { fds.pop() } else { None };
            let root = root.map_or(RootSource::Bundle, RootSource::Fd);
            let preserved = preserved::sent(fds)?;
            lifecycle::supervise(SandboxRequest { options, root, preserved }, leader, report)
        })
    })
}

/// In a new process: takes a request, does `work` with it, and reports what `work` reports, or
/// its failure if it fails before. A failure after the report has nobody to hear it.
pub fn serve<T: DeserializeOwned>(
    channel: RawFd,
    work: impl FnOnce(T, Vec<OwnedFd>, &dyn Fn(u32) -> Result<(), Failure>) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let failed = |e: io::Error| Failure::new(PHASE, e.to_string(), "");
    let channel = take_channel(channel).map_err(failed)?;
    // Fails only for a leader of a session or group, which a started program is not.
    rustix::process::setsid().map_err(|e| failed(e.into()))?;
    let (request, fds) = read_request(&channel).map_err(failed)?;
    let send = |report: &Report| -> io::Result<()> {
        (&channel).write_all(&serde_json::to_vec(report)?)?;
        channel.shutdown(std::net::Shutdown::Both)
    };
    // Opened now: the cgroup that this process joins may deny every device.
    let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
    // A caller that has gone does not know of the container, so it must not stay.
    let result = work(request, fds, &|pid| {
        send(&Ok(pid)).and_then(|()| leave_caller(&null)).map_err(failed)
    });
    if let Err(failure) = &result {
        let _ = send(&Err(failure.clone()));
    }
    result
}

/// Lets go of the caller's working directory and standard streams. The relays have their own
/// descriptors, so that whoever reads an output sees its end when the workload closes it.
fn leave_caller(null: &File) -> io::Result<()> {
    rustix::stdio::dup2_stdin(null)?;
    rustix::stdio::dup2_stdout(null)?;
    rustix::stdio::dup2_stderr(null)?;
    std::env::set_current_dir("/")
}

/// This program again with `channel` as its only descriptor besides the standard streams.
fn spawn_self(arguments: &[&str], channel: &UnixStream) -> io::Result<Child> {
    close_on_exec_above_stdio()?;
    rustix::io::fcntl_setfd(channel, FdFlags::empty())?;
    Command::new("/proc/self/exe")
        .arg0("bulkhead")
        .args(arguments)
        .arg(channel.as_raw_fd().to_string())
        .spawn()
}

/// Marks every descriptor above the standard streams close-on-exec: what a client has left open
/// is not the supervisor's, and a pipe among them would keep its reader waiting.
fn close_on_exec_above_stdio() -> io::Result<()> {
    // SAFETY: sets a flag on this process's descriptors; none is closed.
    match unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn take_channel(number: RawFd) -> io::Result<UnixStream> {
    if number < 3 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: only looks whether the number is that of an open descriptor.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the parent has left it for this program, which has just begun and
    // owns nothing above the standard streams.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(UnixStream::from(fd))
}

/// Eight bytes of length with the descriptors, then JSON.
fn write_request(
    mut socket: &UnixStream,
    request: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(request)?;
    let length = (bytes.len() as u64).to_le_bytes();
    // Eight bytes always fit into an empty socket.
    fd_message::send(socket, &length, fds)?;
    socket.write_all(&bytes)
}

fn read_request<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut length = [0u8; 8];
    let (n, fds) = fd_message::receive(socket, &mut length)?;
    let length = u64::from_le_bytes(length);
    if n != 8 || length > REQUEST_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut bytes = Vec::new();
    socket.take(length).read_to_end(&mut bytes)?;
    Ok((serde_json::from_slice(&bytes)?, fds))
}

fn read_report(socket: &UnixStream) -> io::Result<Report> {
    let mut bytes = Vec::new();
    File::from(OwnedFd::from(socket.try_clone()?)).take(REPORT_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}
