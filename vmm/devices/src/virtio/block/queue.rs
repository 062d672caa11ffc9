//! The worker of one queue of a block device: takes requests, keeps many in flight, and returns
//! each with its status, in the order in which they are done.
//!
//! Trust: chains are checked by [`ChainQueue`], requests by [`Work::parse`]. A hostile guest can
//! change the buffers of a request while it is in flight, which changes only what it reads or what
//! it stores on its own disk.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_manager::{EventOps, Events};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::backend::{Backend, Done, IN_FLIGHT_MAX, Operation};
use super::counters::Counters;
use super::limiter::QueueLimiter;
use super::request::{DATA_OFFSET, ID_BYTES, Limits, Status, Work};
use crate::virtio::Interrupt;
use crate::virtio::chain::{Chain, ChainError, ChainQueue, IoVectors};
use crate::worker::Serve;

/// Most zeroes written by one operation.
const ZEROES_STEP_BYTES: u64 = 1 << 20;

/// Most vectors of an allocation that is kept for the next operation: a hostile guest shall not
/// make every one of them large for good.
const SPARE_VECTORS_MAX: usize = 64;

/// A request that the backend works on.
struct Request {
    chain: Chain,
    work: Work,
    /// Bytes done of a transfer.
    done: usize,
    /// How zeroes are being written, for [`Work::Zeroes`].
    method: ZeroMethod,
}

/// Ways to make a range read as zeroes, best first. Which of them a file system or a device has
/// is known only by trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ZeroMethod {
    Punch,
    Zero,
    Write,
}

/// What a queue has of its device.
pub(super) struct Shared {
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Interrupt,
    /// Size in sectors, which may change at any time.
    pub(super) sectors: Arc<AtomicU64>,
    pub(super) counters: Arc<Counters>,
    pub(super) limiter: Option<QueueLimiter>,
    pub(super) id: [u8; ID_BYTES],
}

/// The queue, the backend, and what is in flight between them.
pub(super) struct BlockQueue {
    queue: ChainQueue,
    device: Shared,
    limits: Limits,
    backend: Option<Box<dyn Backend>>,
    /// By tag.
    requests: Vec<Option<Request>>,
    free_tags: Vec<u16>,
    /// The rate limit has refused a request; what waits in the queue waits for its timer.
    refused: bool,
    /// Allocations of vectors that no operation uses.
    spare: Vec<IoVectors>,
}

impl BlockQueue {
    /// Takes over an activated queue. Without a backend every transfer fails.
    pub(super) fn new(queue: ChainQueue, device: Shared, limits: Limits) -> Self {
        Self {
            queue,
            device,
            limits,
            backend: None,
            requests: (0..IN_FLIGHT_MAX).map(|_| None).collect(),
            free_tags: (0..IN_FLIGHT_MAX).rev().collect(),
            refused: false,
            spare: Vec::new(),
        }
    }

    /// The queue, whose position a snapshot holds.
    pub(super) fn queue(&self) -> &ChainQueue {
        &self.queue
    }

    /// Gives the queue its backend. Nothing may be in flight.
    pub(super) fn set_backend(&mut self, backend: Option<Box<dyn Backend>>) {
        self.backend = backend;
    }

    /// Takes the backend back. Nothing may be in flight.
    pub(super) fn take_backend(&mut self) -> Option<Box<dyn Backend>> {
        self.backend.take()
    }

    /// Tells the driver that the size has changed.
    pub(super) fn size_changed(&self) {
        self.device.interrupt.config_changed();
    }

    /// Takes requests while there are any and room for them, and returns what is done.
    fn progress(&mut self) -> io::Result<()> {
        self.limits.sectors = self.device.sectors.load(Ordering::Acquire);
        loop {
            let mut more = true;
            while more && !self.free_tags.is_empty() && self.admitted()? {
                match self.queue.pop(&self.device.memory) {
                    Some(chain) => self.take(chain),
                    None => more = false,
                }
            }
            if let Some(backend) = &mut self.backend {
                backend.submit()?;
            }
            self.reap()?;
            // What was done at once has made room, and no event will come for what still waits.
            if !more || self.refused || self.free_tags.is_empty() {
                break;
            }
        }
        self.queue.notify(&self.device.memory);
        Ok(())
    }

    /// Whether the rate limit lets another request begin; if not, its timer will.
    fn admitted(&mut self) -> io::Result<bool> {
        let admitted = self.device.limiter.as_ref().map_or(Ok(true), QueueLimiter::admit)?;
        self.refused = !admitted;
        Ok(admitted)
    }

