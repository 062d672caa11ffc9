//! A sandbox whose processes run: everything that can happen to it, as one stream of events.

use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bulkhead_protocol::control::{ExitReason, Reply};
use bulkhead_protocol::guest::READY;
use rustix::event::{PollFd, PollFlags, poll};

use super::channel::Channel;
use super::console_tail::ConsoleTail;
use super::{Capacity, SandboxError, Size};
use crate::failure::printable;
use crate::spawn::{Child, describe};
use crate::vsock::until;

/// How long a guest may live on whose agent has gone, or whose file server has left in order.
/// Only a hostile guest does: when its first process ends, its kernel panics at once, and takes on
/// a busy or emulated machine some seconds to say so.
const AFTERLIFE: Duration = Duration::from_secs(10);
/// Most that is kept of what the processes print, in bytes.
const LOG_MAX: usize = 256 << 10;
/// Chunks that are taken at once from a pipe whose writer may never stop: more than a pipe holds.
const DRAIN_CHUNKS: usize = 32;

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest powered off, which only its agent can do.
    PowerOff,
    /// The guest kernel panicked.
    Panic,
    /// The guest's CPU shut down.
    TripleFault,
    /// The runtime stopped it.
    Stopped,
    /// The VMM could not go on, and says why.
    VmmError(String),
    /// The VMM ended without a word.
    VmmDied(String),
    /// The file server ended.
    FileServerDied(String),
    /// The agent ended, but the guest did not.
    AgentGone,
    /// The VMM or the guest agent talks without having been asked.
    Unasked(&'static str),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest agent ended and the guest powered off"),
            Self::Panic => f.write_str("the guest kernel panicked"),
            Self::TripleFault => f.write_str("the guest's CPU shut down after a triple fault"),
            Self::Stopped => f.write_str("the microVM was stopped"),
            Self::VmmError(message) => write!(f, "bulkhead-vmm: {message}"),
            Self::VmmDied(how) => write!(f, "bulkhead-vmm {how}"),
            Self::FileServerDied(how) => write!(f, "bulkhead-fsd {how}"),
            Self::AgentGone => f.write_str("the guest agent died"),
            Self::Unasked(who) => write!(f, "{who} says what nobody asked for"),
        }
    }
}

impl End {
    /// What the user can do.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Panic | Self::TripleFault | Self::PowerOff | Self::AgentGone => {
                "bulkhead --debug shows its console"
            }
            Self::VmmDied(_) | Self::FileServerDied(_) => "bulkhead --debug shows what it said",
            Self::Stopped | Self::VmmError(_) | Self::Unasked(_) => "",
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The caller's descriptor of this index can be read.
    Extra(usize),
    /// The VMM answers a request.
    Reply(Reply),
    /// The agent serves.
    Ready,
    /// The machine has ended; nothing more happens.
    Ended(End),
    /// The deadline came first.
    Timeout,
}

/// The processes of a sandbox. Dropping it kills them and waits for their end.
#[derive(Debug)]
pub struct Machine {
    pub(super) vmm: Child,
    pub(super) fsd: Child,
    pub(super) control: Channel,
    /// Its end tells the file server that the supervisor is gone.
    pub(super) fsd_control: Channel,
    /// Kept open: a detached mount ends when the descriptor that it came with is closed.
    pub(super) _root: Option<OwnedFd>,
    /// The agent's ready connection, until it ends.
    pub(super) ready: Option<UnixStream>,
    pub(super) console: Option<PipeReader>,
    pub(super) output: Option<PipeReader>,
    pub(super) log: Log,
    pub(super) control_ended: bool,
    pub(super) fsd_left: bool,
    /// Its agent serves: from now on nobody is asked anything, and whoever talks all the same
    /// would keep the supervisor from everything else.
    pub(super) booted: bool,
    /// The end that came while an answer was waited for.
    pub(super) ended: Option<End>,
    pub(super) afterlife: Option<Instant>,
    /// What it was made for.
    pub(super) capacity: Capacity,
    /// What it has.
    pub(super) size: Size,
}

/// What the processes and the guest's console say.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    written: usize,
    console: ConsoleTail,
    output: ConsoleTail,
}

