//! What the host offers to the guest: a listening socket and connections made beforehand.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};

/// The host's side of a vsock device. The default one offers nothing: every request of the guest
/// is refused.
#[derive(Debug, Default)]
pub struct Backend {
    listener: Option<UnixListener>,
    dials: Vec<(u32, UnixStream)>,
}

impl Backend {
    /// `listener` takes clients, which name a guest port each by `CONNECT <port>\n`. Each of
    /// `dials`, a host port and its socket, is for one request of the guest.
    pub fn new(listener: Option<UnixListener>, dials: Vec<(u32, UnixStream)>) -> io::Result<Self> {
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(Self { listener, dials })
    }

    /// The listening socket, to wait for.
    pub fn listener(&self) -> Option<&UnixListener> {
        self.listener.as_ref()
    }

    /// Takes the next client.
    pub fn accept(&self) -> Accepted {
        let Some(listener) = &self.listener else {
            return Accepted::Nobody;
        };
        match listener.accept() {
            Ok((stream, _)) => Accepted::Client(stream),
            Err(error) => match error.kind() {
                // One that has gone already is none; the socket tells of the next.
                io::ErrorKind::WouldBlock
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::Interrupted => Accepted::Nobody,
                _ => Accepted::Exhausted,
            },
        }
    }

    /// Whether the guest may connect to `port`.
    pub fn has_dial(&self, port: u32) -> bool {
        self.dials.iter().any(|dial| dial.0 == port)
    }

    /// Takes the connection for `port`.
    pub fn take_dial(&mut self, port: u32) -> Option<UnixStream> {
        let index = self.dials.iter().position(|dial| dial.0 == port)?;
        Some(self.dials.remove(index).1)
    }
}

/// What accepting a client came to.
#[derive(Debug)]
pub enum Accepted {
    /// A client.
    Client(UnixStream),
    /// There is none now.
    Nobody,
    /// There may be one, but no descriptor or memory for it.
    Exhausted,
}
