//! Terminals of the host: the caller's own, and a new one whose master goes to a client.
//!
//! The guest's terminal does all line editing and echo; the host's end of the relay is raw.

mod socket;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use thiserror::Error;

use crate::failure::Explain;

pub use socket::open_and_send;

/// Why there is no terminal.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// None of the standard streams is one, and there is no controlling one; runc's words.
    #[error("provided file is not a console")]
    NoTerminal(#[source] io::Error),
    /// Changing or reading its modes.
    #[error("setting up the terminal")]
    Mode(#[source] io::Error),
    /// Making a pseudoterminal.
    #[error("making a pseudoterminal")]
    Make(#[source] io::Error),
    /// Connecting to the console socket.
    #[error("console socket {0}")]
    Connect(PathBuf, #[source] io::Error),
    /// Sending the master.
    #[error("sending the terminal to console socket {0}")]
    Send(PathBuf, #[source] io::Error),
}

impl Explain for ConsoleError {
    fn phase(&self) -> &'static str {
        "allocating the terminal"
    }

    fn fix(&self) -> String {
        match self {
            Self::NoTerminal(_) => "run from a terminal, or set process.terminal to false".into(),
            Self::Connect(..) => "its owner must listen before the container is created".into(),
            _ => String::new(),
        }
    }
}

/// The caller's terminal; its mode comes back when this is dropped.
#[derive(Debug)]
pub struct CallerTerminal {
    terminal: OwnedFd,
    before: Option<Termios>,
}

impl CallerTerminal {
    /// Finds it among the standard streams, or as the controlling one.
    pub fn find() -> Result<Self, ConsoleError> {
        let terminal = find().map_err(ConsoleError::NoTerminal)?;
        Ok(Self { terminal, before: None })
    }

    /// Makes it raw.
    pub fn make_raw(&mut self) -> Result<(), ConsoleError> {
        let before = tcgetattr(&self.terminal).map_err(|e| ConsoleError::Mode(e.into()))?;
        make_raw(&self.terminal, before.clone())?;
        self.before.get_or_insert(before);
        Ok(())
    }
}

impl AsFd for CallerTerminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }
}

impl Drop for CallerTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // A terminal that has gone away needs no restoring.
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, before);
        }
    }
}

/// Rows and columns of a terminal; `None` while they are unknown.
pub fn size(terminal: impl AsFd) -> Option<(u32, u32)> {
    let size = tcgetwinsize(terminal).ok()?;
    let known = size.ws_row > 0 && size.ws_col > 0;
    known.then_some((size.ws_row.into(), size.ws_col.into()))
}

fn make_raw(terminal: impl AsFd, mut modes: Termios) -> Result<(), ConsoleError> {
    modes.make_raw();
    tcsetattr(terminal, OptionalActions::Now, &modes).map_err(|e| ConsoleError::Mode(e.into()))
}

/// As runc: standard error first, since it is redirected least, then the controlling terminal.
fn find() -> io::Result<OwnedFd> {
    let (stderr, stdout, stdin) = (io::stderr(), io::stdout(), io::stdin());
    for fd in [stderr.as_fd(), stdout.as_fd(), stdin.as_fd()] {
        if rustix::termios::isatty(fd) {
            return fd.try_clone_to_owned();
        }
    }
    let file = File::options().read(true).write(true).open("/dev/tty")?;
    Ok(OwnedFd::from(file))
}
