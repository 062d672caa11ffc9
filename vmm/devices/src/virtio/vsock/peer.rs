//! Whom a socket of the host belongs to, and what each of them does with it.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::client::Client;
use super::connection::Connection;
use super::packet::{Header, Op};
use super::pending::Pending;
use super::rx::RxQueue;
use super::socket;
use super::watch::Interest;

/// Most bytes of payload in one turn.
pub const QUANTUM_BYTES: usize = 64 << 10;

/// An entry of the table.
pub enum Peer {
    /// A client that has not named a port.
    Client(Client),
    /// A connection that the guest knows.
    Connection(Member),
    /// A connection that is over for the guest.
    Drain(Drain),
}

impl Peer {
    /// Its socket, to wait for. A connection that the host has ended has none.
    pub fn stream(&self) -> Option<&UnixStream> {
        match self {
            Self::Client(client) => Some(client.stream()),
            Self::Connection(member) => member.connection.stream(),
            Self::Drain(drain) => Some(&drain.stream),
        }
    }

    /// What its socket is watched for at first.
    pub fn interest(&self) -> Interest {
        Interest::room_if(matches!(self, Self::Drain(_)))
    }
}

/// A connection among others.
pub struct Member {
    /// The connection.
    pub connection: Connection,
    /// Stands in the run queue.
    pub queued: bool,
    /// Its socket is watched for room.
    pub watches_room: bool,
    /// What is left of its turn, in bytes.
    quantum_left: usize,
    /// When it began to wait for the guest's `RST` only, on the clock of such moments; 0 if it
    /// does not.
    pub over_since: u64,
}

impl Member {
    /// A new connection.
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            queued: false,
            watches_room: false,
            quantum_left: QUANTUM_BYTES,
            over_since: 0,
        }
    }

    /// Gives the connection its turn: what it owes to the guest, and a quantum of payload. False
    /// if the guest has no buffer for it; then the turn is not over.
    pub fn take_turn(&mut self, guest_cid: u64, rx: &mut RxQueue) -> bool {
        let ports = self.connection.ports();
        while let Some(control) = self.connection.control() {
            if !rx.is_ready() {
                return false;
            }
            let buffer = self.connection.control_sent(control);
            let mut header = Header::to_guest(guest_cid, ports, control.op, buffer);
            header.flags = control.flags.into();
            rx.send(&header);
        }
        loop {
            let limit = self.connection.read_limit().min(self.quantum_left);
            if limit == 0 {
                break;
            }
            let Some(room) = rx.gather(limit) else {
                return false;
            };
            let room_len = room.len_bytes();
            let count = self.connection.read(room);
            if count > 0 {
                let buffer = self.connection.data_sent();
                rx.deliver(count, Header::to_guest(guest_cid, ports, Op::Rw, buffer));
                self.quantum_left -= count;
            }
            if count < room_len {
                break;
            }
        }
        self.quantum_left = QUANTUM_BYTES;
        true
    }
}

/// A socket that has not taken the last bytes of the guest.
pub struct Drain {
    stream: UnixStream,
    pending: Pending,
}

impl Drain {
    /// `stream` is to take `pending` and then to be closed.
    pub fn new(stream: UnixStream, pending: Pending) -> Self {
        // The guest takes no more; a client that writes is told so.
        let _ = stream.shutdown(Shutdown::Read);
        Self { stream, pending }
    }

    /// Sends what the socket takes. True when nothing is left to do.
    pub fn flush(&mut self) -> bool {
        !matches!(self.pending.flush(&self.stream).outcome, Ok(false))
    }

    /// Closes the socket.
    pub fn finish(self) {
        socket::finish(self.stream);
    }
}