    /// Begins a request, or ends it if it is refused or needs no backend.
    fn take(&mut self, chain: Chain) {
        match Work::parse(&chain, &self.device.memory, &self.limits) {
            Ok(Work::Id) => {
                let written = chain.write(&self.device.memory, 0, &self.device.id);
                let status = written.map_or(Status::IoError, |()| Status::Ok);
                self.finish(chain, ID_BYTES, status);
            }
            Ok(_) if self.backend.is_none() => self.finish(chain, 0, Status::IoError),
            Ok(work) => {
                if let (Some(limiter), Some(bytes)) = (&self.device.limiter, work.transfer()) {
                    limiter.charge(bytes);
                }
                self.advance(Request::new(chain, work));
            }
            Err(status) => self.finish(chain, 0, status),
        }
    }

    /// Starts the next operation of a request, or ends the request if there is none.
    fn advance(&mut self, request: Request) {
        let operation = match request.next_operation(&self.device.memory, &mut self.spare) {
            Ok(Some(operation)) => operation,
            Ok(None) => return self.end_request(request, Status::Ok),
            Err(_) => return self.end_request(request, Status::IoError),
        };
        let (Some(backend), Some(tag)) = (&mut self.backend, self.free_tags.pop()) else {
            unreachable!("requests are begun only with a backend and a free tag");
        };
        // SAFETY: the vectors name guest memory, which `self.device.memory` keeps mapped, or constant
        // zeroes for a write; `end` waits for what is in flight before this value is given back.
        match unsafe { backend.start(tag, operation) } {
            Ok(()) => self.requests[usize::from(tag)] = Some(request),
            Err(_) => {
                self.free_tags.push(tag);
                self.end_request(request, Status::IoError);
            }
        }
    }

    /// Handles everything that is done, and what follows from it.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            let Some(backend) = &mut self.backend else {
                return Ok(());
            };
            let Some(done) = backend.next_done() else {
                return backend.submit();
            };
            let Some(request) = self.requests[usize::from(done.tag)].take() else {
                unreachable!("only what was started is done");
            };
            self.free_tags.push(done.tag);
            self.step(request, done);
        }
    }

    /// Handles the outcome of one operation of `request`.
    fn step(&mut self, mut request: Request, done: Done) {
        if (1..=SPARE_VECTORS_MAX).contains(&done.vectors.as_slice().len()) {
            self.spare.push(done.vectors);
        }
        match request.outcome(done.result) {
            Outcome::Continue => self.advance(request),
            Outcome::End(status) => self.end_request(request, status),
        }
    }

    fn end_request(&mut self, request: Request, status: Status) {
        let mut data = 0;
        match request.work {
            Work::Read { .. } => {
                data = request.done;
                self.device.counters.count_read(data);
            }
            Work::Write { .. } => self.device.counters.count_write(request.done),
            _ => {}
        }
        self.finish(request.chain, data, status);
    }

    /// Returns a request with its status, which is the last writable byte. `data` bytes before it
    /// were written, from the start. The status is always written: only a chain without a
    /// writable byte has no place for it.
    fn finish(&mut self, chain: Chain, data: usize, status: Status) {
        if status == Status::IoError {
            self.device.counters.count_error();
        }
        let mut written = 0;
        if let Some(last) = chain.writable_len().checked_sub(1)
            && chain.write(&self.device.memory, last, &[status as u8]).is_ok()
        {
            // A prefix only counts as written up to its first hole.
            written = if data >= last { last + 1 } else { data };
        }
        // `notify`, with which every round ends, shows it together with the others.
        self.queue.complete_unseen(&self.device.memory, chain, written);
    }

    fn in_flight(&self) -> bool {
        self.free_tags.len() < self.requests.len()
    }
}

impl Serve for BlockQueue {
    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()> {
        // Each kick is an edge: nobody has to read the counter, which saves a system call.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        ops.add(Events::new(&self.queue, edge)).map_err(io::Error::other)?;
        if let Some(event) = self.backend.as_ref().and_then(|backend| backend.event()) {
            ops.add(Events::new_raw(event, EventSet::IN)).map_err(io::Error::other)?;
        }
        for event in self.device.limiter.iter().flat_map(QueueLimiter::events) {
            ops.add(Events::new_raw(event, EventSet::IN)).map_err(io::Error::other)?;
        }
        self.queue.begin_round(&self.device.memory);
        self.progress()
    }

    fn serve(&mut self, event: Events, _ops: &mut EventOps) -> io::Result<()> {
        if event.fd() == self.queue.as_raw_fd() {
            self.queue.begin_round(&self.device.memory);
        } else if let Some(limiter) = &self.device.limiter
            && limiter.events().contains(&event.fd())
        {
            limiter.acknowledge(event.fd());
            self.queue.begin_round(&self.device.memory);
        } else {
            self.reap()?;
        }
        self.progress()
    }

