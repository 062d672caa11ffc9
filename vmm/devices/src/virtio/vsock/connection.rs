//! One connection: its state machine and its byte flow in both directions (virtio 1.2, section
//! 5.10.6).
//!
//! Input: packets of the guest, readiness of the host's socket. Output: what to send to the guest
//! next, and a [`Verdict`] when the connection ends. Nothing here knows queues or other
//! connections. Trust: none in the guest, whose violations end its connection with an `RST`; the
//! host's side may vanish at any moment.
//!
//! ```text
//! by the host:   Requesting --RESPONSE--> Established --> removed
//! by the guest:              REQUEST----> Established --> removed
//! ```
//!
//! Within `Established` each direction ends on its own. The guest ends one by `SHUTDOWN`, which
//! becomes shutdown(2) on the host's socket after all bytes before it; the host ends one by end of
//! file or error, which becomes `SHUTDOWN` after all bytes before it. When the host has ended both,
//! its socket is closed and the connection waits for the guest's `RST`.

use std::io;
use std::net;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use crate::virtio::chain::{ChainError, IoVectors};

use super::credit::{ReceiveWindow, SendCredit};
use super::packet::{BufferState, Op, Packet, Ports, Shutdown};
use super::payload::Payload;
use super::pending::Pending;
use super::socket;

/// What becomes of a connection after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// It is over for the guest; bytes that the guest had sent still go to the host.
    Finish {
        /// Whether the guest is owed an `RST`.
        reset: bool,
    },
    /// A violation: `RST` to the guest, and the socket is closed at once.
    Abort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `REQUEST` is owed or sent, and the client waits for its answer.
    Requesting,
    /// Bytes flow.
    Established,
}

/// A packet without payload that the guest is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// Operation.
    pub op: Op,
    /// Flags of the operation.
    pub flags: u32,
}

/// A connection between a host socket and a guest port.
#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    phase: Phase,
    /// `None` once the host has ended both directions and the guest knows.
    host: Option<UnixStream>,
    credit: SendCredit,
    window: ReceiveWindow,
    pending: Pending,
    /// `REQUEST` or `RESPONSE`, until it is sent.
    opening: Option<Op>,
    /// The guest has asked for a `CREDIT_UPDATE`.
    update_asked: bool,
    /// The guest was asked for one and has had no room since.
    update_wanted: bool,
    /// What the guest has ended.
    guest_ended: Shutdown,
    /// What the host has ended, from the guest's view: `send` if the host sends no more.
    host_ended: Shutdown,
    /// What of it the guest was told.
    told: Shutdown,
    /// The host's socket may have bytes; false only after it was seen empty.
    readable: bool,
}

impl Connection {
    /// A connection that a client of the host asks for.
    pub fn requested(ports: Ports, host: UnixStream, window_bytes: u32) -> Self {
        Self::new(ports, host, window_bytes, Phase::Requesting, Op::Request)
    }

    /// A connection that the guest has asked for.
    pub fn accepted(ports: Ports, host: UnixStream, window_bytes: u32, guest: BufferState) -> Self {
        let mut connection = Self::new(ports, host, window_bytes, Phase::Established, Op::Response);
        connection.credit.update(guest);
        connection
    }

    fn new(ports: Ports, host: UnixStream, window_bytes: u32, phase: Phase, opening: Op) -> Self {
        Self {
            ports,
            phase,
            host: Some(host),
            credit: SendCredit::default(),
            window: ReceiveWindow::new(window_bytes),
            pending: Pending::default(),
            opening: Some(opening),
            update_asked: false,
            update_wanted: false,
            guest_ended: Shutdown::default(),
            host_ended: Shutdown::default(),
            told: Shutdown::default(),
            readable: true,
        }
    }

    /// Its address.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Its socket, if the host has not ended both directions.
    pub fn stream(&self) -> Option<&UnixStream> {
        self.host.as_ref()
    }

