//! The worker of the file system device: carries out what concerns the data of files, and passes
//! everything else between the guest and the file server.
//!
//! Trust: see [`super`]. A request that is refused is answered with an error; a server that is
//! gone, or whose messages make no sense, is given up, and every request is an I/O error from
//! then on. So the guest never waits for ever, unless the server does.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use event_manager::{EventOps, Events};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use zerocopy::{FromBytes, IntoBytes};

use super::backend::{Backend, Files, MESSAGE_MAX};
use super::pending::{Pending, Waiting};
use super::request::{Effect, Work, parse};
use super::transfer::{OUT_HEADER, read, reply, seek, write};
use super::wire::{InHeader, OpenOut, OutHeader, ReleaseIn, opcode};
use crate::virtio::Interrupt;
use crate::virtio::chain::{Chain, ChainQueue, IoVectors};
use crate::worker::Serve;

/// Largest error number that Linux knows (`MAX_ERRNO`).
const ERROR_MAX: i32 = 4095;
/// Replies taken before the worker looks at its other events.
const REPLIES_AT_ONCE: usize = 64;
/// The number of requests of the device's own, whose replies nobody waits for.
const NOBODY: u64 = 0;

/// The queues, the server, and what is between them.
pub(super) struct FsQueue {
    /// In device order: high priority, requests.
    queues: [ChainQueue; 2],
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    /// `None` without a server, or when it is given up.
    backend: Option<Backend>,
    files: Files,
    pending: Pending,
    /// A chain, and its queue, that waits until the server's socket takes messages again.
    blocked: Option<(Chain, usize)>,
    /// The worker is told when the socket takes messages.
    watches_room: bool,
    message: Box<[u8; MESSAGE_MAX]>,
    vectors: IoVectors,
}

/// What became of a request.
enum Outcome {
    /// It is answered by this many bytes after the header of the reply.
    Done(usize),
    /// It has no reply.
    Silent,
    /// The server is asked under this number; the reply has the meaning given.
    Asked(u64, Effect),
    /// The server does not take messages now.
    Blocked,
}

impl FsQueue {
    /// Takes over activated queues. Without a backend every request fails.
    pub(super) fn new(
        queues: [ChainQueue; 2],
        memory: GuestMemoryMmap,
        interrupt: Interrupt,
        backend: Option<Backend>,
        files_max: usize,
    ) -> Self {
        Self {
            queues,
            memory,
            interrupt,
            backend,
            files: Files::new(files_max),
            pending: Pending::default(),
            blocked: None,
            watches_room: false,
            message: message_buffer(),
            vectors: IoVectors::default(),
        }
    }

    /// The queues' positions, for a snapshot.
    pub(super) fn queues(&self) -> &[ChainQueue; 2] {
        &self.queues
    }

    /// Numbers of the files that are open.
    pub(super) fn open_files(&self) -> Vec<u64> {
        self.files.numbers()
    }

