//! The host's end of a process's streams: pipes, the caller's terminal, or a new one.

use std::os::fd::{AsFd, OwnedFd};

use crate::console::{self, CallerTerminal};
use crate::failure::Failure;
use crate::request::ConsoleMode;

use super::relay::HostStreams;

/// What a process is connected to. Dropping it gives the caller's terminal its mode back.
#[derive(Debug)]
pub enum Terminal {
    /// No terminal.
    None,
    /// The caller's.
    Caller(CallerTerminal),
    /// One whose master a client has.
    Sent(OwnedFd),
}

impl Terminal {
    /// Prepares what `console` asks for a process with or without a terminal.
    pub fn open(terminal: bool, console: &ConsoleMode) -> Result<Self, Failure> {
        match (terminal, console) {
            (false, _) => Ok(Self::None),
            (true, ConsoleMode::Inherit) => Ok(Self::Caller(CallerTerminal::find()?)),
            (true, ConsoleMode::Socket(path)) => Ok(Self::Sent(console::open_and_send(path)?)),
        }
    }

    /// Gives the caller's terminal to the guest. Not done before there is one: until then its
    /// keys interrupt.
    pub fn connect(&mut self) -> Result<(), Failure> {
        match self {
            Self::Caller(terminal) => Ok(terminal.make_raw()?),
            Self::None | Self::Sent(_) => Ok(()),
        }
    }

    /// The descriptors to relay.
    pub fn streams(&self) -> Result<HostStreams, Failure> {
        Ok(match self {
            Self::None => HostStreams::inherited(false)?,
            Self::Caller(_) => HostStreams::inherited(true)?,
            Self::Sent(terminal) => HostStreams::terminal(terminal)?,
        })
    }

    /// Whether there is a terminal.
    pub fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Its rows and columns, if known.
    pub fn size(&self) -> Option<(u32, u32)> {
        match self {
            Self::None => None,
            Self::Caller(terminal) => console::size(terminal.as_fd()),
            Self::Sent(fd) => console::size(fd),
        }
    }
}
