//! The rate limit of a device, which its queues share.
//!
//! A queue that is refused wakes by the limiter's timer. The timer is one descriptor that all
//! queues watch: whoever handles it first takes its event away, so the others, which may go on as
//! well, are told by an event of their own.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::rate::{RateLimit, RateLimiter};

/// The limit, and an event for each queue.
pub(super) struct Limiter {
    limiter: Mutex<RateLimiter>,
    /// The limiter's timer, which lives as long as the limiter.
    timer: RawFd,
    wakes: Vec<EventFd>,
}

/// A queue's share of it.
#[derive(Clone)]
pub(super) struct QueueLimiter {
    shared: Arc<Limiter>,
    queue: usize,
}

impl Limiter {
    /// Full buckets for so many queues.
    pub(super) fn new(limit: RateLimit, queues: usize) -> io::Result<Arc<Self>> {
        let limiter = RateLimiter::new(limit)?;
        let timer = limiter.as_raw_fd();
        let event = |_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let wakes = (0..queues).map(event).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { limiter: Mutex::new(limiter), timer, wakes }))
    }

    /// The share of queue `queue`, below the number of queues.
    pub(super) fn of_queue(self: &Arc<Self>, queue: usize) -> QueueLimiter {
        QueueLimiter { shared: Arc::clone(self), queue }
    }

    fn lock(&self) -> MutexGuard<'_, RateLimiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueLimiter {
    /// Whether another request may begin now; if not, one of [`QueueLimiter::events`] becomes
    /// readable when one may.
    pub(super) fn admit(&self) -> io::Result<bool> {
        self.shared.lock().admit()
    }

    /// A request of so many bytes has begun.
    pub(super) fn charge(&self, bytes: usize) {
        self.shared.lock().charge(bytes as u64);
    }

    /// What to watch.
    pub(super) fn events(&self) -> [RawFd; 2] {
        [self.shared.timer, self.shared.wakes[self.queue].as_raw_fd()]
    }

    /// Handles the readiness of one of the events.
    pub(super) fn acknowledge(&self, event: RawFd) {
        if event != self.shared.timer {
            // It never blocks; that there is nothing to read is no error.
            let _ = self.shared.wakes[self.queue].read();
            return;
        }
        self.shared.lock().acknowledge();
        let others = self.shared.wakes.iter().enumerate().filter(|(at, _)| *at != self.queue);
        for (_, wake) in others {
            // Cannot overflow: each wake is read before 2^64 of them.
            let _ = wake.write(1);
        }
    }
}
