//! What `start`, `kill`, `update` and others say to a container's supervisor: one JSON text in one
//! packet each way, on `control.sock` in the container's directory.
//!
//! Only root and the user who runs the supervisor are answered.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use bulkhead_protocol::control::VmStats;
use oci_spec::runtime::LinuxResources;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    bind, connect, listen, recv, send, socket_with,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cgroup::HostUsage;
use crate::failure::{Explain, Failure};

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
    let refused = |e: rustix::io::Errno| ControlError::Connect(e.into());
    let socket = packet_socket().map_err(refused)?;
    connect(&socket, &SocketAddrUnix::new(path).map_err(refused)?).map_err(refused)?;
    write(&socket, request).map_err(ControlError::Talk)?;
    match read(&socket).map_err(ControlError::Talk)? {
        bytes if bytes.is_empty() => Err(ControlError::Closed),
        bytes => serde_json::from_slice(&bytes).map_err(ControlError::Garbage),
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
        let request = serde_json::from_slice(&read(&socket).ok()?).ok()?;
        Some((ControlClient { socket }, request))
    }
}

impl AsFd for ControlServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl ControlClient {
    /// Answers. A client that has gone does not hear it.
    pub fn answer(self, reply: &ControlReply) {
        let _ = write(&self.socket, reply);
    }
}

fn packet_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

fn write(socket: &OwnedFd, message: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    // The other side would let it go without an answer.
    if bytes.len() > MESSAGE_MAX {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    send(socket, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn read(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; MESSAGE_MAX];
    let length = loop {
        match recv(socket, &mut buffer[..], RecvFlags::TRUNC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?.1,
        }
    };
    if length > MESSAGE_MAX {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    buffer.truncate(length);
    Ok(buffer)
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
                send(&socket, br#"{"op":"other"}"#, SendFlags::empty()).unwrap();
                assert!(read(&socket).unwrap().is_empty());
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
