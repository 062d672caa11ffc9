//! The calls of the agent API as functions, their replies checked.

use bulkhead_protocol::agent::client as api;
use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::LinuxNamespaceType;
use ttrpc::proto::Codec;

use super::wire::Call;
use super::{AgentClient, AgentError};
use crate::block::GuestDisks;
use crate::failure::printable;
use crate::plan::Shared;
use crate::preserved::Kind;
use crate::signal::SIGNAL_MAX;

/// Most processes of a container that are listed.
const PROCESSES_MAX: usize = 8192;

/// Numbers of a process's standard streams on the guest's stdio port; 0 is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: u64,
    /// Standard output, and what a terminal shows.
    pub stdout: u64,
    /// Standard error.
    pub stderr: u64,
    /// Descriptors from 3 on.
    pub preserved: Vec<(Kind, u64)>,
}

/// A process of a container; an empty `exec_id` is its init.
#[derive(Debug, Clone, Copy)]
pub struct ProcessName<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// The process that `exec` made, or empty.
    pub exec_id: &'a str,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl ExitStatus {
    /// The exit code that shells give it.
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => crate::signal::exit_code(signal.into()),
        }
    }
}

/// A line of `ps`, with pids of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessEntry {
    /// Process id.
    pub pid: u32,
    /// Parent's process id.
    pub ppid: u32,
    /// User id.
    pub uid: u32,
    /// Clock ticks of CPU time, 100 a second.
    pub cpu_ticks: u64,
    /// Start, seconds since the epoch.
    pub started_at: u64,
    /// Controlling terminal, printable.
    pub tty: String,
    /// Command line, printable.
    pub command: String,
}

/// Memory of the guest, in its own words; any number may be a lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestMemory {
    /// All that it has.
    pub total_bytes: u64,
    /// In no use.
    pub free_bytes: u64,
    /// What new programs could have.
    pub available_bytes: u64,
    /// Page cache.
    pub cached_bytes: u64,
    /// Memory of programs.
    pub anonymous_bytes: u64,
    /// Objects of the kernel.
    pub slab_bytes: u64,
}

/// The configuration of a container in the guest.
#[derive(Debug)]
pub struct GuestSpec {
    /// As OCI has it, with paths of the guest.
    pub json: Vec<u8>,
    /// What its `startContainer` hooks read; empty if there are none.
    pub hook_state_json: Vec<u8>,
}

impl AgentClient<'_> {
    /// Creates the container after what is made of its disks; gives the pid of its init in the
    /// guest.
    pub fn create(
        &self,
        id: &ContainerId,
        spec: GuestSpec,
        disks: GuestDisks,
        shared: &[Shared],
        streams: &Streams,
    ) -> Result<u32, AgentError> {
        let mut request = api::CreateContainerRequest::new();
        request.container_id = id.to_string();
        request.spec_json = spec.json;
        request.hook_state_json = spec.hook_state_json;
        request.mounts = disks.mounts;
        request.block_nodes = disks.nodes;
        // In the guest, the one network namespace that is shared is the guest's own.
        let shared = shared.iter().filter(|shared| shared.kind != LinuxNamespaceType::Network);
        request.shared_namespaces = shared.map(shared_namespace).collect();
        request.stdio = Some(stdio(streams)).into();
        let reply: api::CreateContainerResponse = self.call("CreateContainer", &request)?;
        Ok(reply.pid)
    }

    /// Lets the container's init run its program.
    pub fn start(&self, id: &ContainerId) -> Result<(), AgentError> {
        self.call::<api::Empty>("StartContainer", &container(id)).map(drop)
    }

    /// Ends what is left of the container and forgets it.
    pub fn delete(&self, id: &ContainerId) -> Result<(), AgentError> {
        self.call::<api::Empty>("DeleteContainer", &container(id)).map(drop)
    }

    /// Begins to wait for the end of a process; [`wait_reply`] reads what comes.
    pub fn wait(&self, process: ProcessName<'_>) -> Result<Call, AgentError> {
        let mut request = api::ProcessRequest::new();
        request.container_id = process.container.to_string();
        request.exec_id = process.exec_id.to_owned();
        let payload = encode("Wait", &request)?;
        let stream = self.connect()?;
        Call::send(stream, "Wait", payload, None)
    }

    /// Sends a signal to a process, or to all of the container.
    pub fn signal(
        &self,
        process: ProcessName<'_>,
        signal: u32,
        all: bool,
    ) -> Result<(), AgentError> {
        let mut request = api::SignalRequest::new();
        request.container_id = process.container.to_string();
        request.exec_id = process.exec_id.to_owned();
        request.signal = signal;
        request.all = all;
        self.call::<api::Empty>("Signal", &request).map(drop)
    }

    /// Runs another process in the container, in the part `cgroup` of its cgroup if one is named;
    /// gives its pid in the guest.
    pub fn exec(
        &self,
        process: ProcessName<'_>,
        process_json: Vec<u8>,
        streams: &Streams,
        cgroup: Option<&str>,
    ) -> Result<u32, AgentError> {
        let mut request = api::ExecRequest::new();
        request.container_id = process.container.to_string();
        request.exec_id = process.exec_id.to_owned();
        request.process_json = process_json;
        request.stdio = Some(stdio(streams)).into();
        request.cgroup = cgroup.unwrap_or_default().to_owned();
        let reply: api::ExecResponse = self.call("Exec", &request)?;
        Ok(reply.pid)
    }

    /// Sets the size of a process's terminal.
    pub fn resize(
        &self,
        process: ProcessName<'_>,
        rows: u32,
        columns: u32,
    ) -> Result<(), AgentError> {
        let mut request = api::ResizeTtyRequest::new();
        request.container_id = process.container.to_string();
        request.exec_id = process.exec_id.to_owned();
        request.rows = rows;
        request.columns = columns;
        self.call::<api::Empty>("ResizeTty", &request).map(drop)
    }

    /// The container's processes.
    pub fn processes(&self, id: &ContainerId) -> Result<Vec<ProcessEntry>, AgentError> {
        let reply: api::ProcessesResponse = self.call("Processes", &container(id))?;
        if reply.processes.len() > PROCESSES_MAX {
            let what = "it lists more processes than a guest can have";
            return Err(AgentError::Garbage { method: "Processes", what });
        }
        Ok(reply.processes.into_iter().map(entry).collect())
    }

    /// Makes the guest's network what `network` says.
    pub fn configure_network(&self, network: &api::Network) -> Result<(), AgentError> {
        self.call::<api::Empty>("ConfigureNetwork", network).map(drop)
    }

    /// Has the guest answer at its resolver's address with what comes over the stream of this
    /// number.
    pub fn serve_names(&self, stream: u64) -> Result<(), AgentError> {
        let mut request = api::NamesRequest::new();
        request.stream = stream;
        self.call::<api::Empty>("ServeNames", &request).map(drop)
    }

    /// Has the first `count` CPUs of the guest on-line, and no others.
    pub fn online_cpus(&self, count: u32) -> Result<(), AgentError> {
        let mut request = api::OnlineCpusRequest::new();
        request.count = count;
        self.call::<api::Empty>("OnlineCpus", &request).map(drop)
    }

    /// What the guest's kernel says of its memory.
    pub fn guest_memory(&self) -> Result<GuestMemory, AgentError> {
        let reply: api::GuestMemoryResponse = self.call("GuestMemory", &api::Empty::new())?;
        Ok(GuestMemory {
            total_bytes: reply.total,
            free_bytes: reply.free,
            available_bytes: reply.available,
            cached_bytes: reply.cached,
            anonymous_bytes: reply.anonymous,
            slab_bytes: reply.slab,
        })
    }

    /// Ends what is left in the guest, writes every share back, and switches the guest off.
    pub fn shutdown(&self) -> Result<(), AgentError> {
        self.call::<api::Empty>("Shutdown", &api::Empty::new()).map(drop)
    }

    pub(super) fn call<R: Codec>(
        &self,
        method: &'static str,
        request: &impl Codec,
    ) -> Result<R, AgentError> {
        let payload = encode(method, request)?;
        let deadline = self.deadline();
        let call = Call::send(self.connect()?, method, payload, Some(self.limit))?;
        decode(method, &call.finish(deadline)?)
    }
}

