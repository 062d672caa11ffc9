//! Client of the agent (`protocol/proto/agent.proto`) over ttrpc.
//!
//! The agent is hostile: every reply is bounded before it is read and checked before it is
//! used, every call but [`Call::wait`] has a limit, and a closed connection ends a call at once.
//!
//! One connection carries one call at a time. That needs no thread and no lock, and a call that
//! waits for hours (`Wait`) is one descriptor in its owner's poll set. The client of the ttrpc
//! crate keeps two threads for each connection, one of which wakes up a hundred times a second.

mod calls;
mod resources;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_protocol::guest::AGENT_PORT;
use thiserror::Error;
use ttrpc::Code;

use crate::failure::{EXIT_CANNOT_RUN, EXIT_NOT_FOUND, Explain, printable};
use crate::vsock::{self, VsockError};

pub use calls::{
    ExitStatus, GuestMemory, GuestSpec, ProcessEntry, ProcessName, Streams, wait_reply,
};
pub use resources::oom_reply;
pub use wire::{Call, Progress};

/// Why a call to the agent failed.
#[derive(Debug, Error)]
pub enum AgentError {
    /// No connection to the agent.
    #[error("connecting to the agent")]
    Connect(#[source] VsockError),
    /// Writing the request.
    #[error("calling {method}")]
    Send {
        /// The call.
        method: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading the reply.
    #[error("reading the answer to {method}")]
    Receive {
        /// The call.
        method: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection ended before the reply.
    #[error("the agent closed the connection during {0}")]
    Closed(&'static str),
    /// No reply in time.
    #[error("the agent did not answer {0} in time")]
    Silent(&'static str),
    /// The reply is not what the protocol allows.
    #[error("the agent answered {method} with garbage: {what}")]
    Garbage {
        /// The call.
        method: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The agent refuses.
    #[error("{}", refusal(*.code, .message))]
    Refused {
        /// The call.
        method: &'static str,
        /// Status of the reply.
        code: Code,
        /// What the agent says, made printable.
        message: String,
    },
}

fn refusal(code: Code, message: &str) -> String {
    match message {
        "" => format!("the agent refused ({code:?})"),
        message => message.to_owned(),
    }
}

impl AgentError {
    /// Status of a refusal.
    pub fn refused_as(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    fn refused(method: &'static str, code: Code, message: &str) -> Self {
        Self::Refused { method, code, message: printable(message) }
    }
}

impl Explain for AgentError {
    fn phase(&self) -> &'static str {
        "talking to the guest agent"
    }

    fn fix(&self) -> String {
        match self {
            Self::Refused { .. } => String::new(),
            Self::Silent(_) => "the guest hangs or is very slow; delete --force ends it".into(),
            _ => {
                "is the container still running? the log in its state directory may say more".into()
            }
        }
    }

    fn code(&self) -> u8 {
        match self.refused_as() {
            Some(Code::UNIMPLEMENTED) => EXIT_NOT_FOUND,
            Some(Code::PERMISSION_DENIED) => EXIT_CANNOT_RUN,
            _ => crate::failure::EXIT_FAILURE,
        }
    }
}

/// A way to call the agent of one sandbox.
#[derive(Debug, Clone)]
pub struct AgentClient<'a> {
    socket: &'a Path,
    limit: Duration,
}

impl<'a> AgentClient<'a> {
    /// Calls go through the VMM's `socket`, each within `limit`.
    pub fn new(socket: &'a Path, limit: Duration) -> Self {
        Self { socket, limit }
    }

    /// The same with another limit.
    pub fn with_limit(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// How long a call may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.limit
    }

    fn connect(&self) -> Result<std::os::unix::net::UnixStream, AgentError> {
        vsock::connect(self.socket, AGENT_PORT, self.deadline()).map_err(AgentError::Connect)
    }
}
