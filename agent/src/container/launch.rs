//! Starts a helper and takes over what it made: the process, its pipes or its terminal.

use std::{
    fs::File,
    io::{self, IoSliceMut, PipeReader, PipeWriter},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Weak},
};

use bulkhead_protocol::{
    agent::server::{self as api, preserved::Kind},
    limits::PRESERVED_MAX,
};
use command_fds::{CommandFdExt, FdMapping};
use rustix::{
    io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use thiserror::Error;
use tokio::{
    io::Interest,
    sync::{oneshot, watch},
};

use super::process::Process;
use crate::{
    channel::Channel,
    helper::{
        HELPER, Order,
        report::{self, FailureKind, Outcome},
    },
    reaper::{Exit, Reaper},
    relay::{self, Source},
    streams::{MissingStream, Streams},
};

/// Most bytes of reports kept from one helper.
const REPORTS_MAX: usize = 256 << 10;
/// Number of the first descriptor behind the standard streams.
const FIRST_PRESERVED: RawFd = 3;

/// Why no process came to be.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A stream that the call named is not there.
    #[error(transparent)]
    Stream(#[from] MissingStream),
    /// No pipe or socket for its standard streams.
    #[error("set up standard streams: {0}")]
    Stdio(#[source] io::Error),
    /// No helper.
    #[error("start the container helper: {0}")]
    Helper(#[source] io::Error),
    /// A terminal without a stream for what it shows.
    #[error("a terminal needs a standard output")]
    Unseen,
    /// The terminal did not arrive.
    #[error("receive the terminal: {0}")]
    Terminal(#[source] io::Error),
    /// The helper said why.
    #[error("{1}")]
    Refused(FailureKind, String),
}

/// The host's streams, claimed.
#[derive(Debug)]
pub struct HostStreams {
    stdin: Option<Channel>,
    stdout: Option<Channel>,
    stderr: Option<Channel>,
    preserved: Vec<(Kind, Channel)>,
}

impl HostStreams {
    /// Claims the streams that a call names; waits for them if need be.
    pub async fn claim(streams: &Streams, numbers: &api::Stdio) -> Result<Self, MissingStream> {
        let mut preserved = Vec::new();
        // The host sends no more.
        for wanted in numbers.preserved.iter().take(PRESERVED_MAX) {
            let stream = streams.claim(wanted.stream).await?;
            let stream = stream.ok_or_else(|| MissingStream::new(wanted.stream))?;
            preserved.push((wanted.kind.enum_value_or_default(), stream));
        }
        Ok(Self {
            preserved,
            stdin: streams.claim(numbers.stdin).await?,
            stdout: streams.claim(numbers.stdout).await?,
            stderr: streams.claim(numbers.stderr).await?,
        })
    }
}

/// The agent's ends of a process's standard streams.
enum Ends {
    Pipes { stdin: Option<PipeWriter>, stdout: Option<PipeReader>, stderr: Option<PipeReader> },
    Terminal(ConsoleSocket),
}

/// Where libcontainer sends the master of a new terminal.
struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Nothing depends on it: the name is never used again.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Runs a helper for `order`; `console` is where its terminal arrives, if it has one.
pub async fn launch(
    reaper: &Reaper,
    mut order: Order,
    console: Option<PathBuf>,
    mut host: HostStreams,
) -> Result<Process, LaunchError> {
    order.console_socket.clone_from(&console);
    let (mut command, ends) = prepare(console, &host).map_err(LaunchError::Stdio)?;
    let further = preserve(&mut command, std::mem::take(&mut host.preserved))?;
    order.preserved = further.len() as u8;
    let launching = reaper.launch();
    let pid = run_helper(reaper, &mut order, &mut command).await?;
    // The agent's copies of the process's ends: the relays wait for the last one to close.
    drop(command);
    let child = launching.watch(pid).ok_or_else(|| {
        LaunchError::Refused(FailureKind::Step, format!("the helper reported PID {pid}"))
    })?;
    drop(launching);
    let relays = match ends {
        Ends::Pipes { stdin, stdout, stderr } => {
            connect_pipes(stdin, stdout, stderr, host, child.exit())
        }
        Ends::Terminal(socket) => connect_terminal(&socket, host, child.exit()),
    };
    match relays {
        Ok((master, mut drained)) => {
            drained.extend(further.into_iter().filter_map(|end| end.relay(child.exit())));
            Ok(Process::new(child, master, drained))
        }
        Err(error) => {
            // A process without its streams is of no use, and nobody would wait for it.
            let _ = child.signal(rustix::process::Signal::KILL);
            Err(error)
        }
    }
}

/// The helper's command with the process's ends of the streams, and the agent's ends.
fn prepare(console: Option<PathBuf>, host: &HostStreams) -> io::Result<(Command, Ends)> {
    let mut command = Command::new("/proc/self/exe");
    command.env_clear().current_dir("/").arg(HELPER);
    if let Some(path) = console {
        command.stdin(null()?).stdout(null()?).stderr(null()?);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        return Ok((command, Ends::Terminal(ConsoleSocket { listener, path })));
    }
    let (stdin, near_stdin) = match host.stdin {
        Some(_) => io::pipe().map(|(reader, writer)| (reader.into(), Some(writer)))?,
        None => (null()?, None),
    };
    let output = |wanted: bool| -> io::Result<(Stdio, Option<PipeReader>)> {
        match wanted {
            true => io::pipe().map(|(reader, writer)| (writer.into(), Some(reader))),
            false => Ok((null()?, None)),
        }
    };
    let (stdout, near_stdout) = output(host.stdout.is_some())?;
    let (stderr, near_stderr) = output(host.stderr.is_some())?;
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    let ends = Ends::Pipes { stdin: near_stdin, stdout: near_stdout, stderr: near_stderr };
    Ok((command, ends))
}

/// `/dev/null` for reading and writing, as a daemon's streams are.
fn null() -> io::Result<Stdio> {
    let file = File::options().read(true).write(true).open("/dev/null")?;
    Ok(file.into())
}

/// The agent's end of a descriptor behind the standard streams, and the host's stream.
struct Further {
    kind: Kind,
    near: Channel,
    stream: Channel,
}

impl Further {
    /// Starts to relay; fires when the process's bytes have been handed over, if it writes any.
    fn relay(self, exit: watch::Receiver<Option<Exit>>) -> Option<oneshot::Receiver<()>> {
        let Self { kind, near, stream } = self;
        match kind {
            Kind::READER => {
                relay::input(stream, near, exit);
                None
            }
            Kind::WRITER => Some(relay::output(Source::Pipe(near), stream, exit)),
            Kind::SOCKET => Some(relay::socket(near, stream, exit)),
        }
    }
}

/// Gives the command a descriptor from 3 on for each of the host's streams; the agent's ends.
fn preserve(
    command: &mut Command,
    streams: Vec<(Kind, Channel)>,
) -> Result<Vec<Further>, LaunchError> {
    if streams.is_empty() {
        return Ok(Vec::new());
    }
    let mut mappings = Vec::new();
    let mut ends = Vec::new();
    for (child_fd, (kind, stream)) in (FIRST_PRESERVED..).zip(streams) {
        let (near, parent_fd) = further_pair(kind).map_err(LaunchError::Stdio)?;
        mappings.push(FdMapping { parent_fd, child_fd });
        ends.push(Further { kind, near, stream });
    }
    // Fails for numbers that are given twice.
    command.fd_mappings(mappings).map_err(|e| LaunchError::Stdio(io::Error::other(e)))?;
    Ok(ends)
}

/// The agent's end and the process's.
fn further_pair(kind: Kind) -> io::Result<(Channel, OwnedFd)> {
    match kind {
        Kind::READER => {
            let (reader, writer) = io::pipe()?;
            Ok((Channel::with(writer.into(), Interest::WRITABLE)?, reader.into()))
        }
        Kind::WRITER => {
            let (reader, writer) = io::pipe()?;
            Ok((Channel::with(reader.into(), Interest::READABLE)?, writer.into()))
        }
        Kind::SOCKET => {
            let (near, far) = UnixStream::pair()?;
            Ok((Channel::new(near.into())?, far.into()))
        }
    }
}

/// Runs the helper to its end; the PID of what it made.
async fn run_helper(
    reaper: &Reaper,
    order: &mut Order,
    command: &mut Command,
) -> Result<u32, LaunchError> {
    let (reports, writer) = io::pipe().map_err(LaunchError::Helper)?;
    let reports = Channel::with(OwnedFd::from(reports), Interest::READABLE);
    let reports = reports.map_err(LaunchError::Helper)?;
    // Above those that the process gets.
    let writer = fcntl_dupfd_cloexec(&writer, FIRST_PRESERVED + RawFd::from(order.preserved))
        .map_err(|e| LaunchError::Helper(e.into()))?;
    order.report_fd = writer.as_raw_fd();
    let text = serde_json::to_string(order).map_err(io::Error::from);
    command.arg(text.map_err(LaunchError::Helper)?);
    // Inherited by this one child: nothing else is spawned before the writer is dropped.
    fcntl_setfd(&writer, FdFlags::empty()).map_err(|e| LaunchError::Helper(e.into()))?;
    let helper = command.spawn().map_err(LaunchError::Helper)?.id();
    drop(writer);
    let helper = reaper
        .watch(helper)
        .ok_or_else(|| LaunchError::Helper(io::Error::other("the helper has no PID")))?;
    let lines = gather(&reports, helper.exit()).await;
    match report::outcome(&lines) {
        Outcome::Created(pid) => Ok(pid),
        Outcome::Failed(kind, message) => Err(LaunchError::Refused(kind, message)),
    }
}

/// Reads reports until the helper has ended. The pipe may outlive it: the process it made holds
/// it until it runs its program.
async fn gather(reports: &Channel, mut exit: watch::Receiver<Option<Exit>>) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = tokio::select! {
            biased;
            result = reports.read(&mut buffer) => result.unwrap_or(0),
            _ = exit.wait_for(Option::is_some) => break,
        };
        if count == 0 {
            // Closed before the helper has ended: it has nothing more to say.
            let _ = exit.wait_for(Option::is_some).await;
            break;
        }
        keep(&mut lines, &buffer[..count]);
    }
    while let Ok(Some(count @ 1..)) = reports.read_now(&mut buffer) {
        keep(&mut lines, &buffer[..count]);
    }
    lines
}

fn keep(lines: &mut Vec<u8>, more: &[u8]) {
    let room = REPORTS_MAX.saturating_sub(lines.len());
    lines.extend_from_slice(&more[..more.len().min(room)]);
}

/// The terminal's master while it is in use, and who tells that an output was handed over.
type Relays = (Option<Weak<Channel>>, Vec<oneshot::Receiver<()>>);

fn connect_pipes(
    stdin: Option<PipeWriter>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
    host: HostStreams,
    exit: watch::Receiver<Option<Exit>>,
) -> Result<Relays, LaunchError> {
    if let (Some(pipe), Some(stream)) = (stdin, host.stdin) {
        let pipe = Channel::with(pipe.into(), Interest::WRITABLE).map_err(LaunchError::Stdio)?;
        relay::input(stream, pipe, exit.clone());
    }
    let mut drained = Vec::new();
    for (pipe, stream) in [(stdout, host.stdout), (stderr, host.stderr)] {
        if let (Some(pipe), Some(stream)) = (pipe, stream) {
            let pipe = Channel::with(pipe.into(), Interest::READABLE);
            let source = Source::Pipe(pipe.map_err(LaunchError::Stdio)?);
            drained.push(relay::output(source, stream, exit.clone()));
        }
    }
    Ok((None, drained))
}

fn connect_terminal(
    socket: &ConsoleSocket,
    host: HostStreams,
    exit: watch::Receiver<Option<Exit>>,
) -> Result<Relays, LaunchError> {
    let master = receive_terminal(&socket.listener).map_err(LaunchError::Terminal)?;
    let master = Arc::new(Channel::new(master).map_err(LaunchError::Terminal)?);
    let in_use = Arc::downgrade(&master);
    // It has one output; the stream for errors stays silent.
    let sink = host.stdout.ok_or(LaunchError::Unseen)?;
    let drained = relay::terminal(master, host.stdin, sink, exit);
    Ok((Some(in_use), vec![drained]))
}

/// The helper has ended well, so the terminal has been sent and is in the socket; a try before that
/// failed has left a connection without one.
fn receive_terminal(listener: &UnixListener) -> io::Result<OwnedFd> {
    loop {
        let (connection, _) = listener.accept()?;
        match receive_fd(&connection) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            received => return received,
        }
    }
}

fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut text = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut text)];
    recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(descriptor);
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
