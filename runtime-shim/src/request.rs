//! What a caller asks of a supervisor: one sandbox with one container.
//!
//! Trusted: it comes from the command line. The specification inside has been read, but is
//! checked by [`crate::plan`] in the supervisor.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::announce::Announcement;
use crate::preserved::Preserved;
use crate::uplink;

/// One sandbox to create.
#[derive(Debug)]
pub struct SandboxRequest {
    /// The data that crosses the socket to a detached supervisor.
    pub options: SandboxOptions,
    /// Where the container's root file system comes from.
    pub root: RootSource,
    /// Descriptors that the process gets behind its standard streams.
    pub preserved: Vec<Preserved>,
}

/// The plain part of a [`SandboxRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxOptions {
    /// The container's id, unique below `state_root`.
    pub id: ContainerId,
    /// Directory that holds one directory per container (`--root`).
    pub state_root: PathBuf,
    /// Absolute path of the bundle; relative paths of the specification start here.
    pub bundle: PathBuf,
    /// The OCI runtime configuration.
    pub spec: Spec,
    /// Where the terminal is, if the process has one.
    pub console: ConsoleMode,
    /// Start the workload as soon as it is created (`run`), or wait for `start` (`create`).
    pub start: bool,
    /// Leave the container's state when it has ended; else it is removed (`run` without
    /// `--keep` and `--detach`, `launch --rm`).
    pub keep: bool,
    /// A directory that belongs to this container alone, removed together with its state.
    /// `None` where nothing but the state is the container's own.
    pub scratch: Option<PathBuf>,
    /// `--systemd-cgroup`: the cgroup is that of a scope of systemd.
    #[serde(default)]
    pub systemd_cgroup: bool,
    /// What connects a new network namespace with the host's, where no engine does it.
    pub uplink: Option<uplink::Request>,
    /// Where the supervisor is told once the container is created (or started, if it is to be).
    #[serde(default)]
    pub announcement: Announcement,
    /// Show the guest's console when the sandbox fails, and let the guest kernel talk.
    pub debug: bool,
}

/// Where the container's root file system comes from.
#[derive(Debug)]
pub enum RootSource {
    /// `root.path` of the specification.
    Bundle,
    /// A directory that is open already, for example the root of a detached mount. The
    /// supervisor keeps it open, so the mount lives exactly as long as the sandbox;
    /// `root.path` of the specification is only recorded, `root.readonly` is obeyed.
    Fd(OwnedFd),
}

/// Where the terminal of the container's process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleMode {
    /// The caller's own standard streams; with `process.terminal` the caller's terminal.
    Inherit,
    /// A new pseudoterminal, whose master is sent to this UNIX socket.
    Socket(PathBuf),
}