    /// Whether there is something for the guest now.
    pub fn has_work(&self) -> bool {
        self.control().is_some() || self.read_limit() > 0
    }

    /// Whether bytes of the guest wait for room in the host's socket.
    pub fn waits_for_room(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Bytes of the guest that wait for room.
    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Whether only the guest's `RST` is missing.
    pub fn is_over(&self) -> bool {
        self.told == Shutdown::BOTH
    }

    /// Handles a packet of the guest.
    pub fn receive(&mut self, packet: &Packet, payload: &mut Payload<'_>) -> Verdict {
        if packet.op == Op::Rst {
            return Verdict::Finish { reset: false };
        }
        self.credit.update(packet.buffer);
        // Asking again after an answer of "none" would be asking for ever.
        self.update_wanted &= self.credit.free_bytes() == 0;
        match (self.phase, packet.op) {
            (Phase::Requesting, Op::Response) => self.establish(),
            (Phase::Established, Op::Rw) => self.take(payload),
            (Phase::Established, Op::Shutdown) => {
                self.end_guest(Shutdown::from_flags(packet.flags))
            }
            (Phase::Established, Op::CreditUpdate) => Verdict::Keep,
            (Phase::Established, Op::CreditRequest) => {
                self.update_asked = true;
                Verdict::Keep
            }
            // Anything before the answer, and a second opening.
            (_, _) => Verdict::Abort,
        }
    }

    /// Handles an event of the host's socket.
    pub fn host_event(&mut self, events: EventSet) -> Verdict {
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.readable |= gone || events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        if gone {
            if self.phase == Phase::Requesting {
                // The client has gone before there was an answer.
                let sent = self.opening.is_none();
                return Verdict::Finish { reset: sent };
            }
            self.end_host_receive();
        }
        if events.contains(EventSet::OUT) {
            self.flush();
        }
        Verdict::Keep
    }

    /// The next packet without payload that the guest is owed.
    pub fn control(&self) -> Option<Control> {
        let plain = |op| Some(Control { op, flags: 0 });
        if self.opening.is_some() || self.phase == Phase::Requesting {
            return self.opening.and_then(plain);
        }
        let ended = self.told.union(self.host_ended);
        if ended != self.told {
            return Some(Control { op: Op::Shutdown, flags: ended.flags() });
        }
        if self.update_asked || (self.window.update_is_due() && !self.is_over()) {
            return plain(Op::CreditUpdate);
        }
        if self.may_read() && self.credit.free_bytes() == 0 && !self.update_wanted {
            return plain(Op::CreditRequest);
        }
        None
    }

    /// `control` goes to the guest now; what its header says of the buffer.
    pub fn control_sent(&mut self, control: Control) -> BufferState {
        match control.op {
            Op::Shutdown => self.told = Shutdown::from_flags(control.flags),
            Op::CreditUpdate => self.update_asked = false,
            Op::CreditRequest => self.update_wanted = true,
            _ => self.opening = None,
        }
        self.window.tell()
    }

    /// Bytes that may be read from the host for the guest now.
    pub fn read_limit(&self) -> usize {
        if self.opening.is_none() && self.may_read() {
            self.credit.free_bytes() as usize
        } else {
            0
        }
    }

    /// Reads from the host's socket into `room`, which is not empty and at most
    /// [`Connection::read_limit`]. Tells how many bytes go to the guest, 0 for none now.
    pub fn read(&mut self, room: &IoVectors) -> usize {
        let Some(host) = &self.host else { return 0 };
        match socket::receive(host, room) {
            Ok(0) => self.host_ended.send = true,
            Ok(count) => {
                self.credit.consume(count as u32);
                return count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The client went away with bytes unread.
            Err(_) => {
                self.host_ended.send = true;
                self.end_host_receive();
            }
        }
        self.readable = false;
        0
    }

    /// What the header of a packet with payload says of the buffer.
    pub fn data_sent(&mut self) -> BufferState {
        self.window.tell()
    }

    /// Gives up the socket and the bytes that it has not taken yet.
    pub fn into_host(self) -> (Option<UnixStream>, Pending) {
        (self.host, self.pending)
    }

    /// Gives up the socket once the host has ended both directions and the guest was told.
    pub fn take_ended_host(&mut self) -> Option<UnixStream> {
        if self.is_over() { self.host.take() } else { None }
    }

    fn may_read(&self) -> bool {
        self.phase == Phase::Established
            && self.readable
            && !self.host_ended.send
            && !self.guest_ended.receive
            && self.host.is_some()
    }

    /// The guest has accepted: the client learns its host port.
    fn establish(&mut self) -> Verdict {
        let Some(host) = &self.host else {
            return Verdict::Abort;
        };
        let line = format!("OK {}\n", self.ports.host);
        // Nothing was written to this socket before, so that a line fits or the client has gone.
        match socket::send_own(host, &[io::IoSlice::new(line.as_bytes())]) {
            Ok(sent) if sent == line.len() => {
                self.phase = Phase::Established;
                Verdict::Keep
            }
            Ok(_) | Err(_) => Verdict::Abort,
        }
    }

    /// Takes bytes of the guest: straight to the socket, what it does not take to the buffer.
    fn take(&mut self, payload: &mut Payload<'_>) -> Verdict {
        let len = payload.len() as u32;
        if self.guest_ended.send || self.window.accept(len).is_err() {
            return Verdict::Abort;
        }
        let Ok(sent) = self.send_now(payload) else {
            return Verdict::Abort;
        };
        if self.host_ended.receive {
            // Nobody wants the bytes; the guest learns it by SHUTDOWN.
            self.window.forward(len);
            return Verdict::Keep;
        }
        self.window.forward(sent as u32);
        if sent < payload.len() && self.pending.append(payload, sent).is_err() {
            return Verdict::Abort;
        }
        Verdict::Keep
    }

    /// Sends as much of `payload` as the socket takes; nothing if earlier bytes wait.
    fn send_now(&mut self, payload: &mut Payload<'_>) -> Result<usize, ChainError> {
        let mut sent = 0;
        while sent < payload.len() && self.pending.is_empty() && !self.host_ended.receive {
            let Some(host) = &self.host else { break };
            match socket::send_guest(host, payload.vectors_from(sent)?) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.end_host_receive(),
            }
        }
        Ok(sent)
    }

    /// The guest has ended directions.
    fn end_guest(&mut self, ended: Shutdown) -> Verdict {
        let before = self.guest_ended;
        self.guest_ended = before.union(ended);
        if self.guest_ended == Shutdown::BOTH {
            return Verdict::Finish { reset: true };
        }
        if self.guest_ended.receive && !before.receive {
            self.shut_host(net::Shutdown::Read);
            self.host_ended.send |= self.host_ended.receive;
        }
        if self.guest_ended.send && !before.send && self.pending.is_empty() {
            self.shut_host(net::Shutdown::Write);
        }
        Verdict::Keep
    }

    /// Sends buffered bytes, and ends the direction after them if the guest has.
    fn flush(&mut self) {
        let Some(host) = &self.host else { return };
        if self.pending.is_empty() {
            return;
        }
        let flushed = self.pending.flush(host);
        self.window.forward(flushed.sent as u32);
        match flushed.outcome {
            Ok(true) if self.guest_ended.send => self.shut_host(net::Shutdown::Write),
            Ok(_) => {}
            Err(_) => self.end_host_receive(),
        }
    }

    /// The host takes no more bytes.
    fn end_host_receive(&mut self) {
        self.host_ended.receive = true;
        // A guest that takes nothing has no use for what the host may have sent.
        self.host_ended.send |= self.guest_ended.receive;
        self.window.forward(self.pending.len() as u32);
        self.pending.clear();
    }

    fn shut_host(&self, how: net::Shutdown) {
        if let Some(host) = &self.host {
            // An error says that the client has gone, which the socket's events say too.
            let _ = host.shutdown(how);
        }
    }
}
