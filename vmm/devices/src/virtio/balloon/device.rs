//! The balloon as its transport sees it (virtio 1.2, section 5.5): up to four queues, its
//! features and its configuration.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue::BalloonQueue;
use super::statistics::GuestFigures;
use crate::virtio::chain::ChainQueue;
use crate::virtio::reclaim::{PAGE_BYTES, Reclaim};
use crate::virtio::{ActivateError, Activation, VirtioDevice, read_config_space};
use crate::worker::{ThreadHook, ThreadKind, Worker};

/// Inflate, deflate, statistics, reporting: a driver has one chain in each, and Linux wants to
/// report 32 ranges at once.
const QUEUE_SIZES: &[u16] = &[16, 16, 16, 32];
/// Queues that every driver has.
const QUEUES_MIN: usize = 2;

/// `VIRTIO_BALLOON_F_STATS_VQ`.
pub(super) const F_STATS_VQ: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
pub(super) const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`.
pub(super) const F_REPORTING: u64 = 1 << 5;

/// Offset of `actual` in `struct virtio_balloon_config`; `num_pages` comes first.
const ACTUAL: u64 = 4;

/// What transport, worker and monitor share.
#[derive(Debug)]
pub(super) struct Shared {
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    reported_bytes: AtomicU64,
    figures: Mutex<Option<GuestFigures>>,
    /// Signalled when new statistics are wanted.
    wanted: EventFd,
}

impl Shared {
    pub(super) fn count_reported(&self, bytes: u64) {
        self.reported_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_figures(&self, figures: GuestFigures) {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = Some(figures);
    }

    pub(super) fn wanted(&self) -> &EventFd {
        &self.wanted
    }
}

/// What a balloon does and has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BalloonCounts {
    /// Size asked for, in bytes.
    pub target_bytes: u64,
    /// Size that the driver says it has made, in bytes.
    pub actual_bytes: u64,
    /// Bytes given back by free page reporting, counted each time.
    pub reported_bytes: u64,
    /// What the driver last told of the guest's memory.
    pub figures: Option<GuestFigures>,
}

/// All state of a [`Balloon`] that a snapshot must hold, taken while it is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalloonState {
    /// `num_pages`.
    pub target_pages: u32,
    /// `actual`.
    pub actual_pages: u32,
    /// Positions of the queues in use; empty before activation.
    pub queues: Vec<QueueState>,
}

/// A virtio memory balloon.
pub struct Balloon {
    shared: Arc<Shared>,
    worker: Worker<BalloonQueue>,
    /// What the worker gave back for a pause.
    paused: Option<BalloonQueue>,
}

impl Balloon {
    /// Spawns the worker, parked. The balloon is empty.
    pub fn new(hook: &ThreadHook) -> io::Result<Self> {
        let shared = Shared {
            target_pages: AtomicU32::new(0),
            actual_pages: AtomicU32::new(0),
            reported_bytes: AtomicU64::new(0),
            figures: Mutex::new(None),
            wanted: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        };
        let worker = Worker::spawn(ThreadKind::Memory, hook)?;
        Ok(Self { shared: Arc::new(shared), worker, paused: None })
    }

    /// Asks for a balloon of `bytes`, in whole pages, at most 16 TiB. The caller tells the driver
    /// that the configuration has changed.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        self.shared.target_pages.store(pages, Ordering::Release);
    }

    /// What it does, and a wish for newer figures of the guest.
    pub fn counts(&self) -> BalloonCounts {
        let shared = &self.shared;
        let bytes = |pages: &AtomicU32| u64::from(pages.load(Ordering::Acquire)) * PAGE_BYTES;
        // The counter overflows only after 2^64 - 2 unread wishes.
        let _ = shared.wanted.write(1);
        BalloonCounts {
            target_bytes: bytes(&shared.target_pages),
            actual_bytes: bytes(&shared.actual_pages),
            reported_bytes: shared.reported_bytes.load(Ordering::Relaxed),
            figures: *shared.figures.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// The state of a device that is paused or not activated.
    pub fn state(&self) -> BalloonState {
        let queues = self.paused.iter().flat_map(|paused| {
            let always = [&paused.inflate, &paused.deflate];
            always.into_iter().chain(&paused.statistics).chain(&paused.reporting)
        });
        BalloonState {
            target_pages: self.shared.target_pages.load(Ordering::Acquire),
            actual_pages: self.shared.actual_pages.load(Ordering::Acquire),
            queues: queues.map(ChainQueue::state).collect(),
        }
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn queues_min(&self) -> usize {
        QUEUES_MIN
    }

    fn features(&self) -> u64 {
        F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 8];
        let words = [&self.shared.target_pages, &self.shared.actual_pages];
        for (bytes, word) in space.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        read_config_space(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            self.shared.actual_pages.store(u32::from_le_bytes(bytes), Ordering::Release);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, interrupt, queues } = activation;
        // A queue whose feature is not accepted does not exist, and the later ones move up: that
        // is how Linux and other devices number them.
        let has = |feature| features & feature != 0;
        let needed = QUEUES_MIN + usize::from(has(F_STATS_VQ)) + usize::from(has(F_REPORTING));
        let found = queues.len();
        let reach = queues.first().map(|queue| queue.reach.clone()).unwrap_or_default();
        let mut queues =
            queues.into_iter().map(|queue| ChainQueue::new(queue, interrupt.clone())).fuse();
        let mut next = || queues.next().ok_or(ActivateError::Queues(found, needed));
        let serve = BalloonQueue {
            inflate: next()?,
            deflate: next()?,
            statistics: has(F_STATS_VQ).then(&mut next).transpose()?,
            reporting: has(F_REPORTING).then(&mut next).transpose()?,
            memory,
            reach,
            interrupt,
            shared: Arc::clone(&self.shared),
            reclaim: Reclaim::default(),
            held: None,
        };
        self.worker.start(serve).map_err(|_| ActivateError::Thread)
    }

    /// The balloon of a driver that is gone is empty, whatever it was.
    fn reset(&mut self) {
        self.worker.stop();
        self.paused = None;
        self.shared.actual_pages.store(0, Ordering::Release);
    }

    fn pause(&mut self) {
        if let Some(serve) = self.worker.stop() {
            self.paused = Some(serve);
        }
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        match self.paused.take() {
            Some(serve) => self.worker.start(serve).map_err(|_| ActivateError::Thread),
            None => Ok(()),
        }
    }
}
