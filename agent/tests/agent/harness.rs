//! Starts an agent as PID 1 of its own PID, mount and network namespaces.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::symlink,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use bulkhead_protocol::agent::client::{
    AgentClient, ContainerRequest, CreateContainerRequest, Empty, ExecRequest, ProcessRequest,
    SharedNamespace, SignalRequest, Stdio, WaitResponse,
};
use serde_json::{Value, json};
use ttrpc::{
    Code, context,
    proto::{Codec, MessageHeader},
};

/// The hierarchy is mounted already on a host that has cgroup v2 alone.
const MOUNT_CGROUP: &str =
    "[ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 none /sys/fs/cgroup";
const BUSYBOX: &str = "/bin/busybox";
/// Everything that a test waits for comes within this time, or the test fails.
const LIMIT: Duration = Duration::from_secs(120);
const APPLETS: [&str; 24] = [
    "sh",
    "cat",
    "echo",
    "sleep",
    "kill",
    "stty",
    "true",
    "false",
    "head",
    "dd",
    "sha256sum",
    "id",
    "pwd",
    "env",
    "grep",
    "mkdir",
    "ls",
    "touch",
    "ps",
    "tty",
    "yes",
    "wc",
    "stat",
    "hostname",
];

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A number that no other container, stream or test of this machine has.
pub fn unique() -> u64 {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    (u64::from(std::process::id()) << 24) + serial
}

/// Why tests of a real agent cannot run here, if they cannot.
pub fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root");
    }
    if !Path::new(BUSYBOX).exists() {
        return Some("no /bin/busybox (package busybox-static)");
    }
    let probe = Command::new("unshare").args(["-pmnf", "sh", "-c", MOUNT_CGROUP]).status();
    match probe {
        Ok(status) if status.success() => None,
        _ => Some("cgroup2 cannot be mounted in a new mount namespace"),
    }
}

/// A running agent.
pub struct Agent {
    process: Child,
    directory: tempfile::TempDir,
    _ready: UnixStream,
    pub client: AgentClient,
}

impl Agent {
    /// Starts it, or prints why not.
    pub fn start() -> Option<Self> {
        if let Some(reason) = missing() {
            println!("skipped: {reason}");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let sockets = directory.path().to_owned();
        let ready = UnixListener::bind(sockets.join("host-1024")).unwrap();
        let script = format!(
            "mount -t tmpfs none /run && {{ {MOUNT_CGROUP}; }} && \
             exec \"$0\" serve /run/bulkhead \"$1\""
        );
        let mut process = Command::new("unshare")
            .args(["-pmnf", "--kill-child", "--mount-proc", "sh", "-c", &script])
            .arg(env!("CARGO_BIN_EXE_bulkhead-agent"))
            .arg(&sockets)
            .spawn()
            .unwrap();
        ready.set_nonblocking(true).unwrap();
        let mut accepted = None;
        await_that(|| {
            accepted = ready.accept().ok();
            let ended = process.try_wait().unwrap();
            assert!(accepted.is_some() || ended.is_none(), "the agent has ended: {ended:?}");
            accepted.is_some()
        });
        let (mut ready, _) = accepted.unwrap();
        ready.set_nonblocking(false).unwrap();
        let mut byte = [0];
        ready.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [1]);
        let address = format!("unix://{}", sockets.join("1024").display());
        let client = AgentClient::new(ttrpc::Client::connect(&address).unwrap());
        make_root(&directory.path().join("root"));
        Some(Self { process, directory, _ready: ready, client })
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// A specification like that of `runc spec`, running `args`.
    pub fn spec(&self, args: &[&str]) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": process(args),
            "root": {"path": self.root(), "readonly": false},
            "hostname": "inside",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]},
            ],
            "linux": {
                "namespaces": [
                    {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "mount"}, {"type": "cgroup"},
                ],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/bus"],
            },
        })
    }

    /// Opens a standard stream.
    pub fn stream(&self) -> (u64, UnixStream) {
        let number = unique();
        let mut stream = UnixStream::connect(self.directory.path().join("1025")).unwrap();
        stream.write_all(&number.to_le_bytes()).unwrap();
        // Whoever waits for ever says nothing.
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        (number, stream)
    }

    /// Creates a container with three streams, not started.
    pub fn create(&self, spec: &Value) -> ttrpc::Result<Container<'_>> {
        self.create_sharing(spec, "", &[])
    }

    /// Creates a container that has namespaces of `kinds` in common with the container `other`.
    pub fn create_sharing(
        &self,
        spec: &Value,
        other: &str,
        kinds: &[&str],
    ) -> ttrpc::Result<Container<'_>> {
        let shared = kinds.iter().map(|kind| SharedNamespace {
            type_: (*kind).to_owned(),
            container_id: other.to_owned(),
            ..Default::default()
        });
        let id = format!("agent-test-{}", unique());
        let (stdio, streams) = self.stdio();
        let request = CreateContainerRequest {
            container_id: id.clone(),
            spec_json: serde_json::to_vec(spec).unwrap(),
            stdio: Some(stdio).into(),
            shared_namespaces: shared.collect(),
            ..Default::default()
        };
        let reply = self.client.create_container(limit(), &request)?;
        assert!(reply.pid > 1);
        Ok(Container { agent: self, id, streams, deleted: false })
    }

    fn stdio(&self) -> (Stdio, Streams) {
        let [stdin, stdout, stderr] = [self.stream(), self.stream(), self.stream()];
        let stdio =
            Stdio { stdin: stdin.0, stdout: stdout.0, stderr: stderr.0, ..Default::default() };
        let streams = Streams { stdin: Some(stdin.1), stdout: stdout.1, stderr: stderr.1 };
        (stdio, streams)
    }

    /// Runs `args` in a new container; exit code, output and error output.
    pub fn run(&self, args: &[&str], input: &[u8]) -> (Wait, String, String) {
        self.run_spec(&self.spec(args), input)
    }

    pub fn run_spec(&self, spec: &Value, input: &[u8]) -> (Wait, String, String) {
        let mut container = self.create(spec).unwrap();
        container.start();
        container.streams.send(input);
        let (out, err) = container.streams.read();
        let wait = container.wait("");
        container.delete();
        (wait, out, err)
    }

    /// Ends the agent through its API.
    pub fn shutdown(mut self) {
        self.client.shutdown(limit(), &Empty::default()).unwrap();
        // Hanging up is how the agent knows that its answer has arrived.
        self.client = AgentClient::new(other_client(self.directory.path()));
        assert!(self.process.wait().unwrap().success());
    }
}

