//! The helper: the agent re-executed, single-threaded, once for each container or process made.
//!
//! libcontainer changes its caller (directory, dumpable flag, OOM score) and allocates in cloned
//! children, so the agent never calls it. The processes it clones are the agent's children, not
//! the helper's, and stay when the helper ends. Standard streams 0 to 2 of the helper, and
//! descriptors from 3 on that the order counts, become those of the process.

mod adapt;
mod causes;
mod copy_up;
mod devices;
mod executor;
mod hooks;
mod identity;
mod place;
mod program;
pub mod report;
mod sysctl;

use std::{
    error::Error as StdError,
    fs,
    io::{BufReader, BufWriter, Write},
    os::fd::{FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use libcontainer::{
    container::{ContainerStatus, builder::ContainerBuilder},
    error::LibcontainerError,
    oci_spec::runtime::{LinuxIdMapping, Process, Spec},
    syscall::syscall::SyscallType,
};
use rustix::{
    fs::stat,
    io::Errno,
    process::{Resource, getrlimit, setrlimit},
    rand::{GetRandomFlags, getrandom},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use adapt::{SpecError, Task};
use causes::Causes;
use copy_up::CopyUpError;
use devices::{DeviceFilter, DeviceFilterError};
use executor::{ProcessExecutor, own_stdio};
use hooks::StartHooks;
use identity::{Identity, IdentityError};
use report::{FailureKind, Report, Reporter};
use sysctl::SysctlError;

use crate::cgroup::{self, CgroupError};

/// First argument of a re-executed agent.
pub const HELPER: &str = "container-helper";

/// What the helper is to do; its second argument, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Id of the container.
    pub container_id: String,
    /// libcontainer's state of all containers.
    pub state_dir: PathBuf,
    /// Bundle of this container: `spec.json` as the host gave it, later `config.json`.
    pub bundle_dir: PathBuf,
    /// The container's cgroup, absolute in the guest's hierarchy.
    pub cgroup: PathBuf,
    /// Socket that takes the master of the terminal, if there is one.
    pub console_socket: Option<PathBuf>,
    /// The process to add; without it the container is created.
    pub added: Option<Added>,
    /// Descriptors from 3 on that are the process's.
    pub preserved: u8,
    /// Descriptor of the report pipe, above those.
    pub report_fd: RawFd,
}

/// A process to add to a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Added {
    /// File with the OCI process.
    pub process_file: PathBuf,
    /// PID of the container's init.
    pub init_pid: u32,
    /// Part of the container's cgroup to run in, relative to it; without one, where its init is.
    pub cgroup: Option<String>,
}

/// The container's configuration as the host gave it.
pub const SPEC_FILE: &str = "spec.json";
/// What its hooks read, if it has any.
pub const HOOK_STATE_FILE: &str = "hook-state.json";
/// Soft limit of open files of a container's processes.
const OPEN_FILES: u64 = 1024;
const CONFIG_FILE: &str = "config.json";

/// Why nothing was created.
#[derive(Debug, Error)]
enum HelperError {
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("parse {what}: {source}")]
    Parse { what: &'static str, source: serde_json::Error },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("root.path {path:?}: {}", program::words(*.errno))]
    Root { path: PathBuf, errno: Errno },
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{}", chain(.0))]
    Build(#[source] LibcontainerError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    CopyUp(#[from] CopyUpError),
    #[error(transparent)]
    Devices(#[from] DeviceFilterError),
    #[error("record the container's state: {}", chain(.0))]
    Record(#[source] LibcontainerError),
}

impl HelperError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Parse { .. }
            | Self::Spec(_)
            | Self::Sysctl(SysctlError::Name(_) | SysctlError::Missing { .. })
            | Self::Root { .. }
            | Self::Build(
                LibcontainerError::InvalidSpec(_)
                | LibcontainerError::MissingSpec(_)
                | LibcontainerError::Spec(_),
            ) => FailureKind::InvalidSpec,
            _ => FailureKind::Step,
        }
    }
}

fn chain(error: &LibcontainerError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    // This one has its cause in a private field that only its debug text shows.
    if matches!(error, LibcontainerError::CreateContainerError(_)) && !text.contains("os error") {
        text = format!("{text} ({error:?})");
    }
    text
}

/// Runs the helper; returns its exit code. Everything it has to say goes to the report pipe.
pub fn main(order: Option<std::ffi::OsString>) -> i32 {
    let order = order.and_then(|text| text.into_string().ok());
    let Some(order) = order.and_then(|text| serde_json::from_str::<Order>(&text).ok()) else {
        return 2;
    };
    // SAFETY: the agent opened this descriptor for the helper, and nothing else in this process
    // knows it.
    let pipe = unsafe { OwnedFd::from_raw_fd(order.report_fd) };
    let reporter = Arc::new(Reporter::new(pipe));
    Causes::install(Arc::clone(&reporter));
    set_panic_hook(&reporter);
    limit_files();
    seed_names();
    let result = match &order.added {
        None => create(&order, &reporter),
        Some(added) => exec(&order, added, &reporter),
    };
    match result {
        Ok(pid) => {
            reporter.send(&Report::Created { pid });
            0
        }
        Err(error) => {
            reporter.fail(error.kind(), &error.to_string());
            1
        }
    }
}

/// Standard error is the container's already.
fn set_panic_hook(reporter: &Arc<Reporter>) {
    let reporter = Arc::clone(reporter);
    std::panic::set_hook(Box::new(move |panic| {
        reporter.fail(FailureKind::Step, &format!("the container helper: {panic}"));
    }));
}

/// Gives back the agent's own limit of open files: programs expect the usual soft limit where a
/// specification sets none.
fn limit_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(limit.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES)));
    // Lowering a soft limit cannot fail.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// libcontainer draws the names of its sockets from this generator, whose own seed is the time:
