//! All connections of the device: which packet and which socket belong to which, and whose turn
//! it is.
//!
//! Input: packets of the guest, events of the host's sockets. Output: packets for the rx queue.
//! Trust: none in the guest. What it can make grow is bounded: connections by
//! [`MAX_CONNECTIONS`], answers to stray packets by [`MAX_RESETS`], which makes the tx queue wait.
//!
//! Turns: a connection that has something for the guest stands once in the run queue. Its turn is
//! what it owes and at most a quantum of payload (`peer.rs`); then it goes to the end of the
//! queue. When the guest has no buffers the queue stands still and no socket is read.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::EventSet;

use super::backend::{Accepted, Backend};
use super::client::{Client, Progress};
use super::connection::{Connection, Verdict};
use super::packet::{Header, Op, Packet, Ports, Reset};
use super::payload::Payload;
use super::peer::{Drain, Member, Peer};
use super::ports::HostPorts;
use super::rx::RxQueue;
use super::socket;
use super::table::{Table, Token};
use super::watch::{Interest, Source, Watch};

/// Most connections, those included that only wait for their end.
pub const MAX_CONNECTIONS: usize = 1024;
/// Most clients that have not yet named a port; more wait in the listening socket.
pub const MAX_CLIENTS: usize = 64;
/// Stray packets answered later; with more the tx queue waits for the rx queue.
pub const MAX_RESETS: usize = 256;
/// Buffer that each of the first [`WIDE_CONNECTIONS`] connections offers to the guest, in bytes.
/// It is used only for what the host's socket does not take. Both are powers of two.
pub const WIDE_WINDOW_BYTES: u32 = 256 << 10;
/// Buffer of every further connection.
pub const NARROW_WINDOW_BYTES: u32 = 64 << 10;
/// Connections with a wide buffer. With them all buffers together stay below 80 MiB even if no
/// client reads.
pub const WIDE_CONNECTIONS: usize = 64;

/// Ports looked at for a free one; only connections and dials can have taken them.
const PORT_TRIES: usize = 4 * MAX_CONNECTIONS;
/// Clients accepted before other events are looked at.
const ACCEPT_BATCH: usize = 16;

/// What [`Muxer::serve_next`] has done.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Somebody had a turn.
    Served,
    /// Nobody has anything for the guest.
    Idle,
    /// The guest has no buffer.
    Starved,
}

/// The connections of a device.
pub struct Muxer {
    guest_cid: u64,
    backend: Backend,
    watch: Watch,
    peers: Table<Peer>,
    index: BTreeMap<Ports, Token>,
    run: VecDeque<Token>,
    resets: VecDeque<Reset>,
    clients: usize,
    /// The listening socket is watched.
    listening: bool,
    /// A client could not be accepted for want of a resource, and no socket was closed since.
    exhausted: bool,
    ports: HostPorts,
    endings: u64,
}

