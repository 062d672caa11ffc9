//! Standard streams between the host and the guest, one thread for each direction.
//!
//! Threads, because the host's descriptors are shared with other programs: making them
//! non-blocking would change them under everybody's hands. Threads have small stacks and hold
//! one buffer each. The guest's bytes are passed on as they are.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_protocol::guest::STDIO_PORT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::isatty;
use thiserror::Error;

use crate::agent_client::Streams;
use crate::failure::Explain;
use crate::preserved::{Kind, Preserved};
use crate::vsock::{self, VsockError};

/// Bytes that are moved at once.
const CHUNK: usize = 64 << 10;
/// Stack of a relay thread: the copy loop and nothing else.
const STACK: usize = 64 << 10;

/// Why streams cannot be relayed.
#[derive(Debug, Error)]
pub enum RelayError {
    /// Opening a stream to the guest.
    #[error("opening a standard stream")]
    Open(#[source] VsockError),
    /// Naming it.
    #[error("naming a standard stream")]
    Name(#[source] io::Error),
    /// A descriptor of the host.
    #[error("taking standard stream {0}")]
    Take(&'static str, #[source] io::Error),
    /// Starting a thread.
    #[error("starting a relay")]
    Thread(#[source] io::Error),
}

impl Explain for RelayError {
    fn phase(&self) -> &'static str {
        "connecting the standard streams"
    }
}

/// The host's ends.
#[derive(Debug)]
pub struct HostStreams {
    stdin: OwnedFd,
    stdout: OwnedFd,
    /// None with a terminal, which has one output.
    stderr: Option<OwnedFd>,
    /// The input is a terminal whose end is that of the process's terminal.
    hangs_up: bool,
}

impl HostStreams {
    /// The caller's own standard streams; with a terminal, the guest has no standard error.
    pub fn inherited(terminal: bool) -> Result<Self, RelayError> {
        let take = |name, fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|e| RelayError::Take(name, e))
        };
        Ok(Self {
            stdin: take("stdin", io::stdin().as_fd())?,
            stdout: take("stdout", io::stdout().as_fd())?,
            stderr: match terminal {
                true => None,
                false => Some(take("stderr", io::stderr().as_fd())?),
            },
            hangs_up: terminal && isatty(io::stdin()),
        })
    }

    /// Both directions on one terminal.
    pub fn terminal(terminal: &OwnedFd) -> Result<Self, RelayError> {
        let take = |name| terminal.try_clone().map_err(|e| RelayError::Take(name, e));
        Ok(Self { stdin: take("stdin")?, stdout: take("stdout")?, stderr: None, hangs_up: true })
    }
}

/// Open streams, not yet connected to the host's.
#[derive(Debug)]
pub struct GuestStreams {
    stdin: UnixStream,
    stdout: UnixStream,
    stderr: Option<UnixStream>,
    preserved: Vec<UnixStream>,
    /// Their numbers, for the call that uses them.
    pub numbers: Streams,
}

impl GuestStreams {
    /// Opens a process's streams through the VMM's `socket`. Numbers follow from the pid of
    /// this process, so no two relays of a sandbox use the same.
    pub fn open(
        socket: &Path,
        stderr: bool,
        preserved: &[Preserved],
        limit: Duration,
    ) -> Result<Self, RelayError> {
        let pid = u64::from(std::process::id());
        let base = pid << 2;
        // Pids have 22 bits: these are above those of every process's standard streams.
        let further = (1..).map(|index: u64| pid << 32 | index);
        let numbers = Streams {
            stdin: base | 1,
            stdout: base | 2,
            stderr: if stderr { base | 3 } else { 0 },
            preserved: preserved.iter().map(|preserved| preserved.kind).zip(further).collect(),
        };
        let open = |number| open_stream(socket, number, limit);
        Ok(Self {
            stdin: open(numbers.stdin)?,
            stdout: open(numbers.stdout)?,
            stderr: if stderr { Some(open(numbers.stderr)?) } else { None },
            preserved: numbers.preserved.iter().map(|(_, n)| open(*n)).collect::<Result<_, _>>()?,
            numbers,
        })
    }
}

/// Opens the stream `number` to the guest.
pub(super) fn open_stream(
    socket: &Path,
    number: u64,
    limit: Duration,
) -> Result<UnixStream, RelayError> {
    let deadline = Instant::now() + limit;
    let mut stream = vsock::connect(socket, STDIO_PORT, deadline).map_err(RelayError::Open)?;
    stream.write_all(&number.to_le_bytes()).map_err(RelayError::Name)?;
    Ok(stream)
}

/// Relays that run. The descriptor is at its end once every output has been passed on.
#[derive(Debug)]
pub struct Relay {
    outputs: PipeReader,
}

impl Relay {
    /// Starts to relay. The input's thread ends with the process: it may be waiting for input
    /// that never comes, and nothing is lost with it.
    pub fn start(
        host: HostStreams,
        preserved: Vec<Preserved>,
        guest: GuestStreams,
    ) -> Result<Self, RelayError> {
        let (outputs, running) = io::pipe().map_err(RelayError::Thread)?;
        let GuestStreams { stdin, stdout, stderr, preserved: streams, .. } = guest;
        for (near, far) in preserved.into_iter().zip(streams) {
            start_preserved(near, far, &running)?;
        }
        let shown = match host.hangs_up {
            true => Some(stdout.try_clone().map_err(RelayError::Thread)?),
            false => None,
        };
        spawn("stdin", move |chunk| copy_input(host.stdin.into(), stdin, shown, chunk))?;
        if let (Some(to), Some(from)) = (host.stderr, stderr) {
            let running = running.try_clone().map_err(RelayError::Thread)?;
            spawn("stderr", move |chunk| copy_output(from, to.into(), running, chunk))?;
        }
        spawn("stdout", move |chunk| copy_output(stdout, host.stdout.into(), running, chunk))?;
        Ok(Self { outputs })
    }

