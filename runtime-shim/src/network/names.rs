//! What a guest asks of the resolver in its network namespace on the host.
//!
//! Docker serves the names of a network that its user has made at 127.0.0.11 in the namespace of
//! each container: no program in a microVM reaches that. The agent takes the questions there and
//! sends them here; [`carry`] asks them in a thread of this namespace and sends the answers back.
//!
//! Trust: none of the guest. It can have messages sent to port 53 of 127.0.0.11 in its own
//! namespace and to nowhere else, as a program in that namespace could. What it has at once is
//! bounded; a frame that is none ends the stream.

mod question;

use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_protocol::names::{Header, LIMIT_S, OPEN_MAX, PORT, RESOLVER, frame};
use rustix::event::{PollFd, PollFlags, poll};

use self::question::Question;
use crate::vsock::until;

/// UDP sockets of this thread's network namespace (proc_net(5)).
const TABLE: &str = "/proc/thread-self/net/udp";
/// How long the resolver may take.
const LIMIT: Duration = Duration::from_secs(LIMIT_S);
/// Bytes that are read at once.
const CHUNK: usize = 4 << 10;
/// Stack of the thread.
const STACK: usize = 64 << 10;

/// Whether somebody serves names in this thread's network namespace.
pub fn are_served() -> io::Result<bool> {
    Ok(lists_resolver(&fs::read_to_string(TABLE)?))
}

/// Whether a table of sockets has one at the resolver's address: the second column has address
/// and port, in hexadecimal digits of the machine's byte order.
fn lists_resolver(table: &str) -> bool {
    let address = format!("{:08X}:", u32::from_ne_bytes(RESOLVER.octets()));
    let locals = table.lines().filter_map(|line| line.split_whitespace().nth(1));
    locals.into_iter().any(|local| local.starts_with(&address))
}

/// Carries questions and answers between `stream` and the resolver in this thread's network
/// namespace, until the stream ends.
pub fn carry(stream: UnixStream) -> io::Result<()> {
    let resolver = SocketAddr::from((RESOLVER, PORT));
    let carrier = Carrier { stream, resolver, received: Vec::new(), open: Vec::new() };
    let thread = thread::Builder::new().name("names".to_owned()).stack_size(STACK);
    // Nothing is lost when it ends with the process.
    thread.spawn(move || carrier.run()).map(drop)
}

/// What carries.
struct Carrier {
    stream: UnixStream,
    resolver: SocketAddr,
    /// What has come and is no whole frame yet, or one too many.
    received: Vec<u8>,
    open: Vec<Question>,
}

impl Carrier {
    /// Carries to the end of the stream, or an error of it, which is one.
    fn run(mut self) {
        while self.step().is_ok() {}
    }

    /// Waits for what comes next and passes it on.
    fn step(&mut self) -> io::Result<()> {
        let room = self.open.len() < OPEN_MAX;
        let mut fds: Vec<PollFd<'_>> = self.open.iter().map(Question::wanted).collect();
        if room {
            fds.push(PollFd::new(&self.stream, PollFlags::IN));
        }
        let deadline = self.open.iter().map(|question| question.deadline).min();
        match poll(&mut fds, deadline.map(until).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let asked = self.open.len();
        self.answer(&ready[..asked])?;
        if ready.get(asked) == Some(&true) {
            self.receive()?;
        }
        self.take_frames()
    }

    /// Sends the answers that there are, and none for questions whose time is over.
    fn answer(&mut self, ready: &[bool]) -> io::Result<()> {
        let now = Instant::now();
        let mut waiting = Vec::with_capacity(self.open.len());
        for (mut question, ready) in self.open.drain(..).zip(ready) {
            let answer = match ready {
                true => question.advance(),
                false => Ok(None),
            };
            let answer = match answer {
                Ok(None) if question.deadline > now => {
                    waiting.push(question);
                    continue;
                }
                Ok(answer) => answer.unwrap_or_default(),
                Err(_) => vec![],
            };
            send(&self.stream, question.header, &answer)?;
        }
        self.open = waiting;
        Ok(())
    }

    /// Takes what has come of the stream: at most a chunk, so that what waits stays bounded.
    fn receive(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.received.extend(&chunk[..count]);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Asks what has come whole, as long as there is room.
    fn take_frames(&mut self) -> io::Result<()> {
        while self.open.len() < OPEN_MAX
            && let Some(header) = self.received.first_chunk()
        {
            let header = Header::read(*header).ok_or(io::ErrorKind::InvalidData)?;
            let end = Header::SIZE + usize::from(header.length);
            let Some(frame) = self.received.get(..end) else { break };
            match Question::ask(self.resolver, header, &frame[Header::SIZE..], LIMIT) {
                Ok(question) => self.open.push(question),
                Err(_) => send(&self.stream, header, &[])?,
            }
            self.received.drain(..end);
        }
        Ok(())
    }
}

/// Sends the answer to a question.
fn send(mut stream: &UnixStream, header: Header, answer: &[u8]) -> io::Result<()> {
    // None is longer than its own length can say.
    let frame = frame(header.number, header.tcp, answer).ok_or(io::ErrorKind::InvalidData)?;
    stream.write_all(&frame)
}

#[cfg(test)]
mod tests;