fn shared_namespace(shared: &Shared) -> api::SharedNamespace {
    let mut namespace = api::SharedNamespace::new();
    namespace.type_ = shared.kind_name().to_owned();
    namespace.container_id = shared.with.to_string();
    namespace
}

/// Reads the reply to [`AgentClient::wait`].
pub fn wait_reply(payload: &[u8]) -> Result<ExitStatus, AgentError> {
    let reply: api::WaitResponse = decode("Wait", payload)?;
    let garbage = |what| AgentError::Garbage { method: "Wait", what };
    match (reply.signal, u8::try_from(reply.code)) {
        (0, Ok(code)) => Ok(ExitStatus::Code(code)),
        (0, Err(_)) => Err(garbage("its exit code is above 255")),
        (1..=SIGNAL_MAX, _) => Ok(ExitStatus::Signal(reply.signal as u8)),
        _ => Err(garbage("its signal does not exist")),
    }
}

fn entry(info: api::ProcessInfo) -> ProcessEntry {
    ProcessEntry {
        pid: info.pid,
        ppid: info.ppid,
        uid: info.uid,
        cpu_ticks: info.cpu_ticks,
        started_at: info.started_at,
        tty: printable(&info.tty),
        command: printable(&info.command),
    }
}

pub(super) fn container(id: &ContainerId) -> api::ContainerRequest {
    let mut request = api::ContainerRequest::new();
    request.container_id = id.to_string();
    request
}

fn stdio(streams: &Streams) -> api::Stdio {
    let mut stdio = api::Stdio::new();
    stdio.stdin = streams.stdin;
    stdio.stdout = streams.stdout;
    stdio.stderr = streams.stderr;
    stdio.preserved =
        streams.preserved.iter().map(|(kind, stream)| preserved(*kind, *stream)).collect();
    stdio
}

fn preserved(kind: Kind, stream: u64) -> api::Preserved {
    use api::preserved::Kind as Wire;
    let mut preserved = api::Preserved::new();
    let kind = match kind {
        Kind::Reader => Wire::READER,
        Kind::Writer => Wire::WRITER,
        Kind::Socket => Wire::SOCKET,
    };
    preserved.kind = kind.into();
    preserved.stream = stream;
    preserved
}

pub(super) fn encode(method: &'static str, request: &impl Codec) -> Result<Vec<u8>, AgentError> {
    request.encode().map_err(|_| AgentError::Send {
        method,
        source: std::io::Error::from(std::io::ErrorKind::InvalidInput),
    })
}

pub(super) fn decode<R: Codec>(method: &'static str, payload: &[u8]) -> Result<R, AgentError> {
    R::decode(payload).map_err(|_| AgentError::Garbage { method, what: "it cannot be decoded" })
}
