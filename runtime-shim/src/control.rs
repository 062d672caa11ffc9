//! What `start`, `kill`, `update` and others say to a container's supervisor: one JSON text in one
//! packet each way, on `control.sock` in the container's directory.
//!
//! Only root and the user who runs the supervisor are answered.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use bulkhead_protocol::control::VmStats;
use bulkhead_protocol::id::ContainerId;
use bulkhead_protocol::share::RawShare;
use oci_spec::runtime::LinuxResources;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cgroup::HostUsage;
use crate::failure::{Explain, Failure};
use crate::fd_message;

/// Longest message, in bytes.
const MESSAGE_MAX: usize = 64 << 10;
/// How long a supervisor waits for a client that has connected.
const CLIENT_LIMIT: Duration = Duration::from_secs(10);

/// What is asked of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlRequest {
    /// Let the created container run.
    Start,
    /// Send a signal.
    Kill {
        /// Its number.
        signal: u32,
        /// To every process of the container.
        all: bool,
    },
    /// Freeze the container.
    Pause,
    /// Let it run again.
    Resume,
    /// Change limits.
    Update {
        /// Those that change.
        resources: Box<LinuxResources>,
    },
    /// The file of a disk has another size now.
    ResizeDisk {
        /// Serial number of the disk.
        name: String,
    },
    /// Tell what the sandbox uses.
    Stats,
    /// Take a container into the sandbox, for as long as the connection lasts. The descriptors
    /// that `shares` names come along, each of a mount that is mounted nowhere.
    Join {
        /// The container.
        id: ContainerId,
        /// Its root and bind mounts.
        shares: Vec<RawShare>,
        /// Its limits.
        resources: Box<LinuxResources>,
    },
    /// Change limits of a container that has joined.
    UpdateMember {
        /// The container.
        id: ContainerId,
        /// Those that change.
        resources: Box<LinuxResources>,
    },
    /// Let go of what is held for a container that has joined, if it has.
    Release {
        /// The container.
        id: ContainerId,
    },
}

/// What a supervisor has to say beyond failures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlAnswer {
    /// It is done.
    Done,
    /// The figures that were asked for.
    Stats(Box<SandboxStats>),
}

/// What a sandbox uses, as its supervisor knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStats {
    /// vCPUs on-line.
    pub vcpus: u32,
    /// Memory of the guest.
    pub mem_mib: u32,
    /// Figures of the sandbox's cgroup, where the host has cgroup v2.
    pub host: Option<HostUsage>,
    /// Counters of the microVM's devices.
    pub devices: VmStats,
}

/// What a supervisor answers.
pub type ControlReply = Result<ControlAnswer, Failure>;

/// Why a supervisor cannot be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Its socket.
    #[error("connecting to the supervisor")]
    Connect(#[source] io::Error),
    /// Making its socket.
    #[error("making control.sock")]
    Listen(#[source] io::Error),
    /// Writing or reading.
    #[error("talking to the supervisor")]
    Talk(#[source] io::Error),
    /// It ended before it answered.
    #[error("the supervisor ended before it answered")]
    Closed,
    /// No JSON of this protocol.
    #[error("the supervisor answers with garbage")]
    Garbage(#[source] serde_json::Error),
}

impl Explain for ControlError {
    fn phase(&self) -> &'static str {
        "asking the container's supervisor"
    }

    fn fix(&self) -> String {
        match self {
            Self::Connect(_) | Self::Closed => "`bulkhead state` tells whether it lives".into(),
            Self::Talk(e) if e.kind() == io::ErrorKind::FileTooLarge => {
                "a request has at most 65536 bytes: ask for less at once".into()
            }
            _ => String::new(),
        }
    }
}

impl ControlError {
    /// Whether there was no supervisor to ask, or none any more.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Connect(e) => {
                matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Talk(e) => {
                matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
            }
            Self::Listen(_) | Self::Garbage(_) => false,
        }
    }
}

/// Asks the supervisor behind the socket at `path`, and waits for its answer, which takes no
/// longer than the supervisor's own limits.
pub fn ask(path: &Path, request: &ControlRequest) -> Result<ControlReply, ControlError> {
    ask_with(path, request, &[]).map(|(reply, _)| reply)
}

