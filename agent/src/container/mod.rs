//! The containers of this guest: what the host may do with them, and when.

mod error;
mod launch;
mod process;
mod processes;
mod resources;
mod sharing;
mod state;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bulkhead_protocol::{
    agent::server as api,
    id::ContainerId,
    limits::{CONTAINERS_MAX, SPEC_MAX},
};
use libcontainer::notify_socket::NotifySocket;
use serde::Deserialize;
use tokio::sync::RwLock;

use crate::{
    block::{self, Mounts},
    cgroup::Cgroup,
    helper::{Added, HOOK_STATE_FILE, Order, SPEC_FILE},
    reaper::Reaper,
    streams::Streams,
};
pub use error::ContainerError;
pub use launch::LaunchError;
use launch::{HostStreams, launch};
use process::Process;
use state::{Event, State, next};

/// Name of the socket on which a created container waits to be started (libcontainer).
const NOTIFY_SOCKET: &str = "notify.sock";

type Result<T> = std::result::Result<T, ContainerError>;

/// What the agent itself reads of a process; the helper reads the rest.
#[derive(Debug, Deserialize)]
struct ProcessHead {
    #[serde(default)]
    terminal: bool,
}

#[derive(Debug, Deserialize)]
struct SpecHead {
    process: ProcessHead,
}

#[derive(Debug)]
struct Container {
    id: ContainerId,
    /// Held for reading while a process is added: one that joins a frozen cgroup would hang.
    state: RwLock<State>,
    init: Arc<Process>,
    /// `None` while it is being made.
    execs: Mutex<HashMap<ContainerId, Option<Arc<Process>>>>,
    cgroup: Cgroup,
    /// Undone with the container, whoever still holds this.
    mounts: Mutex<Mounts>,
}

/// All containers.
#[derive(Debug)]
pub struct Containers {
    run_dir: PathBuf,
    reaper: Reaper,
    streams: Arc<Streams>,
    /// `None` while it is being made.
    table: Mutex<HashMap<ContainerId, Option<Arc<Container>>>>,
    /// Makes file names unique.
    serial: AtomicU64,
}

impl Containers {
    /// Keeps its files below `run_dir`, which nobody else uses.
    pub fn new(run_dir: &Path, reaper: Reaper, streams: Arc<Streams>) -> io::Result<Self> {
        let containers = Self {
            run_dir: run_dir.to_owned(),
            reaper,
            streams,
            table: Mutex::default(),
            serial: AtomicU64::new(0),
        };
        for directory in ["state", "bundles", "consoles"] {
            fs::create_dir_all(run_dir.join(directory))?;
        }
        Ok(containers)
    }

    /// Creates a container that waits to be started; the PID of its init.
    pub async fn create(&self, request: api::CreateContainerRequest) -> Result<u32> {
        let id = ContainerId::try_from(request.container_id.clone())?;
        let head: SpecHead = parse_head(&request.spec_json)?;
        self.reserve(&id)?;
        let mut mounts = Mounts::default();
        match self.make(&id, &request, head.process, &mut mounts).await {
            Ok(init) => {
                let pid = init.pid();
                let container = Arc::new(Container::new(id.clone(), init, mounts));
                if sharing::shares_pids(&request.shared_namespaces) {
                    sharing::end_with_init(Arc::clone(&container));
                }
                self.table().insert(id, Some(container));
                Ok(pid)
            }
            Err(error) => {
                self.clear(&id).await;
                // Not before what has them open was killed.
                mounts.undo();
                self.table().remove(&id);
                Err(error)
            }
        }
    }

    /// Takes the id for a container that is being made.
    fn reserve(&self, id: &ContainerId) -> Result<()> {
        let mut table = self.table();
        if table.contains_key(id) {
            return Err(ContainerError::ContainerExists(id.clone()));
        }
        if table.len() >= CONTAINERS_MAX {
            return Err(ContainerError::ManyContainers);
        }
        table.insert(id.clone(), None);
        Ok(())
    }

    /// Makes the mounts, and then the init process.
    async fn make(
        &self,
        id: &ContainerId,
        request: &api::CreateContainerRequest,
        head: ProcessHead,
        mounts: &mut Mounts,
    ) -> Result<Process> {
        let bundle = self.bundle(id);
        create_dir(&bundle)?;
        *mounts = Mounts::make(&request.mounts)?;
        match request.block_nodes.is_empty() && request.shared_namespaces.is_empty() {
            true => write(&bundle.join(SPEC_FILE), &request.spec_json)?,
            false => {
                let mut spec = parse_head(&request.spec_json)?;
                block::add_nodes(&mut spec, &request.block_nodes)?;
                self.share_namespaces(&mut spec, &request.shared_namespaces)?;
                write(&bundle.join(SPEC_FILE), spec.to_string().as_bytes())?;
            }
        }
        if !request.hook_state_json.is_empty() {
            write(&bundle.join(HOOK_STATE_FILE), &request.hook_state_json)?;
        }
        self.launch(id, None, head, &request.stdio).await
    }