/// A client of a socket that nobody serves, to take the place of one that is to be dropped.
fn other_client(directory: &Path) -> ttrpc::Client {
    let path = directory.join("nobody");
    let _listener = UnixListener::bind(&path).unwrap();
    ttrpc::Client::connect(&format!("unix://{}", path.display())).unwrap()
}

impl Drop for Agent {
    fn drop(&mut self) {
        // unshare ends its child with itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Wait {
    Code(u32),
    Signal(u32),
}

impl From<WaitResponse> for Wait {
    fn from(reply: WaitResponse) -> Self {
        match reply.signal {
            0 => Self::Code(reply.code),
            signal => Self::Signal(signal),
        }
    }
}

/// The host's ends of three streams.
pub struct Streams {
    pub stdin: Option<UnixStream>,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

impl Streams {
    /// Writes all input and ends it.
    pub fn send(&mut self, input: &[u8]) {
        let mut stdin = self.stdin.take().unwrap();
        stdin.write_all(input).unwrap();
        stdin.shutdown(std::net::Shutdown::Write).unwrap();
        self.stdin = Some(stdin);
    }

    /// Reads both outputs to their ends.
    pub fn read(&mut self) -> (String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.stderr.read_to_string(&mut err).unwrap();
        (out, err)
    }
}

/// A created container; deleted when dropped.
pub struct Container<'a> {
    pub agent: &'a Agent,
    pub id: String,
    pub streams: Streams,
    deleted: bool,
}

impl Container<'_> {
    pub fn request(&self) -> ContainerRequest {
        ContainerRequest { container_id: self.id.clone(), ..Default::default() }
    }

    pub fn start(&self) {
        self.agent.client.start_container(limit(), &self.request()).unwrap();
    }

    pub fn wait(&self, exec_id: &str) -> Wait {
        let request = ProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.agent.client.wait(limit(), &request).unwrap().into()
    }

    /// Calls `Wait` on a connection of its own, and does not read the answer.
    pub fn begin_wait(&self, exec_id: &str) -> UnixStream {
        let mut call = ttrpc::Request::new();
        call.service = "bulkhead.agent.v1.Agent".to_owned();
        call.method = "Wait".to_owned();
        let request = ProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        call.payload = request.encode().unwrap();
        let body = call.encode().unwrap();
        let mut frame = Vec::from(MessageHeader::new_request(1, body.len() as u32));
        frame.extend(body);
        let mut stream = UnixStream::connect(self.agent.directory.path().join("1024")).unwrap();
        stream.write_all(&frame).unwrap();
        stream
    }

    pub fn signal(&self, exec_id: &str, signal: u32, all: bool) -> ttrpc::Result<Empty> {
        let request = SignalRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.agent.client.signal(limit(), &request)
    }

    /// Adds a process; its id and streams.
    pub fn exec(&self, process: &Value) -> ttrpc::Result<(String, Streams)> {
        let exec_id = format!("exec-{}", unique());
        let (stdio, streams) = self.agent.stdio();
        let request = ExecRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.clone(),
            process_json: serde_json::to_vec(process).unwrap(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        assert!(self.agent.client.exec(limit(), &request)?.pid > 1);
        Ok((exec_id, streams))
    }

    pub fn delete(mut self) {
        self.deleted = true;
        self.agent.client.delete_container(limit(), &self.request()).unwrap();
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if !self.deleted {
            let _ = self.agent.client.delete_container(limit(), &self.request());
        }
    }
}

/// Waits until something is so.
#[track_caller]
pub fn await_that(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LIMIT, "it has not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An OCI process as `runc spec` writes it.
pub fn process(args: &[&str]) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin:/usr/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        },
        "noNewPrivileges": true,
    })
}

pub fn limit() -> context::Context {
    context::with_duration(LIMIT)
}

/// Code and message of a refused call.
pub fn refusal<T>(result: ttrpc::Result<T>) -> (Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message().to_owned()),
        Err(error) => panic!("not a status: {error}"),
        Ok(_) => panic!("the call succeeded"),
    }
}

fn make_root(root: &Path) {
    for directory in ["bin", "proc", "dev", "sys", "etc", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/text"), "not a program\n").unwrap();
}
