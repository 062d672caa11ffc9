//! Why a call on a container failed.

use std::{io, path::PathBuf};

use bulkhead_protocol::{
    id::{ContainerId, IdError},
    limits::{CONTAINERS_MAX, SPEC_MAX},
};
use libcontainer::notify_socket::NotifyListenerError;
use rustix::io::Errno;
use thiserror::Error;

use super::{launch::LaunchError, processes::EXECS_MAX, state::State};
use crate::{block::DiskError, cgroup::CgroupError, limits::LimitsError};

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// Not an id.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No such container.
    #[error("container {0} does not exist")]
    NoContainer(ContainerId),
    /// No such process.
    #[error("process {1} of container {0} does not exist")]
    NoProcess(ContainerId, ContainerId),
    /// The id of the container is taken.
    #[error("container {0} exists already")]
    ContainerExists(ContainerId),
    /// Too many containers.
    #[error("the microVM has {CONTAINERS_MAX} containers")]
    ManyContainers,
    /// A namespace to share that the specification does not have, or has of its own.
    #[error("linux.namespaces: no {0:?} namespace that could be shared")]
    SharedNamespace(String),
    /// The id of the process is taken.
    #[error("process {1} of container {0} exists already")]
    ProcessExists(ContainerId, ContainerId),
    /// Too many processes that nobody waits for.
    #[error("container {0} has {EXECS_MAX} processes that were not waited for")]
    ManyProcesses(ContainerId),
    /// Not possible in this state.
    #[error("cannot {call} container {id}: it is {state}")]
    State {
        /// What was asked.
        call: &'static str,
        /// Of which container.
        id: ContainerId,
        /// What it is.
        state: State,
    },
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// Larger than the protocol allows.
    #[error("the specification is {0} bytes long (at most {SPEC_MAX})")]
    LargeSpec(usize),
    /// Not a specification.
    #[error("parse the specification: {0}")]
    Spec(#[source] serde_json::Error),
    /// Not a signal.
    #[error("{0} is not a signal")]
    Signal(u32),
    /// It has no terminal.
    #[error("the process has no terminal")]
    NoTerminal,
    /// Not a size of a terminal.
    #[error("{0} is not a number of rows or columns")]
    Size(u32),
    /// A file of the agent.
    #[error("{step} {path}: {source}")]
    File {
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Creating or adding failed.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The container did not take the start.
    #[error("start the container: {0}")]
    Start(#[source] NotifyListenerError),
    /// A signal could not be sent.
    #[error("send the signal: {0}")]
    Kill(#[source] Errno),
    /// The terminal did not change.
    #[error("resize the terminal: {0}")]
    Resize(#[source] io::Error),
    /// A cgroup did not do as told.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Limits were not changed.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// Figures have no JSON.
    #[error("write the figures: {0}")]
    Stats(#[source] serde_json::Error),
    /// A disk is not what the host says it is.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The agent is going down.
    #[error("the agent is shutting down")]
    ShuttingDown,
}