    /// Requests that were taken from the queues and not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.pending.count() + usize::from(self.blocked.is_some())
    }

    /// Takes the backend back.
    pub(super) fn take_backend(&mut self) -> Option<Backend> {
        self.backend.take()
    }

    /// Gives a device that has none its backend.
    pub(super) fn set_backend(&mut self, backend: Backend) {
        self.backend = Some(backend);
    }

    /// Takes requests while there are any, and room for them.
    fn take_requests(&mut self) {
        if let Some((chain, queue)) = self.blocked.take() {
            self.take_request(chain, queue);
        }
        for queue in 0..self.queues.len() {
            while self.blocked.is_none() && !self.pending.is_full() {
                let Some(chain) = self.queues[queue].pop(&self.memory) else {
                    break;
                };
                self.take_request(chain, queue);
            }
        }
    }

    fn take_request(&mut self, chain: Chain, queue: usize) {
        let Some((header, work)) = parse(&chain, &self.memory, &mut self.message) else {
            return self.complete(queue, chain, 0);
        };
        let unique = header.unique;
        let written = match work.and_then(|work| self.carry_out(&header, work, &chain)) {
            Ok(Outcome::Done(len)) => reply(&chain, &self.memory, unique, 0, len),
            Ok(Outcome::Silent) => 0,
            Ok(Outcome::Blocked) => {
                self.blocked = Some((chain, queue));
                return;
            }
            Ok(Outcome::Asked(number, effect)) => {
                let waiting = Waiting { unique, chain, queue, effect };
                return self.pending.keep(number, waiting);
            }
            Err(error) => reply(&chain, &self.memory, unique, error, 0),
        };
        self.complete(queue, chain, written);
    }

    fn carry_out(&mut self, header: &InHeader, work: Work, chain: &Chain) -> Result<Outcome, i32> {
        let file = |fh| self.files.get(fh).ok_or(libc::EBADF);
        let (memory, vectors) = (&self.memory, &mut self.vectors);
        match work {
            Work::Read(wanted) => {
                read(file(wanted.fh)?, chain, memory, &wanted, vectors).map(Outcome::Done)
            }
            Work::Write(wanted) => {
                write(file(wanted.fh)?, chain, memory, &wanted, vectors).map(Outcome::Done)
            }
            Work::Seek(wanted) => seek(file(wanted.fh)?, chain, memory, &wanted).map(Outcome::Done),
            Work::Ignore => Ok(Outcome::Silent),
            Work::Tell => Ok(self.tell(chain.readable_len())),
            Work::Ask(effect) => self.ask(header, effect, chain.readable_len()),
        }
    }

    fn complete(&mut self, queue: usize, chain: Chain, written: usize) {
        self.queues[queue].complete(&self.memory, chain, written);
    }

    /// Sends the `len` bytes of `message`, to which there is no reply.
    fn tell(&mut self, len: usize) -> Outcome {
        match self.send(len) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Outcome::Blocked,
            _ => Outcome::Silent,
        }
    }

    /// Sends the `len` bytes of `message`.
    fn ask(&mut self, header: &InHeader, effect: Effect, len: usize) -> Result<Outcome, i32> {
        let opens = matches!(effect, Effect::Opens(_));
        if opens && !self.files.has_room(self.pending.opening() + 1) {
            return Err(libc::ENFILE);
        }
        let backend = self.backend.as_mut().ok_or(libc::EIO)?;
        backend.serial = backend.serial.wrapping_add(1);
        let number = self.pending.number(backend.serial);
        let unique = number;
        let numbered = InHeader { unique, ..*header };
        self.message[..size_of::<InHeader>()].copy_from_slice(numbered.as_bytes());
        match self.send(len) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Outcome::Blocked),
            Err(_) => return Err(libc::EIO),
        }
        match effect {
            Effect::Closes(fh) => self.files.remove(fh),
            Effect::ClosesAll => self.files.clear(),
            Effect::None | Effect::Opens(_) => {}
        }
        Ok(Outcome::Asked(number, effect))
    }

    /// Sends the first `len` bytes of `message`.
    fn send(&self, len: usize) -> io::Result<()> {
        let backend = self.backend.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        backend.send(&self.message[..len])
    }

    /// Takes replies, as long as any are waited for. An error says that the server is of no more
    /// use.
    fn take_replies(&mut self) -> io::Result<()> {
        for turn in 0..REPLIES_AT_ONCE {
            let Some(backend) = &self.backend else {
                return Ok(());
            };
            // What is beyond the last reply waited for makes the socket ready once more.
            if turn > 0 && self.pending.count() == 0 {
                return Ok(());
            }
            let received = match backend.receive(&mut self.message[..]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                received => received?,
            };
            let message = &self.message[..received.len];
            let header = check(message).ok_or(io::ErrorKind::InvalidData)?;
            // A reply that nobody waits for is late, from before a reset, or the server's
            // invention; the file that came with it is closed.
            let Some(waiting) = self.pending.take(header.unique) else {
                continue;
            };
            match waiting.effect {
                Effect::Opens(offset) if header.error == 0 => {
                    let Some(fh) = handle(message, offset) else {
                        self.answer(waiting, libc::EIO, 0);
                        return Err(io::ErrorKind::InvalidData.into());
                    };
                    let error = self.keep(fh, received.file);
                    self.answer(waiting, error, received.len - OUT_HEADER);
                }
                _ => self.answer(waiting, -header.error, received.len - OUT_HEADER),
            }
        }
        Ok(())
    }

    /// Passes the reply in `message`, with `len` bytes after its header, to the guest.
    fn answer(&mut self, waiting: Waiting, error: i32, len: usize) {
        let Waiting { unique, chain, queue, .. } = waiting;
        let payload = &self.message[OUT_HEADER..OUT_HEADER + len];
        let written = if error != 0 {
            reply(&chain, &self.memory, unique, error, 0)
        } else if chain.write(&self.memory, OUT_HEADER, payload).is_ok() {
            reply(&chain, &self.memory, unique, 0, len)
        } else {
            // The guest has left less room than its request needs.
            reply(&chain, &self.memory, unique, libc::EIO, 0)
        };
        self.complete(queue, chain, written);
    }

    /// Keeps the file that the server has opened as `fh`; returns the error for the guest, or 0.
    fn keep(&mut self, fh: u64, file: Option<OwnedFd>) -> i32 {
        if file.is_some_and(|file| self.files.insert(fh, file)) {
            return 0;
        }
        // None came along, since this process has too many open, or something else than a regular
        // file. If the server takes no message now, it keeps its handle until the session ends.
        if let Some(backend) = &self.backend {
            let _ = backend.send(&release(fh));
        }
        libc::EMFILE
    }

    /// Gives the server up: everything that waits for it fails.
    fn give_up(&mut self, ops: &mut EventOps) {
        let Some(backend) = self.backend.take() else {
            return;
        };
        // An error would say that the socket is not watched, which is what is wanted.
        let _ = ops.remove(Events::empty(&backend));
        self.watches_room = false;
        backend.give_up();
        self.files.clear();
        for waiting in self.pending.take_all() {
            self.answer(waiting, libc::EIO, 0);
        }
    }

    /// Watches the server's socket for room as long as a request is blocked.
    fn watch_room(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let wanted = self.blocked.is_some();
        if let Some(backend) = &self.backend
            && wanted != self.watches_room
        {
            let room = if wanted { EventSet::OUT } else { EventSet::empty() };
            ops.modify(Events::new(backend, EventSet::IN | room)).map_err(io::Error::other)?;
            self.watches_room = wanted;
        }
        Ok(())
    }

    /// Takes what the server has sent, or notices that it is gone.
    fn serve_backend(&mut self, ops: &mut EventOps) {
        if self.take_replies().is_err() {
            self.give_up(ops);
        }
    }

    /// Takes requests, and tells the driver of all that has been done.
    fn progress(&mut self, ops: &mut EventOps) -> io::Result<()> {
        self.take_requests();
        self.watch_room(ops)?;
        for queue in &mut self.queues {
            queue.notify(&self.memory);
        }
        Ok(())
    }
}

