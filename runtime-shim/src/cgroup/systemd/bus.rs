//! A connection to systemd's manager: its own socket, which only root may use and which needs no
//! message bus (`systemctl` takes the same). Blocking, each call within a limit.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use serde::Serialize;
use zbus::wire::{ObjectPath, Type};

use super::SystemdError;
use super::message::{Call, FIXED, Kind, Message, whole_length};

/// Where the manager listens.
pub(super) const SOCKET: &str = "/run/systemd/private";
/// How long the manager may take to answer and to do what it was asked for. It does both in
/// milliseconds, unless it is stuck.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// Longest line of the handshake.
const LINE_MAX: usize = 512;
/// Most ends of jobs that are kept until somebody asks for them.
const ENDED_MAX: usize = 256;

/// A connection whose calls must all be done within [`LIMIT`].
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    deadline: Instant,
    serial: u32,
    /// Jobs that have ended while a reply was waited for, and how.
    ended: Vec<(String, String)>,
}

impl Bus {
    /// Connects to the manager at `path`, and tells who this is.
    pub fn connect(path: &str) -> Result<Self, SystemdError> {
        let deadline = Instant::now() + LIMIT;
        let open = || {
            let kind = SocketType::STREAM;
            let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
            // Also for the connection, which waits where too many do.
            set_socket_timeout(&socket, Timeout::Send, Some(LIMIT))?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            io::Result::Ok(UnixStream::from(socket))
        };
        let stream = open().map_err(SystemdError::Connect)?;
        let mut bus = Self { stream, deadline, serial: 0, ended: vec![] };
        bus.authenticate()?;
        Ok(bus)
    }

    /// D-Bus Specification, "Authentication Protocol". BEGIN goes along with AUTH: sent behind the
    /// answer together with the first message, that is lost now and then.
    fn authenticate(&mut self) -> Result<(), SystemdError> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let uid: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").as_bytes())?;
        let mut line = vec![];
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.receive(&mut byte)?;
            line.extend_from_slice(&byte);
            if line.len() > LINE_MAX {
                return Err(SystemdError::Malformed("the handshake"));
            }
        }
        match line.starts_with(b"OK ") {
            true => Ok(()),
            false => Err(SystemdError::Rejected),
        }
    }

    /// Calls a method and waits for its reply.
    pub fn call<B: Serialize + Type>(
        &mut self,
        call: &Call<'_, B>,
    ) -> Result<Message, SystemdError> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&call.message(serial)?)?;
        loop {
            let message = self.next()?;
            if message.reply_to != Some(serial) {
                self.notice(&message)?;
                continue;
            }
            return match message.kind {
                Kind::Error => Err(SystemdError::Refused {
                    method: call.member.to_owned(),
                    text: message.body::<(String,)>().map(|(text,)| text).unwrap_or_default(),
                    name: message.error,
                }),
                Kind::Return => Ok(message),
                _ => Err(SystemdError::Malformed("a reply")),
            };
        }
    }

    /// Waits for the end of `job`; how it ended.
    pub fn await_job(&mut self, job: &str) -> Result<String, SystemdError> {
        loop {
            if let Some(at) = self.ended.iter().position(|(ended, _)| ended == job) {
                return Ok(self.ended.swap_remove(at).1);
            }
            let message = self.next()?;
            self.notice(&message)?;
        }
    }

    /// Keeps the end of a job; every other signal is for somebody else. The socket is the
    /// manager's own, so that nobody else can have sent it.
    fn notice(&mut self, message: &Message) -> Result<(), SystemdError> {
        if message.kind == Kind::Signal && message.member == "JobRemoved" {
            let (_number, job, _unit, result): (u32, ObjectPath<'_>, &str, String) =
                message.body()?;
            if self.ended.len() == ENDED_MAX {
                self.ended.remove(0);
            }
            self.ended.push((job.to_string(), result));
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Message, SystemdError> {
        let mut fixed = [0; FIXED];
        self.receive(&mut fixed)?;
        let mut bytes = vec![0; whole_length(&fixed)?];
        bytes[..FIXED].copy_from_slice(&fixed);
        self.receive(&mut bytes[FIXED..])?;
        Message::parse(bytes)
    }

    fn left(&self) -> Result<Option<Duration>, SystemdError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(SystemdError::Silent),
            false => Ok(Some(left)),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), SystemdError> {
        self.stream.set_write_timeout(self.left()?).map_err(SystemdError::Lost)?;
        self.stream.write_all(bytes).map_err(lost)
    }

    /// Fills `bytes`. The limit is that of the whole, however slowly they come.
    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), SystemdError> {
        let mut filled = 0;
        while filled < bytes.len() {
            self.stream.set_read_timeout(self.left()?).map_err(SystemdError::Lost)?;
            match self.stream.read(&mut bytes[filled..]) {
                Ok(0) => return Err(SystemdError::Lost(ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(lost(e)),
            }
        }
        Ok(())
    }
}

/// What a failed transfer is: a timeout comes as EAGAIN.
fn lost(error: io::Error) -> SystemdError {
    match error.kind() {
        ErrorKind::WouldBlock => SystemdError::Silent,
        _ => SystemdError::Lost(error),
    }
}
