//! One exec from its first stream to its exit code.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{BoxBuilder, Process};
use rustix::event::{PollFd, PollFlags, poll};

use super::{ExecOptions, require_exec, view};
use crate::agent_client::{AgentClient, Call, ProcessName, Progress, wait_reply};
use crate::failure::{EXIT_LOST, Failure};
use crate::preserved::Preserved;
use crate::process::ProcessId;
use crate::signal::Signals;
use crate::state::VSOCK_SOCKET;
use crate::supervisor::relay::{GuestStreams, Relay};
use crate::supervisor::{Terminal, start_failure};

/// A process that runs in the container.
struct Session<'a> {
    agent: AgentClient<'a>,
    name: ProcessName<'a>,
    terminal: Terminal,
    signals: Signals,
}

/// Runs the process; tells `report` the pid of this one once it runs; gives its exit code.
pub(super) fn run(
    options: &ExecOptions,
    preserved: Vec<Preserved>,
    report: &dyn Fn(u32) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let phase = "preparing the exec";
    let view = view(options)?;
    let limit = require_exec(&view)?;
    let socket = view.path(VSOCK_SOCKET);
    let signals = Signals::block().map_err(|e| Failure::new(phase, e.to_string(), ""))?;
    let own = ProcessId::own().map_err(|e| Failure::new(phase, e.to_string(), "mount /proc"))?;
    // Unique in the container: no two processes of the host have the same pid and start.
    let exec_id = format!("exec-{}-{}", own.pid, own.started);
    let terminal = Terminal::open(options.process.terminal().unwrap_or(false), &options.console)?;
    let name = ProcessName { container: &options.id, exec_id: &exec_id };
    let agent = AgentClient::new(&socket, limit);
    let mut session = Session { agent, name, terminal, signals };
    let streams = session.start(options, &preserved, &socket, limit)?;
    let connected = session.connect(streams, preserved);
    let reported = connected.and_then(|connected| report(own.pid).map(|()| connected));
    let (relay, mut wait) = reported.inspect_err(|_| session.abandon())?;
    let code = session.watch(&mut wait)?;
    session.drain(&relay)?;
    Ok(code)
}

impl Session<'_> {
    /// Runs the process; it waits at its streams.
    fn start(
        &self,
        options: &ExecOptions,
        preserved: &[Preserved],
        socket: &Path,
        limit: Duration,
    ) -> Result<GuestStreams, Failure> {
        let process = serde_json::to_vec(&self.sized(&options.process))
            .map_err(|e| Failure::new("preparing the exec", e.to_string(), ""))?;
        let streams = GuestStreams::open(socket, !self.terminal.is_some(), preserved, limit)?;
        let program = options.process.args().iter().flatten().next();
        let program = program.map(String::as_str).unwrap_or_default();
        self.agent
            .exec(self.name, process, &streams.numbers, options.cgroup.as_deref())
            .map_err(|e| start_failure(e, program))?;
        Ok(streams)
    }

    /// Begins to wait for the process's end and connects its streams.
    fn connect(
        &mut self,
        streams: GuestStreams,
        preserved: Vec<Preserved>,
    ) -> Result<(Relay, Call), Failure> {
        let wait = self.agent.wait(self.name)?;
        self.terminal.connect()?;
        let relay = Relay::start(self.terminal.streams()?, preserved, streams)?;
        Ok((relay, wait))
    }

    /// Ends the process: whoever asked for it does not know that it runs.
    fn abandon(&self) {
        // The failure that led here is the one to tell.
        let _ = self.agent.signal(self.name, libc::SIGKILL as u32, false);
    }

    /// `process` with the size of the terminal that it gets: its first look at it must be right,
    /// which a call after the start would be too late for.
    fn sized(&self, process: &Process) -> Process {
        let mut process = process.clone();
        if let Some((rows, columns)) = self.terminal.size() {
            let size = BoxBuilder::default().height(rows).width(columns).build();
            process.set_console_size(size.ok());
        }
        process
    }

    /// Forwards signals until the process has ended.
    fn watch(&mut self, wait: &mut Call) -> Result<u8, Failure> {
        loop {
            self.await_either(wait.as_fd())?;
            self.serve_signals();
            match wait.advance() {
                Ok(Progress::Pending) => {}
                Ok(Progress::Done(payload)) => return Ok(wait_reply(&payload)?.code()),
                Err(e) => return Err(Failure::from(e).with_code(EXIT_LOST)),
            }
        }
    }

    /// Waits until every output is passed on.
    fn drain(&mut self, relay: &Relay) -> Result<(), Failure> {
        while !self.await_either(relay.as_fd())? {
            self.serve_signals();
        }
        Ok(())
    }

    /// Waits for a signal or `fd`; true if the latter can be read.
    fn await_either(&self, fd: BorrowedFd<'_>) -> Result<bool, Failure> {
        let mut fds = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(fd, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => Ok(!fds[1].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(Failure::new("waiting for the process", e.to_string(), "")),
        }
    }

    fn serve_signals(&mut self) {
        while let Some(signal) = self.signals.take() {
            if signal == libc::SIGWINCH as u32 {
                self.resize();
            } else {
                // A process that has just ended is no error.
                let _ = self.agent.signal(self.name, signal, false);
            }
        }
    }

    fn resize(&self) {
        if let Some((rows, columns)) = self.terminal.size() {
            // The size of a terminal that has just gone does not matter.
            let _ = self.agent.resize(self.name, rows, columns);
        }
    }
}