/// A FUSE_RELEASE of the device's own.
fn release(fh: u64) -> Vec<u8> {
    let body = ReleaseIn { fh, flags: 0, release_flags: 0, lock_owner: 0 };
    let header = InHeader {
        len: (size_of::<InHeader>() + size_of::<ReleaseIn>()) as u32,
        opcode: opcode::RELEASE,
        unique: NOBODY,
        ..InHeader::default()
    };
    [header.as_bytes(), body.as_bytes()].concat()
}

/// A buffer that was never on the stack.
fn message_buffer() -> Box<[u8; MESSAGE_MAX]> {
    let bytes = vec![0; MESSAGE_MAX].into_boxed_slice();
    bytes.try_into().expect("the slice has the length of the array")
}

/// The header of a message of the server, if the message makes sense.
fn check(message: &[u8]) -> Option<OutHeader> {
    let (header, payload) = OutHeader::read_from_prefix(message).ok()?;
    let whole = header.len as usize == message.len();
    let error = (-ERROR_MAX..=0).contains(&header.error);
    (whole && error && (header.error == 0 || payload.is_empty())).then_some(header)
}

/// The `fh` of a reply that hands over a file.
fn handle(message: &[u8], offset: usize) -> Option<u64> {
    let out = message.get(OUT_HEADER + offset..)?;
    OpenOut::read_from_bytes(out).ok().map(|out| out.fh)
}

impl Serve for FsQueue {
    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()> {
        for queue in &self.queues {
            ops.add(Events::new(queue, EventSet::IN)).map_err(io::Error::other)?;
        }
        if let Some(backend) = &self.backend {
            ops.add(Events::new(backend, EventSet::IN)).map_err(io::Error::other)?;
        }
        self.watches_room = false;
        self.progress(ops)
    }

    fn serve(&mut self, event: Events, ops: &mut EventOps) -> io::Result<()> {
        let fd = event.fd();
        if self.backend.as_ref().is_some_and(|backend| backend.as_raw_fd() == fd) {
            self.serve_backend(ops);
        }
        for queue in &mut self.queues {
            if queue.as_raw_fd() == fd {
                queue.acknowledge_kick(&self.memory);
            }
        }
        self.progress(ops)
    }

    fn failed(&mut self, _error: io::Error) {
        self.interrupt.device_needs_reset();
    }
}