    fn end(&mut self) {
        while self.in_flight()
            && let Some(backend) = &mut self.backend
        {
            if backend.wait().and_then(|()| self.reap()).is_err() {
                // A dead ring: what is in flight never comes back, so neither may its tags.
                self.backend = None;
                self.device.interrupt.device_needs_reset();
                break;
            }
        }
        self.queue.notify(&self.device.memory);
    }

    fn failed(&mut self, _error: io::Error) {
        self.device.interrupt.device_needs_reset();
    }
}

/// Empty vectors, in an allocation of `spare` if there is one.
fn take(spare: &mut Vec<IoVectors>) -> IoVectors {
    let mut vectors = spare.pop().unwrap_or_default();
    vectors.clear();
    vectors
}

/// What follows from an operation that is done.
enum Outcome {
    Continue,
    End(Status),
}

impl Request {
    fn new(chain: Chain, work: Work) -> Self {
        let unmap = matches!(work, Work::Zeroes { unmap: true, .. });
        let method = if unmap { ZeroMethod::Punch } else { ZeroMethod::Zero };
        Self { chain, work, done: 0, method }
    }

    /// The operation that comes next, with vectors of an allocation of `spare`; `None` if all is
    /// done.
    fn next_operation(
        &self,
        memory: &GuestMemoryMmap,
        spare: &mut Vec<IoVectors>,
    ) -> Result<Option<Operation>, ChainError> {
        let (done, at) = (self.done, self.done as u64);
        Ok(match self.work {
            Work::Read { len, .. } | Work::Write { len, .. } if done == len => None,
            Work::Read { offset, len } => {
                let mut vectors = take(spare);
                self.chain.writable_vectors(memory, done, len - done, &mut vectors)?;
                Some(Operation::Read { offset: offset + at, vectors })
            }
            Work::Write { offset, len } => {
                let from = DATA_OFFSET + done;
                let mut vectors = take(spare);
                self.chain.readable_vectors(memory, from, len - done, &mut vectors)?;
                Some(Operation::Write { offset: offset + at, vectors })
            }
            Work::Flush => Some(Operation::Sync),
            Work::Discard { len: 0, .. } | Work::Zeroes { len: 0, .. } | Work::Id => None,
            Work::Discard { offset, len } => Some(Operation::Punch { offset, len }),
            Work::Zeroes { len, .. } if at == len => None,
            Work::Zeroes { offset, len, .. } => Some(match self.method {
                ZeroMethod::Punch => Operation::Punch { offset, len },
                ZeroMethod::Zero => Operation::Zero { offset, len },
                ZeroMethod::Write => {
                    let mut vectors = take(spare);
                    vectors.push_zeroes((len - at).min(ZEROES_STEP_BYTES) as usize);
                    Operation::Write { offset: offset + at, vectors }
                }
            }),
        })
    }

    /// Takes note of the result of an operation.
    fn outcome(&mut self, result: io::Result<usize>) -> Outcome {
        let count = match result {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Outcome::Continue,
            Err(error) => return self.error(&error),
        };
        match self.work {
            // The file has become shorter than it was.
            Work::Read { .. } | Work::Write { .. } if count == 0 => Outcome::End(Status::IoError),
            Work::Zeroes { .. } if self.method == ZeroMethod::Write && count == 0 => {
                Outcome::End(Status::IoError)
            }
            Work::Read { .. } | Work::Write { .. } => {
                self.done += count;
                Outcome::Continue
            }
            Work::Zeroes { .. } if self.method == ZeroMethod::Write => {
                self.done += count;
                Outcome::Continue
            }
            Work::Zeroes { .. } | Work::Discard { .. } | Work::Flush | Work::Id => {
                Outcome::End(Status::Ok)
            }
        }
    }

    /// What an error means: some only say that a way to free or zero a range does not exist here.
    fn error(&mut self, error: &io::Error) -> Outcome {
        let missing = matches!(
            error.raw_os_error(),
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENODEV | libc::ENOSYS)
        );
        match (self.work, self.method) {
            // A discard is a hint; the device may keep the data (section 5.2.6.2).
            (Work::Discard { .. }, _) if missing => Outcome::End(Status::Ok),
            (Work::Zeroes { .. }, ZeroMethod::Punch) if missing => {
                self.method = ZeroMethod::Zero;
                Outcome::Continue
            }
            (Work::Zeroes { .. }, ZeroMethod::Zero) if missing => {
                self.method = ZeroMethod::Write;
                Outcome::Continue
            }
            _ => Outcome::End(Status::IoError),
        }
    }
}