/// two helpers that start at one moment would draw the same.
fn seed_names() {
    let mut seed = [0; 8];
    // Without entropy, which the kernel never lacks once the agent runs, the time has to do.
    if getrandom(&mut seed, GetRandomFlags::empty()).is_ok_and(|length| length == seed.len()) {
        fastrand::seed(u64::from_ne_bytes(seed));
    }
}

fn create(order: &Order, reporter: &Arc<Reporter>) -> Result<u32, HelperError> {
    let mut spec = read_spec(order)?;
    let mut task = adapt::container(&mut spec, &order.cgroup)?;
    task.hooks = start_hooks(&mut spec, &order.bundle_dir)?;
    let settings = sysctl::take(&mut spec);
    sysctl::check(&spec)?;
    let filter = DeviceFilter::of(&spec)?;
    check_root(&spec)?;
    copy_up::prepare(&mut spec, &order.bundle_dir, &order.cgroup)?;
    own_pipes(&spec, spec.process().as_ref(), &task);
    write_json(&order.bundle_dir.join(CONFIG_FILE), &spec)?;
    sysctl::apply(&settings)?;
    let mut container = builder(order, task, reporter)?
        .as_init(&order.bundle_dir)
        .with_systemd(false)
        .as_sibling(true)
        .build()
        .map_err(HelperError::Build)?;
    // The container waits to be started: nothing of it has run yet.
    filter.attach(&cgroup::directory(&order.cgroup))?;
    // The agent keeps the real state. Recorded as running, exec needs no other step.
    container.set_status(ContainerStatus::Running).save().map_err(HelperError::Record)?;
    let pid = container.pid().map_or(0, |pid| pid.as_raw());
    Ok(pid.cast_unsigned())
}

/// Takes the hooks that the executor runs.
fn start_hooks(spec: &mut Spec, bundle: &Path) -> Result<Option<StartHooks>, HelperError> {
    let list = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().clone());
    spec.set_hooks(None);
    let Some(list) = list.filter(|list| !list.is_empty()) else { return Ok(None) };
    let state = parse("the state for hooks", &bundle.join(HOOK_STATE_FILE))?;
    Ok(Some(StartHooks { list, state }))
}