    /// Waits until every output has been passed on.
    pub fn wait(&self) {
        // Nothing is ever written: this returns at the end, or at an error, which is one.
        let _ = (&self.outputs).read(&mut [0u8; 1]);
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outputs.as_fd()
    }
}

/// Starts to relay one descriptor behind the standard streams.
fn start_preserved(
    near: Preserved,
    far: UnixStream,
    running: &PipeWriter,
) -> Result<(), RelayError> {
    let Preserved { fd, kind } = near;
    let running = || running.try_clone().map_err(RelayError::Thread);
    match kind {
        Kind::Reader => spawn("reader", move |chunk| copy_in(&fd, &far, chunk)),
        Kind::Writer => {
            let running = running()?;
            spawn("writer", move |chunk| copy_output(far, fd.into(), running, chunk))
        }
        Kind::Socket => {
            let (to, from) = (fd.try_clone(), far.try_clone());
            let (to, from) = (to.map_err(RelayError::Thread)?, from.map_err(RelayError::Thread)?);
            let running = running()?;
            spawn("socket out", move |chunk| copy_out(&from, &to, running, chunk))?;
            spawn("socket in", move |chunk| copy_in(&fd, &far, chunk))
        }
    }
}

/// Host to guest, for as long as the guest takes it: a process that has closed its end takes the
/// host's with it. The end of the host's bytes is a half-close.
fn copy_in(from: &OwnedFd, to: &UnixStream, chunk: &mut [u8]) {
    while await_input(from.as_fd(), to.as_fd()) && step(from, to, chunk) {}
    // A guest that has gone needs no end.
    let _ = to.shutdown(Shutdown::Write);
}

/// Guest to host's socket, whose other direction may go on.
fn copy_out(from: &UnixStream, to: &OwnedFd, running: PipeWriter, chunk: &mut [u8]) {
    copy(from, to, chunk);
    // Fails for a peer that has gone.
    let _ = rustix::net::shutdown(to, rustix::net::Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
    drop(running);
}

/// Waits until `from` can be read, or is at its end; false if `to` has gone before.
fn await_input(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(from, PollFlags::IN),
            PollFd::from_borrowed_fd(to, PollFlags::empty()),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) if !fds[1].revents().is_empty() => return false,
            Ok(_) => return true,
        }
    }
}