    async fn launch(
        &self,
        id: &ContainerId,
        added: Option<Added>,
        head: ProcessHead,
        stdio: &api::Stdio,
    ) -> Result<Process> {
        let host = HostStreams::claim(&self.streams, stdio).await.map_err(LaunchError::from)?;
        let console = head.terminal.then(|| {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            self.run_dir.join("consoles").join(serial.to_string())
        });
        let order = Order {
            container_id: id.as_str().to_owned(),
            state_dir: self.run_dir.join("state"),
            bundle_dir: self.bundle(id),
            cgroup: Cgroup::path_in_hierarchy(id.as_str()),
            console_socket: None,
            added,
            preserved: 0,
            report_fd: -1,
        };
        Ok(launch(&self.reaper, order, console, host).await?)
    }

    /// Lets a created container run its program.
    pub async fn start(&self, id: &str) -> Result<()> {
        let container = self.find(id)?;
        let mut state = container.state.write().await;
        let running = container.allow("start", &mut state, Event::Start)?;
        let socket = self.run_dir.join("state").join(id).join(NOTIFY_SOCKET);
        NotifySocket::new(socket).notify_container_start().map_err(ContainerError::Start)?;
        *state = running;
        Ok(())
    }

    /// Freezes a running container; returns when it stands still.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let container = self.find(id)?;
        let mut state = container.state.write().await;
        let paused = container.allow("pause", &mut state, Event::Pause)?;
        container.cgroup.freeze().await?;
        *state = paused;
        Ok(())
    }

    /// Lets a paused container run again.
    pub async fn resume(&self, id: &str) -> Result<()> {
        let container = self.find(id)?;
        let mut state = container.state.write().await;
        let running = container.allow("resume", &mut state, Event::Resume)?;
        container.cgroup.thaw().await?;
        *state = running;
        Ok(())
    }

    /// Kills what is left of a container and forgets it. Takes no lock: whatever hangs in the
    /// container must not keep it from being killed.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let container = self.find(id)?;
        container.cgroup.destroy().await?;
        container.init.reaped().await;
        container.mounts().undo();
        self.remove_files(&container.id);
        self.table().remove(&container.id);
        Ok(())
    }

    /// Kills all containers. What cannot be removed does not matter any more.
    pub async fn kill_all(&self) {
        let all: Vec<ContainerId> = self.table().keys().cloned().collect();
        for id in all {
            self.clear(&id).await;
        }
    }

    /// Removes what a container has left in the guest, or what its failed creation has.
    async fn clear(&self, id: &ContainerId) {
        // A failure to clean up must not hide the error that led here.
        let _ = Cgroup::of_container(id.as_str()).destroy().await;
        if let Some(Some(container)) = self.table().get(id) {
            container.mounts().undo();
        }
        self.remove_files(id);
    }

    fn remove_files(&self, id: &ContainerId) {
        for directory in [self.bundle(id), self.run_dir.join("state").join(id.as_str())] {
            // May not have been made yet.
            let _ = fs::remove_dir_all(directory);
        }
    }

    fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.run_dir.join("bundles").join(id.as_str())
    }

    fn find(&self, id: &str) -> Result<Arc<Container>> {
        let id = ContainerId::try_from(id.to_owned())?;
        match self.table().get(&id) {
            Some(Some(container)) => Ok(Arc::clone(container)),
            Some(None) => Err(ContainerError::State { call: "use", id, state: State::Creating }),
            None => Err(ContainerError::NoContainer(id)),
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<ContainerId, Option<Arc<Container>>>> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Container {
    fn new(id: ContainerId, init: Process, mounts: Mounts) -> Self {
        let state = next(State::Creating, Event::Made).unwrap_or(State::Creating);
        Self {
            state: RwLock::new(state),
            init: Arc::new(init),
            execs: Mutex::default(),
            cgroup: Cgroup::of_container(id.as_str()),
            mounts: Mutex::new(mounts),
            id,
        }
    }

    /// The state now: the end of init shows before anyone has recorded it.
    fn current(&self, recorded: State) -> State {
        match self.init.has_ended() {
            true => next(recorded, Event::Exit).unwrap_or(recorded),
            false => recorded,
        }
    }

    fn allow(&self, call: &'static str, state: &mut State, event: Event) -> Result<State> {
        *state = self.current(*state);
        next(*state, event).ok_or_else(|| self.refuse(call, *state))
    }

    fn refuse(&self, call: &'static str, state: State) -> ContainerError {
        let id = self.id.clone();
        ContainerError::State { call, id, state }
    }

    fn mounts(&self) -> MutexGuard<'_, Mounts> {
        self.mounts.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<ContainerId, Option<Arc<Process>>>> {
        self.execs.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn parse_head<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T> {
    if json.len() > SPEC_MAX {
        return Err(ContainerError::LargeSpec(json.len()));
    }
    serde_json::from_slice(json).map_err(ContainerError::Spec)
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| ContainerError::File {
        step: "create",
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|source| ContainerError::File {
        step: "write",
        path: path.to_owned(),
        source,
    })
}
