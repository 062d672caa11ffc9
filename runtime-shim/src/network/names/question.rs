//! One question to the resolver, on a socket of its own that never blocks.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use bulkhead_protocol::names::Header;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

/// Longest message (RFC 1035, section 4.2.2).
const MESSAGE_MAX: usize = u16::MAX as usize;

/// A question that waits for its answer.
#[derive(Debug)]
pub(super) struct Question {
    pub header: Header,
    /// When nobody waits any more.
    pub deadline: Instant,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Udp(UdpSocket),
    Tcp { stream: TcpStream, unsent: Vec<u8>, received: Vec<u8> },
}

impl Question {
    /// Asks `message` of `resolver`.
    pub fn ask(
        resolver: SocketAddr,
        header: Header,
        message: &[u8],
        limit: Duration,
    ) -> io::Result<Self> {
        let socket = match header.tcp {
            false => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_nonblocking(true)?;
                socket.connect(resolver)?;
                socket.send(message)?;
                Socket::Udp(socket)
            }
            true => Socket::Tcp {
                stream: begin_to_connect(resolver)?,
                // The connection's message has its length before it, in network order.
                unsent: [&header.length.to_be_bytes()[..], message].concat(),
                received: vec![],
            },
        };
        Ok(Self { header, deadline: Instant::now() + limit, socket })
    }

    /// What to wait for.
    pub fn wanted(&self) -> PollFd<'_> {
        match &self.socket {
            Socket::Udp(socket) => PollFd::new(socket, PollFlags::IN),
            Socket::Tcp { stream, unsent, .. } => {
                let flags = if unsent.is_empty() { PollFlags::IN } else { PollFlags::OUT };
                PollFd::new(stream, flags)
            }
        }
    }

    /// Goes on as far as it can; gives the answer once it is there. An error is the end.
    pub fn advance(&mut self) -> io::Result<Option<Vec<u8>>> {
        match &mut self.socket {
            Socket::Udp(socket) => {
                let mut answer = vec![0; MESSAGE_MAX];
                let Some(length) = unless_blocked(socket.recv(&mut answer))? else {
                    return Ok(None);
                };
                answer.truncate(length);
                Ok(Some(answer))
            }
            Socket::Tcp { stream, unsent, received } => {
                while !unsent.is_empty() {
                    match unless_blocked(stream.write(unsent))? {
                        None => return Ok(None),
                        Some(sent) => drop(unsent.drain(..sent)),
                    }
                }
                receive(stream, received)
            }
        }
    }
}

/// Reads what has come behind the length that precedes it; gives the message once it is whole.
fn receive(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        let wanted = received.first_chunk().map(|bytes| usize::from(u16::from_be_bytes(*bytes)));
        let missing = match wanted {
            None => 2 - received.len(),
            Some(length) => 2 + length - received.len(),
        };
        if missing == 0 {
            return Ok(Some(received.split_off(2)));
        }
        let start = received.len();
        received.resize(start + missing, 0);
        let read = unless_blocked(stream.read(&mut received[start..]));
        received.truncate(start + read.as_ref().ok().copied().flatten().unwrap_or(0));
        match read? {
            None => return Ok(None),
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(_) => {}
        }
    }
}

/// A connection that may not be there yet: it can be written to once it is.
fn begin_to_connect(to: SocketAddr) -> io::Result<TcpStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(e) => Err(e.into()),
    }
}

/// `None` if it would have waited.
fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}