fn exec(order: &Order, added: &Added, reporter: &Arc<Reporter>) -> Result<u32, HelperError> {
    let Added { process_file, init_pid, cgroup } = added;
    let part = || -> Result<Option<String>, HelperError> {
        Ok(match cgroup {
            Some(part) => Some(cgroup::existing_part(&order.cgroup, part)?),
            None => cgroup::part_with(&order.cgroup, *init_pid)?,
        })
    };
    let spec = read_spec(order)?;
    let mut process: Process = parse("the process", process_file)?;
    let mut task = adapt::process(&mut process, adapt::seccomp_of(&spec), false)?;
    task.identity = Identity::of(&spec, process.user(), *init_pid)?;
    own_pipes(&spec, Some(&process), &task);
    write_json(process_file, &process)?;
    let add = |part: &Option<String>| {
        builder(order, task.clone(), reporter)?
            .as_tenant()
            .with_detach(true)
            .with_process(Some(process_file))
            .with_sub_cgroup(part.clone())
            .as_sibling(true)
            .build()
            .map_err(HelperError::Build)
    };
    let pid = place::add(part, add, || reporter.send(&Report::Again))?;
    Ok(pid.as_raw().cast_unsigned())
}

fn builder(
    order: &Order,
    task: Task,
    reporter: &Arc<Reporter>,
) -> Result<ContainerBuilder, HelperError> {
    Ok(ContainerBuilder::new(order.container_id.clone(), SyscallType::default())
        .with_root_path(&order.state_dir)
        .map_err(HelperError::Build)?
        .with_console_socket(order.console_socket.as_ref())
        .with_preserved_fds(order.preserved.into())
        .with_executor(ProcessExecutor::new(task, Arc::clone(reporter))))
}

/// libcontainer does not say which path it misses.
fn check_root(spec: &Spec) -> Result<(), HelperError> {
    match spec.root() {
        Some(root) => stat(root.path())
            .map(|_| ())
            .map_err(|errno| HelperError::Root { path: root.path().clone(), errno }),
        None => Ok(()),
    }
}

/// Gives the pipes to the user that the process will have outside of its user namespace.
fn own_pipes(spec: &Spec, process: Option<&Process>, task: &Task) {
    let (Some(process), false) = (process, task.terminal) else {
        return;
    };
    let linux = spec.linux().as_ref();
    let uids = linux.and_then(|l| l.uid_mappings().as_deref());
    let gids = linux.and_then(|l| l.gid_mappings().as_deref());
    let user = process.user();
    if let (Some(uid), Some(gid)) = (outside(uids, user.uid()), outside(gids, user.gid())) {
        own_stdio(uid, Some(gid));
    }
}

fn outside(mappings: Option<&[LinuxIdMapping]>, id: u32) -> Option<u32> {
    let Some(mappings) = mappings.filter(|list| !list.is_empty()) else {
        return Some(id);
    };
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id())?;
        (offset < mapping.size()).then(|| mapping.host_id().checked_add(offset))?
    })
}

fn read_spec(order: &Order) -> Result<Spec, HelperError> {
    parse("the specification", &order.bundle_dir.join(SPEC_FILE))
}

/// Reads through the same reader type as libcontainer does, so that the program holds one copy of
/// the parser.
fn parse<T: serde::de::DeserializeOwned>(
    what: &'static str,
    path: &Path,
) -> Result<T, HelperError> {
    let file = fs::File::open(path)
        .map_err(|source| HelperError::Read { path: path.to_owned(), source })?;
    serde_json::from_reader(BufReader::new(file))
        .map_err(|source| HelperError::Parse { what, source })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), HelperError> {
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(fs::File::create(path)?);
        serde_json::to_writer(&mut file, value)?;
        file.flush()
    };
    let path = path.to_owned();
    write().map_err(|source| HelperError::Write { path, source })
}
