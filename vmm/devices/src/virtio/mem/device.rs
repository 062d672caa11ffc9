//! The memory device as its transport sees it (virtio 1.2, section 5.15): one queue and the sizes
//! in its configuration.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_queue::QueueState;

use super::blocks::{BLOCK_BYTES, Blocks};
use super::queue::MemQueue;
use crate::virtio::chain::ChainQueue;
use crate::virtio::reclaim::Reclaim;
use crate::virtio::{ActivateError, Activation, VirtioDevice, read_config_space};
use crate::worker::{ThreadHook, ThreadKind, Worker};

/// Linux has one request under way.
const QUEUE_SIZES: &[u16] = &[16];

/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`.
pub(super) const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// Bytes of `struct virtio_mem_config`.
const CONFIG_BYTES: usize = 56;

/// What transport, worker and monitor share; all in bytes.
#[derive(Debug)]
pub(super) struct Shared {
    usable: AtomicU64,
    requested: AtomicU64,
    plugged: AtomicU64,
}

impl Shared {
    pub(super) fn usable_bytes(&self) -> u64 {
        self.usable.load(Ordering::Acquire)
    }

    pub(super) fn requested_bytes(&self) -> u64 {
        self.requested.load(Ordering::Acquire)
    }

    pub(super) fn set_plugged(&self, bytes: u64) {
        self.plugged.store(bytes, Ordering::Release);
    }
}

/// How much was asked for and how much is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemCounts {
    /// Bytes asked for.
    pub requested_bytes: u64,
    /// Bytes that the driver has plugged.
    pub plugged_bytes: u64,
}

/// All state of a [`Mem`] that a snapshot must hold, taken while it is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemState {
    /// Bytes from the start of the region that the guest has been given.
    pub usable_bytes: u64,
    /// Bytes asked for and plugged.
    pub counts: MemCounts,
    /// What is plugged: a bit for each block, the lowest first; blocks beyond are not.
    pub plugged: Vec<u64>,
    /// Position of the queue; `None` before activation.
    pub queue: Option<QueueState>,
}

/// A virtio memory device.
pub struct Mem {
    start: u64,
    region_bytes: u64,
    shared: Arc<Shared>,
    /// What is plugged, while the device is not activated.
    blocks: Option<Blocks>,
    worker: Worker<MemQueue>,
    /// What the worker gave back for a pause.
    paused: Option<MemQueue>,
}

impl Mem {
    /// Spawns the worker, parked. The region of `region_bytes` at guest address `start` is empty;
    /// both are multiples of [`BLOCK_BYTES`].
    pub fn new(start: u64, region_bytes: u64, hook: &ThreadHook) -> io::Result<Self> {
        let zero = || AtomicU64::new(0);
        let shared = Shared { usable: zero(), requested: zero(), plugged: zero() };
        Ok(Self {
            start,
            region_bytes,
            shared: Arc::new(shared),
            blocks: Some(Blocks::new(start)),
            worker: Worker::spawn(ThreadKind::Memory, hook)?,
            paused: None,
        })
    }

    /// Asks for `requested_bytes`, in whole blocks, of the first `usable_bytes` of the region,
    /// which are the guest's by now. What was usable stays so. The caller tells the driver that
    /// the configuration has changed.
    pub fn request(&self, requested_bytes: u64, usable_bytes: u64) {
        let usable_bytes = usable_bytes.min(self.region_bytes);
        let usable_bytes = usable_bytes.max(self.shared.usable_bytes());
        self.shared.usable.store(usable_bytes, Ordering::Release);
        let whole = requested_bytes.next_multiple_of(BLOCK_BYTES).min(usable_bytes);
        self.shared.requested.store(whole, Ordering::Release);
    }

    /// How much was asked for and how much is there.
    pub fn counts(&self) -> MemCounts {
        MemCounts {
            requested_bytes: self.shared.requested_bytes(),
            plugged_bytes: self.shared.plugged.load(Ordering::Acquire),
        }
    }

    /// The state of a device that is paused or not activated.
    pub fn state(&self) -> MemState {
        let blocks = self.blocks.as_ref().or(self.paused.as_ref().map(|paused| &paused.blocks));
        MemState {
            usable_bytes: self.shared.usable_bytes(),
            counts: self.counts(),
            plugged: blocks.map(|blocks| blocks.bits().to_vec()).unwrap_or_default(),
            queue: self.paused.as_ref().map(|paused| paused.queue.state()),
        }
    }

    /// `struct virtio_mem_config` (section 5.15.4).
    fn config_space(&self) -> [u8; CONFIG_BYTES] {
        let counts = self.counts();
        let fields = [
            BLOCK_BYTES,
            // No node.
            0,
            self.start,
            self.region_bytes,
            self.shared.usable_bytes(),
            counts.plugged_bytes,
            counts.requested_bytes,
        ];
        let mut space = [0; CONFIG_BYTES];
        for (bytes, field) in space.chunks_exact_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        space
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config_space(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, interrupt, queues, .. } = activation;
        let [queue] = <[_; 1]>::try_from(queues)
            .map_err(|queues| ActivateError::Queues(queues.len(), QUEUE_SIZES.len()))?;
        let blocks = self.blocks.take().ok_or(ActivateError::Thread)?;
        let serve = MemQueue {
            reach: queue.reach.clone(),
            queue: ChainQueue::new(queue, interrupt.clone()),
            memory,
            interrupt,
            shared: Arc::clone(&self.shared),
            blocks,
            reclaim: Reclaim::default(),
        };
        self.worker.start(serve).map_err(|serve| {
            self.blocks = Some(serve.blocks);
            ActivateError::Thread
        })
    }

    /// What is plugged stays plugged (section 5.15.5.2).
    fn reset(&mut self) {
        self.pause();
        if let Some(serve) = self.paused.take() {
            self.blocks = Some(serve.blocks);
        }
    }

    fn pause(&mut self) {
        if let Some(serve) = self.worker.stop() {
            self.paused = Some(serve);
        }
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        match self.paused.take() {
            Some(serve) => self.worker.start(serve).map_err(|serve| {
                self.paused = Some(serve);
                ActivateError::Thread
            }),
            None => Ok(()),
        }
    }
}