/// Places of the machine's own descriptors in the poll set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Control,
    Vmm,
    FileServer,
    Agent,
    Console,
    Output,
    Extra(usize),
}

impl Machine {
    /// Waits for the next event. `extra` descriptors are the caller's; `deadline` is optional.
    pub fn next(
        &mut self,
        extra: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Event, SandboxError> {
        if let Some(end) = self.ended.clone() {
            return Ok(Event::Ended(end));
        }
        loop {
            let limit = [deadline, self.afterlife].into_iter().flatten().min();
            let ready = self.poll(extra, limit)?;
            if let Some(event) = self.handle(&ready)? {
                return Ok(event);
            }
            // Whoever writes without end must not hold up a deadline.
            let written = |source: &Source| matches!(source, Source::Console | Source::Output);
            let idle = ready.iter().all(written);
            let passed = |limit: Option<Instant>| limit.is_some_and(|l| l <= Instant::now());
            if idle && passed(self.afterlife) {
                return Ok(Event::Ended(End::AgentGone));
            }
            if idle && passed(deadline) {
                return Ok(Event::Timeout);
            }
        }
    }

    /// The size that the guest has, as far as it is known.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Kills both processes and waits for their end; they may have ended already.
    pub fn kill(&mut self) -> io::Result<()> {
        let vmm = self.vmm.kill();
        self.fsd.kill()?;
        vmm
    }

    /// Writes a line of the supervisor's into the container's log.
    pub fn note(&mut self, line: &str) {
        self.log.process_output(format!("bulkhead: {line}\n").as_bytes());
    }

    /// What the processes printed and the last of the guest's console, printable.
    pub fn last_words(&mut self) -> String {
        self.drain(Source::Console);
        self.drain(Source::Output);
        let (output, console) = (self.log.output.text(), self.log.console.text());
        let titled = |title: &str, text: &str| match text.trim_end() {
            "" => String::new(),
            text => format!("{title}:\n{text}\n"),
        };
        let words =
            titled("sandbox processes", &output) + &titled("guest console (last 16 KiB)", &console);
        // Best effort: the log is an aid, and the file system of it may be what is full.
        drop(self.log.file.write_all(words.as_bytes()));
        words
    }

    fn poll(
        &self,
        extra: &[BorrowedFd<'_>],
        limit: Option<Instant>,
    ) -> Result<Vec<Source>, SandboxError> {
        let mut sources = Vec::with_capacity(6 + extra.len());
        let mut fds = Vec::with_capacity(6 + extra.len());
        let mut add = |source, fd| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        };
        if !self.control_ended {
            add(Source::Control, self.control.as_fd());
        }
        add(Source::Vmm, self.vmm.as_fd());
        if !self.fsd_left {
            add(Source::FileServer, self.fsd.as_fd());
        }
        let pipes = [(Source::Console, &self.console), (Source::Output, &self.output)];
        for (source, pipe) in pipes {
            if let Some(pipe) = pipe {
                add(source, pipe.as_fd());
            }
        }
        if let Some(ready) = &self.ready {
            add(Source::Agent, ready.as_fd());
        }
        for (i, fd) in extra.iter().enumerate() {
            add(Source::Extra(i), *fd);
        }
        let timeout = limit.map(until);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(SandboxError::Poll(e.into())),
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(sources.into_iter().zip(ready).filter(|(_, r)| *r).map(|(s, _)| s).collect())
    }

    /// Carries out what the machine's own descriptors ask for. The VMM's last message comes
    /// before its end, and its end before what follows from it, so that the cause is named.
    fn handle(&mut self, ready: &[Source]) -> Result<Option<Event>, SandboxError> {
        let mut extra = None;
        for source in ready {
            let event = match *source {
                Source::Control => self.control_event()?,
                Source::Vmm => Some(Event::Ended(self.vmm_end()?)),
                Source::FileServer => self.file_server_event()?,
                Source::Agent => self.agent_event()?,
                Source::Console | Source::Output => {
                    self.drain(*source);
                    None
                }
                Source::Extra(i) => {
                    extra = extra.or(Some(Event::Extra(i)));
                    None
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(extra)
    }

    fn control_event(&mut self) -> Result<Option<Event>, SandboxError> {
        match self.control.receive::<Reply>()? {
            Some(Reply::Exited { reason }) => Ok(Some(Event::Ended(self.end_of(reason)))),
            Some(_) if self.booted => Ok(Some(Event::Ended(End::Unasked(self.vmm.name)))),
            Some(reply) => Ok(Some(Event::Reply(reply))),
            None => {
                self.control_ended = true;
                Ok(None)
            }
        }
    }

    /// Why the VMM's process has ended: what it said last, or how.
    pub(super) fn vmm_end(&mut self) -> Result<End, SandboxError> {
        while let Some(reply) = self.control.receive::<Reply>()? {
            if let Reply::Exited { reason } = reply {
                return Ok(self.end_of(reason));
            }
        }
        let status = self.vmm.try_wait().map_err(|e| SandboxError::Channel(self.vmm.name, e))?;
        Ok(End::VmmDied(status.as_ref().map_or("ended".to_owned(), describe)))
    }

    /// What the VMM's last message means. A VMM that gives up because its file server has died
    /// is not the one to name.
    pub(super) fn end_of(&mut self, reason: ExitReason) -> End {
        match reason {
            ExitReason::PowerOff => End::PowerOff,
            ExitReason::Panic => End::Panic,
            ExitReason::TripleFault => End::TripleFault,
            ExitReason::Stopped => End::Stopped,
            ExitReason::Error { message } => match self.fsd.try_wait() {
                Ok(Some(status)) if status.exit_status() != Some(0) => {
                    End::FileServerDied(describe(&status))
                }
                _ => End::VmmError(printable(&message)),
            },
        }
    }

    /// A file server that leaves in order has lost its VMM, whose end comes in a moment.
    fn file_server_event(&mut self) -> Result<Option<Event>, SandboxError> {
        let status = self.fsd.try_wait().map_err(|e| SandboxError::Channel(self.fsd.name, e))?;
        match status {
            Some(status) if status.exit_status() == Some(0) => {
                self.fsd_left = true;
                self.afterlife.get_or_insert(Instant::now() + AFTERLIFE);
                Ok(None)
            }
            Some(status) => Ok(Some(Event::Ended(End::FileServerDied(describe(&status))))),
            None => Ok(None),
        }
    }

    fn agent_event(&mut self) -> Result<Option<Event>, SandboxError> {
        let Some(mut stream) = self.ready.as_ref() else {
            return Ok(None);
        };
        let mut byte = [0u8; 1];
        match stream.read(&mut byte) {
            Ok(1) if self.booted => Ok(Some(Event::Ended(End::Unasked("the guest agent")))),
            Ok(1) if byte[0] == READY => {
                self.booted = true;
                Ok(Some(Event::Ready))
            }
            Ok(1) => Err(SandboxError::Version(byte[0])),
            Err(e) if is_retry(&e) => Ok(None),
            _ => {
                self.ready = None;
                self.afterlife.get_or_insert(Instant::now() + AFTERLIFE);
                Ok(None)
            }
        }
    }

    /// Takes what a pipe holds now; forgets a pipe that has ended.
    fn drain(&mut self, source: Source) {
        let console = source == Source::Console;
        let pipe = if console { &mut self.console } else { &mut self.output };
        let mut chunk = [0u8; 4096];
        for _ in 0..DRAIN_CHUNKS {
            let Some(reader) = pipe.as_mut() else { return };
            match reader.read(&mut chunk) {
                Ok(n) if n > 0 && console => self.log.console.push(&chunk[..n]),
                Ok(n) if n > 0 => self.log.process_output(&chunk[..n]),
                Err(e) if is_retry(&e) => return,
                _ => *pipe = None,
            }
        }
    }
}

impl Log {
    pub fn new(file: File) -> Self {
        let (console, output) = Default::default();
        Self { file, written: 0, console, output }
    }

    fn process_output(&mut self, bytes: &[u8]) {
        self.output.push(bytes);
        self.written = self.written.saturating_add(bytes.len());
        if self.written <= LOG_MAX {
            let text: String = String::from_utf8_lossy(bytes)
                .chars()
                .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
                .collect();
            // Best effort, as for the last words.
            drop(self.file.write_all(text.as_bytes()));
        }
    }
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