impl Muxer {
    /// No connections, nothing offered.
    pub fn new(guest_cid: u64) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            backend: Backend::default(),
            watch: Watch::new()?,
            peers: Table::new(),
            index: BTreeMap::new(),
            run: VecDeque::new(),
            resets: VecDeque::new(),
            clients: 0,
            listening: false,
            exhausted: false,
            ports: HostPorts::new(),
            endings: 0,
        })
    }

    /// Offers `backend` in place of what was offered before. Nothing is accepted before
    /// [`Muxer::poll`].
    pub fn set_backend(&mut self, backend: Backend) -> io::Result<()> {
        if let Some(listener) = self.backend.listener() {
            self.watch.remove_listener(listener)?;
        }
        if let Some(listener) = backend.listener() {
            self.watch.add_listener(listener)?;
        }
        self.listening = backend.listener().is_some();
        self.backend = backend;
        Ok(())
    }

    /// Serves the guest `guest_cid` from now on.
    pub fn set_guest_cid(&mut self, guest_cid: u64) {
        self.guest_cid = guest_cid;
    }

    /// The ports of the host's side.
    pub fn ports(&self) -> &HostPorts {
        &self.ports
    }

    /// Continues the host ports of an earlier device.
    pub fn set_ports(&mut self, ports: HostPorts) {
        self.ports = ports;
    }

    /// Closes every connection and client. Calls close(2) only.
    pub fn close_all(&mut self) {
        self.peers.clear();
        self.index.clear();
        self.run.clear();
        self.resets.clear();
        self.clients = 0;
        self.exhausted = false;
    }

    /// Whether another packet of the guest may be handled now.
    pub fn takes_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Handles a packet of the guest. `payload` makes its payload of the given length, or `None`
    /// if it is not all there.
    pub fn receive<'a>(
        &mut self,
        header: &Header,
        payload: impl FnOnce(u32) -> Option<Payload<'a>>,
    ) {
        let packet = match header.check(self.guest_cid) {
            Ok(packet) => packet,
            Err(answer) => return self.resets.extend(answer),
        };
        let Some(&token) = self.index.get(&packet.ports) else {
            return self.receive_stray(&packet);
        };
        let Some(Peer::Connection(member)) = self.peers.get_mut(token) else {
            return;
        };
        let verdict = match payload(packet.len) {
            Some(mut payload) => member.connection.receive(&packet, &mut payload),
            None => Verdict::Abort,
        };
        self.conclude(token, verdict);
    }

    /// Handles what has happened on the host's sockets, some of it if it is much.
    pub fn poll(&mut self) -> io::Result<()> {
        for index in 0..self.watch.take_events()? {
            match self.watch.event(index) {
                Source::Listener => self.accept(),
                Source::Socket(token, events) => self.host_event(token, events),
            }
        }
        Ok(())
    }

    /// Watches the listening socket again if there is room for clients again.
    pub fn listen_again(&mut self) {
        if !self.listening && !self.exhausted && self.clients < MAX_CLIENTS {
            self.heed_listener(true);
        }
    }

    /// Gives one connection its turn, or sends one answer to a stray packet.
    pub fn serve_next(&mut self, rx: &mut RxQueue) -> Step {
        if let Some(reset) = self.resets.front() {
            if !rx.is_ready() {
                return Step::Starved;
            }
            rx.send(&reset.header(self.guest_cid));
            self.resets.pop_front();
            return Step::Served;
        }
        let Some(&token) = self.run.front() else {
            return Step::Idle;
        };
        if let Some(Peer::Connection(member)) = self.peers.get_mut(token) {
            if !member.take_turn(self.guest_cid, rx) {
                return Step::Starved;
            }
            member.queued = false;
            if member.connection.take_ended_host().is_some() {
                self.endings += 1;
                member.over_since = self.endings;
            }
        }
        self.run.pop_front();
        self.schedule(token);
        Step::Served
    }

    /// A packet without a connection: a request for what the host offers, or an error.
    fn receive_stray(&mut self, packet: &Packet) {
        let accepted = packet.op == Op::Request
            && self.backend.has_dial(packet.ports.host)
            && self.make_room()
            && self.accept_request(packet);
        if !accepted && packet.op != Op::Rst {
            self.resets.push_back(Reset::stream(packet.ports));
        }
    }

    fn accept_request(&mut self, packet: &Packet) -> bool {
        let Some(stream) = self.backend.take_dial(packet.ports.host) else {
            return false;
        };
        let window = self.window_bytes();
        let connection = Connection::accepted(packet.ports, stream, window, packet.buffer);
        self.add_connection(connection, true)
    }

    /// Takes clients, some if there are many.
    fn accept(&mut self) {
        for _ in 0..ACCEPT_BATCH {
            if self.clients == MAX_CLIENTS {
                return self.heed_listener(false);
            }
            let client = match self.backend.accept() {
                Accepted::Client(stream) => Client::new(stream),
                Accepted::Nobody => return,
                // The next connection that closes gives what is missing.
                Accepted::Exhausted => {
                    self.exhausted = true;
                    return self.heed_listener(false);
                }
            };
            self.clients += 1;
            self.add(Peer::Client(client), true);
        }
    }

    fn host_event(&mut self, token: Token, events: EventSet) {
        match self.peers.get_mut(token) {
            Some(Peer::Client(client)) => match client.advance() {
                Progress::Waiting => {}
                Progress::Connect(port) => self.connect(token, port),
                Progress::Refused => self.refuse(token),
            },
            Some(Peer::Connection(member)) => {
                let verdict = member.connection.host_event(events);
                self.conclude(token, verdict);
            }
            Some(Peer::Drain(drain)) => {
                if drain.flush()
                    && let Some(Peer::Drain(drain)) = self.remove(token)
                {
                    drain.finish();
                }
            }
            // An event that was on its way when its socket was closed.
            None => {}
        }
    }

    /// Closes a client such that it reads an end of file.
    fn refuse(&mut self, token: Token) {
        if let Some(Peer::Client(client)) = self.remove(token) {
            socket::finish(client.into_stream());
        }
    }

    /// A client has named a guest port: asks the guest.
    fn connect(&mut self, token: Token, guest: u32) {
        let room = self.make_room();
        let Some(host) = room.then(|| self.take_host_port(guest)).flatten() else {
            return self.refuse(token);
        };
        let Some(Peer::Client(client)) = self.remove(token) else {
            return;
        };
        let ports = Ports { host, guest };
        let window = self.window_bytes();
        let connection = Connection::requested(ports, client.into_stream(), window);
        self.add_connection(connection, false);
    }

    /// A host port that no connection to `guest` and no dial has.
    fn take_host_port(&mut self, guest: u32) -> Option<u32> {
        let (index, backend) = (&self.index, &self.backend);
        self.ports.take(PORT_TRIES, |host| {
            index.contains_key(&Ports { host, guest }) || backend.has_dial(host)
        })
    }

    /// Makes sure that there is room for one more connection, if need be at the cost of one that
    /// waits for nothing but an `RST` of the guest (section 5.10.6.6: after a time of the device's
    /// choice it is reset).
    fn make_room(&mut self) -> bool {
        if self.connections() < MAX_CONNECTIONS {
            return true;
        }
        let oldest = self
            .peers
            .iter()
            .filter_map(|(token, peer)| match peer {
                Peer::Connection(member) if member.over_since > 0 => {
                    Some((member.over_since, token))
                }
                _ => None,
            })
            .min_by_key(|&(since, _)| since);
        if let Some((_, token)) = oldest {
            self.conclude(token, Verdict::Abort);
        }
        oldest.is_some()
    }

    fn conclude(&mut self, token: Token, verdict: Verdict) {
        let reset = match verdict {
            Verdict::Keep => return self.follow_up(token),
            Verdict::Finish { reset } => reset,
            Verdict::Abort => true,
        };
        let Some(Peer::Connection(member)) = self.remove(token) else {
            return;
        };
        if reset {
            let ports = member.connection.ports();
            self.resets.push_back(Reset::stream(ports));
        }
        if verdict == Verdict::Abort {
            return;
        }
        match member.connection.into_host() {
            (Some(stream), pending) if pending.is_empty() => socket::finish(stream),
            (Some(stream), pending) => {
                self.add(Peer::Drain(Drain::new(stream, pending)), false);
            }
            (None, _) => {}
        }
    }

    /// Adds a connection to the table and the index. False if its socket cannot be waited for.
    fn add_connection(&mut self, connection: Connection, new_socket: bool) -> bool {
        let ports = connection.ports();
        let Some(token) = self.add(Peer::Connection(Member::new(connection)), new_socket) else {
            return false;
        };
        self.index.insert(ports, token);
        self.schedule(token);
        true
    }

    /// Adds a peer to the table and waits for its socket, which is new or was another peer's.
    fn add(&mut self, peer: Peer, new_socket: bool) -> Option<Token> {
        let token = self.peers.insert(peer);
        let peer = self.peers.get_mut(token)?;
        let interest = peer.interest();
        let watched = peer.stream().is_some_and(|stream| {
            let done = if new_socket {
                self.watch.add(stream, token, interest)
            } else {
                self.watch.change(stream, token, interest)
            };
            done.is_ok()
        });
        if !watched {
            self.remove(token);
        }
        watched.then_some(token)
    }

    /// After something has happened to a connection that goes on: waits for room in its socket or
    /// no longer, and gives it a place in the run queue if it has something for the guest.
    fn follow_up(&mut self, token: Token) {
        if let Some(Peer::Connection(member)) = self.peers.get_mut(token)
            && let Some(stream) = member.connection.stream()
            && member.watches_room != member.connection.waits_for_room()
        {
            member.watches_room = member.connection.waits_for_room();
            let interest = Interest::room_if(member.watches_room);
            if self.watch.change(stream, token, interest).is_err() {
                return self.conclude(token, Verdict::Abort);
            }
        }
        self.schedule(token);
    }

    /// Puts a connection into the run queue if it has something for the guest.
    fn schedule(&mut self, token: Token) {
        if let Some(Peer::Connection(member)) = self.peers.get_mut(token)
            && !member.queued
            && member.connection.has_work()
        {
            member.queued = true;
            self.run.push_back(token);
        }
    }

    fn remove(&mut self, token: Token) -> Option<Peer> {
        let peer = self.peers.remove(token)?;
        self.exhausted = false;
        match &peer {
            Peer::Client(_) => self.clients -= 1,
            Peer::Connection(member) => {
                self.index.remove(&member.connection.ports());
                if member.queued {
                    self.run.retain(|&queued| queued != token);
                }
            }
            Peer::Drain(..) => {}
        }
        Some(peer)
    }

    fn connections(&self) -> usize {
        self.peers.len() - self.clients
    }

    fn window_bytes(&self) -> u32 {
        if self.connections() < WIDE_CONNECTIONS { WIDE_WINDOW_BYTES } else { NARROW_WINDOW_BYTES }
    }

    fn heed_listener(&mut self, heed: bool) {
        if let Some(listener) = self.backend.listener()
            && self.watch.heed_listener(listener, heed).is_ok()
        {
            self.listening = heed;
        }
    }
}

impl AsRawFd for Muxer {
    /// Becomes readable when [`Muxer::poll`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.watch.as_raw_fd()
    }
}