/// As [`ask`], with descriptors; gives the connection, too.
pub fn ask_with(
    path: &Path,
    request: &ControlRequest,
    fds: &[BorrowedFd<'_>],
) -> Result<(ControlReply, OwnedFd), ControlError> {
    let refused = |e: rustix::io::Errno| ControlError::Connect(e.into());
    let socket = packet_socket().map_err(refused)?;
    connect(&socket, &SocketAddrUnix::new(path).map_err(refused)?).map_err(refused)?;
    write(&socket, request, fds).map_err(ControlError::Talk)?;
    match read(&socket).map_err(ControlError::Talk)?.0 {
        bytes if bytes.is_empty() => Err(ControlError::Closed),
        bytes => {
            let reply = serde_json::from_slice(&bytes).map_err(ControlError::Garbage)?;
            Ok((reply, socket))
        }
    }
}

/// The supervisor's listening socket.
#[derive(Debug)]
pub struct ControlServer {
    listener: OwnedFd,
}

/// A client that waits for its answer.
#[derive(Debug)]
pub struct ControlClient {
    socket: OwnedFd,
    /// Descriptors that came with what it asks.
    pub fds: Vec<OwnedFd>,
}

impl ControlServer {
    /// Listens at `path`.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |e: rustix::io::Errno| ControlError::Listen(e.into());
        let listener = packet_socket().map_err(failed)?;
        bind(&listener, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
        listen(&listener, 16).map_err(failed)?;
        Ok(Self { listener })
    }

    /// Takes a client that has connected, and what it asks. A client that may not ask, says
    /// something else, or says nothing within a second is let go.
    pub fn accept(&self) -> Option<(ControlClient, ControlRequest)> {
        let socket = accept_with(&self.listener, SocketFlags::CLOEXEC).ok()?;
        let peer = socket_peercred(&socket).ok()?.uid;
        if !peer.is_root() && peer != rustix::process::geteuid() {
            return None;
        }
        for side in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, side, Some(CLIENT_LIMIT)).ok()?;
        }
        let (text, fds) = read(&socket).ok()?;
        let request = serde_json::from_slice(&text).ok()?;
        Some((ControlClient { socket, fds }, request))
    }
}

impl AsFd for ControlServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl ControlClient {
    /// Answers. A client that has gone does not hear it.
    pub fn answer(&self, reply: &ControlReply) {
        let _ = write(&self.socket, reply, &[]);
    }
}

impl AsFd for ControlClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn packet_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

fn write(socket: &OwnedFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    // The other side would let it go without an answer.
    if bytes.len() > MESSAGE_MAX {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    fd_message::send(socket, &bytes, fds).map(drop)
}

fn read(socket: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0u8; MESSAGE_MAX];
    let (length, fds) = fd_message::receive(socket, &mut buffer)?;
    buffer.truncate(length);
    Ok((buffer, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_server<T>(
        server: impl FnOnce(ControlServer) -> T + Send,
        client: impl FnOnce(&Path),
    ) -> T
    where
        T: Send,
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listening = ControlServer::bind(&path).unwrap();
        std::thread::scope(|scope| {
            let served = scope.spawn(|| server(listening));
            client(&path);
            served.join().unwrap()
        })
    }

    #[test]
    fn request_and_failure_cross_the_socket() {
        let failure = Failure::new("p", "c", "f").with_code(127);
        let sent = failure.clone();
        let request = with_server(
            move |server| {
                let (client, request) = server.accept().unwrap();
                client.answer(&Err(sent));
                request
            },
            |path| {
                let reply = ask(path, &ControlRequest::Kill { signal: 9, all: true }).unwrap();
                assert_eq!(reply, Err(failure));
            },
        );
        assert_eq!(request, ControlRequest::Kill { signal: 9, all: true });
    }

    #[test]
    fn client_that_says_garbage_is_let_go() {
        let taken = with_server(
            |server| server.accept().is_some(),
            |path| {
                let socket = packet_socket().unwrap();
                connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
                fd_message::send(&socket, br#"{"op":"other"}"#, &[]).unwrap();
                assert!(read(&socket).unwrap().0.is_empty());
            },
        );
        assert!(!taken);
    }

    #[test]
    fn request_that_is_too_long_is_told_as_that() {
        let mut resources = LinuxResources::default();
        resources.set_unified(Some([("memory.high".to_owned(), "1".repeat(MESSAGE_MAX))].into()));
        let request = ControlRequest::Update { resources: Box::new(resources) };
        with_server(
            |server| server,
            |path| {
                let error = ask(path, &request).unwrap_err();
                assert!(!error.is_end() && error.fix().contains("65536"), "{error:?}");
            },
        );
    }

    #[test]
    fn supervisor_that_closes_or_is_absent_is_an_error() {
        with_server(
            |server| drop(server.accept()),
            |path| {
                let asked = ask(path, &ControlRequest::Start);
                assert!(matches!(asked, Err(ControlError::Closed)), "{asked:?}");
            },
        );
        let asked = ask(Path::new("/nowhere"), &ControlRequest::Start);
        assert!(matches!(&asked, Err(error @ ControlError::Connect(_)) if error.is_end()));
        let denied = ControlError::Connect(io::ErrorKind::PermissionDenied.into());
        assert!(!denied.is_end());
    }
}
