//! The epoll set of the host's sockets.
//!
//! Sockets are watched edge-triggered and added once: whoever owns one remembers that it may be
//! readable until a read says otherwise. So a connection that must wait, for credit or for
//! buffers, waits without a system call and without waking the thread.
//!
//! It is a set of its own, which the worker's event manager watches as one descriptor: here a
//! token names what a descriptor belongs to, so that an event that was on its way when its socket
//! was closed finds nobody (the event manager goes by descriptor, which may be the next one's by
//! then); turns can be given after a whole batch of events; and a pause leaves the set as it is.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::table::Token;

/// Events taken from the kernel at once.
const READY_EVENTS: usize = 64;
/// Data of the listening socket's events; no token is like it.
const LISTENER: u64 = u64::MAX;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The listening socket has clients.
    Listener,
    /// Something has happened to a socket.
    Socket(Token, EventSet),
}

/// What a socket is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Bytes, and the end.
    Bytes,
    /// Room for more bytes too. Not always, since the thread would wake whenever a client has
    /// read something.
    Room,
}

impl Interest {
    /// [`Interest::Room`] if `room`.
    pub fn room_if(room: bool) -> Self {
        if room { Self::Room } else { Self::Bytes }
    }

    fn event(self, token: Token) -> EpollEvent {
        let mut events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if self == Self::Room {
            events |= EventSet::OUT;
        }
        EpollEvent::new(events, token.to_u64())
    }
}

/// The sockets that are waited for.
pub struct Watch {
    epoll: Epoll,
    ready: Vec<EpollEvent>,
}

impl Watch {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()?, ready: vec![EpollEvent::default(); READY_EVENTS] })
    }

    /// Takes some of the events that there are, without waiting. Tells how many.
    pub fn take_events(&mut self) -> io::Result<usize> {
        match self.epoll.wait(0, &mut self.ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            taken => taken,
        }
    }

    /// One of the events taken.
    pub fn event(&self, index: usize) -> Source {
        let event = self.ready[index];
        match event.data() {
            LISTENER => Source::Listener,
            data => Source::Socket(Token::from_u64(data), event.event_set()),
        }
    }

    /// Watches a socket until it is closed.
    pub fn add(&self, socket: &impl AsRawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.control(ControlOperation::Add, socket, interest.event(token))
    }

    /// Changes name and interest of a watched socket. What is ready now is reported again.
    pub fn change(
        &self,
        socket: &impl AsRawFd,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        self.control(ControlOperation::Modify, socket, interest.event(token))
    }

    /// Watches a listening socket, level-triggered.
    pub fn add_listener(&self, listener: &impl AsRawFd) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, LISTENER);
        self.control(ControlOperation::Add, listener, event)
    }

    /// Heeds or ignores a watched listening socket.
    pub fn heed_listener(&self, listener: &impl AsRawFd, heed: bool) -> io::Result<()> {
        let events = if heed { EventSet::IN } else { EventSet::empty() };
        let event = EpollEvent::new(events, LISTENER);
        self.control(ControlOperation::Modify, listener, event)
    }

    /// Watches a listening socket no more.
    pub fn remove_listener(&self, listener: &impl AsRawFd) -> io::Result<()> {
        self.control(ControlOperation::Delete, listener, EpollEvent::default())
    }

    fn control(
        &self,
        operation: ControlOperation,
        socket: &impl AsRawFd,
        event: EpollEvent,
    ) -> io::Result<()> {
        self.epoll.ctl(operation, socket.as_raw_fd(), event)
    }
}

impl AsRawFd for Watch {
    /// Readable when there are events.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
