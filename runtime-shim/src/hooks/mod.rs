//! OCI hooks (`config.md`, "POSIX-platform Hooks"): programs of the host that run at fixed
//! moments of a container's life.
//!
//! Input: the checked hooks of a plan ([`Hooks`]), or what a record says is still to run after
//! the container. Trusted as the bundle's author is: whoever may write `config.json` chooses what
//! runs here with the runtime's privileges, as with every OCI runtime. Nothing of the guest
//! reaches a hook but the pid and the status that the supervisor itself gives it.
//!
//! `prestart`, `createRuntime`, `poststart` and `poststop` run in the runtime's namespaces, also
//! when the supervisor has entered the container's network namespace. `createContainer` runs on
//! the host, too, in the container's network namespace: the other namespaces of the container are
//! inside the guest. `startContainer` runs there, by the agent, which gets the state for it
//! ([`state_for_guest`]).

mod output;
mod poststop;
mod run;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::failure::{EXIT_FAILURE, Explain};

pub use poststop::run_poststop;
pub use run::{Runner, state_for_guest};

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Moment {
    /// During `create`: the network namespace exists, the container does not.
    Prestart,
    /// The same, behind the prestart hooks.
    CreateRuntime,
    /// The same, behind those, in the container's network namespace.
    CreateContainer,
    /// During `start`, once the container's process runs.
    Poststart,
    /// During `delete`, once nothing of the container is left but its name.
    Poststop,
}

impl Moment {
    /// The specification's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// Status of the container at that moment (`runtime.md`, "State").
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: PathBuf,
    /// Its arguments with its own name first; never empty.
    pub args: Vec<String>,
    /// Its whole environment, each `NAME=VALUE`.
    pub env: Vec<String>,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// The hooks of a container, each list in the order of running.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// See [`Moment::Prestart`].
    pub prestart: Vec<Hook>,
    /// See [`Moment::CreateRuntime`].
    pub create_runtime: Vec<Hook>,
    /// See [`Moment::CreateContainer`].
    pub create_container: Vec<Hook>,
    /// See [`Moment::Poststart`].
    pub poststart: Vec<Hook>,
    /// See [`Moment::Poststop`].
    pub poststop: Vec<Hook>,
}

/// The container as a hook reads it from its standard input, but for its status.
#[derive(Debug, Clone)]
pub struct Container<'a> {
    /// Version of the specification that the bundle follows.
    pub oci_version: &'a str,
    /// Its id.
    pub id: &'a str,
    /// A process in the container's network namespace on the host, or none once it has ended.
    pub pid: Option<u32>,
    /// The bundle's directory.
    pub bundle: &'a std::path::Path,
    /// The root file system's directory.
    pub rootfs: &'a std::path::Path,
    /// The bundle's annotations.
    pub annotations: &'a std::collections::BTreeMap<String, String>,
}

/// Why a hook failed. Each names the hook by its field in `config.json`.
#[derive(Debug, Error)]
pub enum HookError {
    /// The namespaces that hooks run in.
    #[error("opening the runtime's network namespace")]
    Namespace(#[source] io::Error),
    /// What the hook is to read.
    #[error("writing the state for hooks.{moment}[{at}]")]
    State {
        /// Which list.
        moment: Moment,
        /// Which of it.
        at: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program does not start.
    #[error("starting hooks.{moment}[{at}] ({path})")]
    Start {
        /// Which list.
        moment: Moment,
        /// Which of it.
        at: usize,
        /// Its program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program ended in another way than with code 0.
    #[error("hooks.{moment}[{at}] ({path}) {how}{}", ending(.said))]
    Failed {
        /// Which list.
        moment: Moment,
        /// Which of it.
        at: usize,
        /// Its program.
        path: PathBuf,
        /// How it ended.
        how: String,
        /// The end of what it printed.
        said: String,
    },
    /// It took too long and was killed.
    #[error("hooks.{moment}[{at}] ({path}) ran past its timeout of {} s{}", .limit.as_secs(), ending(.said))]
    Timeout {
        /// Which list.
        moment: Moment,
        /// Which of it.
        at: usize,
        /// Its program.
        path: PathBuf,
        /// How long it might have taken.
        limit: Duration,
        /// The end of what it printed.
        said: String,
    },
    /// Watching it.
    #[error("waiting for hooks.{moment}[{at}]")]
    Wait {
        /// Which list.
        moment: Moment,
        /// Which of it.
        at: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller was told to end meanwhile; the hook was killed.
    #[error("interrupted by signal {signal} in hooks.{moment}[{at}]")]
    Interrupted {
        /// Which list.
        moment: Moment,
        /// Which of it.
        at: usize,
        /// The signal.
        signal: u32,
    },
}

/// What a hook printed, as the end of a message.
fn ending(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl Explain for HookError {
    fn phase(&self) -> &'static str {
        "running the hooks"
    }

    fn fix(&self) -> String {
        match self {
            Self::Start { .. } => "correct its path in config.json".into(),
            Self::Timeout { .. } => "is its timeout too short?".into(),
            _ => String::new(),
        }
    }

    fn code(&self) -> u8 {
        match self {
            Self::Interrupted { signal, .. } => crate::signal::exit_code(*signal),
            _ => EXIT_FAILURE,
        }
    }
}