/// Starts a thread with a buffer. The buffer is made here: a thread that allocates much gets a
/// heap of its own.
fn spawn(name: &str, run: impl FnOnce(&mut [u8]) + Send + 'static) -> Result<(), RelayError> {
    let mut chunk = vec![0u8; CHUNK];
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(move || run(&mut chunk))
        .map(drop)
        .map_err(RelayError::Thread)
}

/// Host to guest. The end of the input becomes the end of the stream. A terminal that has gone takes
/// the stream of what it has `shown` with it, so that the guest's hangs up, too.
fn copy_input(from: File, to: UnixStream, shown: Option<UnixStream>, chunk: &mut [u8]) {
    copy(&from, &to, chunk);
    // A guest that has gone needs no end of its input.
    let _ = to.shutdown(Shutdown::Write);
    if let Some(shown) = shown.filter(|_| has_gone(&from)) {
        let _ = shown.shutdown(Shutdown::Both);
    }
}

/// Whether the other end of a terminal was closed.
fn has_gone(terminal: &File) -> bool {
    let mut fds = [PollFd::new(terminal, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// Guest to host. A reader of the host that goes away takes the stream with it, so that the
/// guest's writer hears of it as it would of a broken pipe.
fn copy_output(from: UnixStream, to: File, running: PipeWriter, chunk: &mut [u8]) {
    copy(&from, &to, chunk);
    let _ = from.shutdown(Shutdown::Both);
    drop(running);
}

/// Copies until the end or an error; either is the end of the stream.
fn copy(from: impl AsFd, to: impl AsFd, chunk: &mut [u8]) {
    while step(&from, &to, chunk) {}
}

/// Moves what there is; false at the end.
fn step(from: impl AsFd, to: impl AsFd, chunk: &mut [u8]) -> bool {
    match read_some(from.as_fd(), chunk) {
        Ok(0) | Err(_) => false,
        Ok(n) => write_all(to.as_fd(), &chunk[..n]).is_ok(),
    }
}

/// Reads at least one byte, 0 at the end. Others may have made the descriptor non-blocking, and
/// rely on it: it stays so, and this waits.
fn read_some(from: BorrowedFd<'_>, chunk: &mut [u8]) -> rustix::io::Result<usize> {
    loop {
        match rustix::io::read(from, &mut *chunk) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => await_event(from, PollFlags::IN)?,
            result => return result,
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => await_event(to, PollFlags::OUT)?,
            result => bytes = &bytes[result?..],
        }
    }
    Ok(())
}

fn await_event(fd: BorrowedFd<'_>, event: PollFlags) -> rustix::io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(fd, event)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

    use super::*;

    struct Rig {
        relay: Relay,
        stdin: PipeWriter,
        stdout: PipeReader,
        guest_in: UnixStream,
        guest_out: UnixStream,
    }

    fn rig() -> Rig {
        let (host_in, stdin) = io::pipe().unwrap();
        let (stdout, host_out) = io::pipe().unwrap();
        let (guest_in, a) = UnixStream::pair().unwrap();
        let (guest_out, b) = UnixStream::pair().unwrap();
        let host = HostStreams {
            stdin: host_in.into(),
            stdout: host_out.into(),
            stderr: None,
            hangs_up: false,
        };
        let numbers = Streams::default();
        let guest = GuestStreams { stdin: a, stdout: b, stderr: None, preserved: vec![], numbers };
        let relay = Relay::start(host, vec![], guest).unwrap();
        Rig { relay, stdin, stdout, guest_in, guest_out }
    }

    #[test]
    fn end_of_input_becomes_a_half_close_and_output_goes_on() {
        let mut rig = rig();
        rig.stdin.write_all(b"in").unwrap();
        drop(rig.stdin);
        let mut got = String::new();
        rig.guest_in.read_to_string(&mut got).unwrap();
        assert_eq!(got, "in");
        rig.guest_out.write_all(b"out").unwrap();
        drop(rig.guest_out);
        let mut got = String::new();
        rig.stdout.read_to_string(&mut got).unwrap();
        assert_eq!(got, "out");
        rig.relay.outputs.read_to_string(&mut got).unwrap();
    }

    #[test]
    fn terminal_that_hangs_up_ends_both_streams() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let (mut guest_in, stdin) = UnixStream::pair().unwrap();
        let (mut guest_out, stdout) = UnixStream::pair().unwrap();
        let guest = GuestStreams {
            stdin,
            stdout,
            stderr: None,
            preserved: vec![],
            numbers: Streams::default(),
        };
        let relay = Relay::start(HostStreams::terminal(&slave).unwrap(), vec![], guest).unwrap();
        drop(slave);
        rustix::io::write(&master, b"in\n").unwrap();
        let mut got = [0; 3];
        guest_in.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"in\n");
        drop(master);
        assert_eq!(guest_in.read(&mut got).unwrap(), 0);
        assert_eq!(guest_out.read(&mut got).unwrap(), 0);
        relay.wait();
    }

    #[test]
    fn large_output_arrives_whole_before_the_relay_ends() {
        let mut rig = rig();
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i * 31 % 251) as u8).collect();
        let sent = bytes.clone();
        let writer = thread::spawn(move || rig.guest_out.write_all(&sent));
        let mut got = vec![];
        rig.stdout.read_to_end(&mut got).unwrap();
        writer.join().unwrap().unwrap();
        assert!(got == bytes);
    }

    #[test]
    fn reader_that_goes_away_ends_the_guests_stream() {
        let mut rig = rig();
        drop(rig.stdout);
        rig.guest_out.write_all(b"x").unwrap();
        assert_eq!(rig.guest_out.read(&mut [0; 1]).unwrap(), 0);
    }

    /// Relays one descriptor; the guest's end of its stream, and what ends with its output.
    fn further(fd: impl Into<OwnedFd>, kind: Kind) -> (UnixStream, PipeReader) {
        let (outputs, running) = io::pipe().unwrap();
        let (guest, far) = UnixStream::pair().unwrap();
        start_preserved(Preserved { fd: fd.into(), kind }, far, &running).unwrap();
        (guest, outputs)
    }

    fn rest(mut from: impl Read) -> String {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn each_direction_of_a_socket_ends_on_its_own() {
        for guest_first in [false, true] {
            let (mut peer, fd) = UnixStream::pair().unwrap();
            let (mut guest, outputs) = further(fd, Kind::Socket);
            let (first, second) =
                if guest_first { (&mut guest, &mut peer) } else { (&mut peer, &mut guest) };
            first.write_all(b"one").unwrap();
            first.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rest(&*second), "one");
            second.write_all(b"two").unwrap();
            second.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rest(&*first), "two");
            assert_eq!(rest(outputs), "");
        }
    }

    #[test]
    fn non_blocking_pipes_stay_so_and_lose_nothing() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i * 31 % 251) as u8).collect();
        let unblock = |fd: BorrowedFd<'_>| rustix::io::ioctl_fionbio(fd, true).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let (mut back, sink) = io::pipe().unwrap();
        unblock(reader.as_fd());
        unblock(sink.as_fd());
        let (kept, kept_sink) = (reader.try_clone().unwrap(), sink.try_clone().unwrap());
        let (from, _) = further(reader, Kind::Reader);
        let (to, outputs) = further(sink, Kind::Writer);
        let sent = bytes.clone();
        let sender = thread::spawn(move || writer.write_all(&sent));
        let guest = thread::spawn(move || io::copy(&mut &from, &mut &to).map(drop));
        let mut got = vec![0; bytes.len()];
        back.read_exact(&mut got).unwrap();
        sender.join().unwrap().unwrap();
        guest.join().unwrap().unwrap();
        assert!(got == bytes);
        assert_eq!(rest(outputs), "");
        for fd in [kept.as_fd(), kept_sink.as_fd()] {
            let flags = rustix::fs::fcntl_getfl(fd).unwrap();
            assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
        }
    }

    #[test]
    fn process_that_closes_its_reader_takes_the_hosts_with_it() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (guest, _) = further(reader, Kind::Reader);
        drop(guest);
        let broken = loop {
            // What is written before the relay hears of it is lost, as in a pipe.
            if let Err(error) = writer.write_all(b"x") {
                break error;
            }
        };
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
    }
}
