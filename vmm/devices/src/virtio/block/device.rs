//! The block device as its transport sees it (virtio 1.2, section 5.2): its queues, its features
//! and its configuration.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueState;

use super::backend::{Backend, Backing, BackingError, sectors};
use super::counters::{BlockCounts, Counters};
use super::limiter::Limiter;
use super::queue::{BlockQueue, Shared};
use super::request::{
    DISCARD_MAX_SECTORS, ID_BYTES, Limits, SECTOR_BYTES, SEG_MAX, SIZE_MAX, ZEROES_MAX_SECTORS,
};
use crate::rate::RateLimit;
use crate::virtio::chain::ChainQueue;
use crate::virtio::{ActivateError, Activation, VirtioDevice, read_config_space};
use crate::worker::{ThreadHook, ThreadKind, Worker};

/// Most queues of one device.
pub const BLOCK_QUEUES_MAX: usize = 8;

const QUEUE_SIZES: &[u16] = &[256; BLOCK_QUEUES_MAX];

/// Bytes of `struct virtio_blk_config` up to `write_zeroes_may_unmap` and its padding.
const CONFIG_BYTES: usize = 60;

/// What a guest reads as the serial number of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SerialNumber([u8; ID_BYTES]);

/// A serial number that does not fit.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the serial number has {0} bytes (at most 20)")]
pub struct SerialError(pub usize);

impl TryFrom<&str> for SerialNumber {
    type Error = SerialError;

    fn try_from(text: &str) -> Result<Self, SerialError> {
        let mut bytes = [0; ID_BYTES];
        let start = bytes.get_mut(..text.len()).ok_or(SerialError(text.len()))?;
        start.copy_from_slice(text.as_bytes());
        Ok(Self(bytes))
    }
}

/// What a block device is, whatever backs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockConfig {
    /// Serial number.
    pub serial: SerialNumber,
    /// Every change is refused.
    pub read_only: bool,
    /// Request queues, 1 to [`BLOCK_QUEUES_MAX`], each with a thread of its own.
    pub queues: usize,
    /// Limit of reads and writes of all queues together.
    pub rate: Option<RateLimit>,
}

impl Default for BlockConfig {
    fn default() -> Self {
        Self { serial: SerialNumber::default(), read_only: false, queues: 1, rate: None }
    }
}

/// All state of a [`Block`] that a snapshot must hold, taken while it is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockState {
    /// What the device is.
    pub config: BlockConfig,
    /// Size in sectors of 512 bytes; 0 without a backing.
    pub sectors: u64,
    /// Positions of the queues that the driver uses; none before activation.
    pub queues: Vec<QueueState>,
}

/// A virtio block device.
pub struct Block {
    config: BlockConfig,
    sectors: Arc<AtomicU64>,
    /// The backing's file, by which its size is known.
    file: Option<File>,
    /// The backends while their queues are not served, by queue.
    backends: Vec<Option<Box<dyn Backend>>>,
    counters: Vec<Arc<Counters>>,
    limiter: Option<Arc<Limiter>>,
    workers: Vec<Worker<BlockQueue>>,
    /// What the workers gave back for a pause, by queue.
    paused: Vec<BlockQueue>,
}

impl Block {
    /// Spawns the workers, parked. Without a backing the device has no sectors.
    pub fn new(
        config: BlockConfig,
        backing: Option<Backing>,
        hook: &ThreadHook,
    ) -> Result<Self, BlockError> {
        if !(1..=QUEUE_SIZES.len()).contains(&config.queues) {
            return Err(BlockError::Queues(config.queues));
        }
        let limiter = config.rate.map(|limit| Limiter::new(limit, config.queues)).transpose();
        let spawn = |_| Worker::spawn(ThreadKind::Block, hook).map_err(BlockError::Spawn);
        let mut block = Self {
            config,
            sectors: Arc::default(),
            file: None,
            backends: (0..config.queues).map(|_| None).collect(),
            counters: (0..config.queues).map(|_| Arc::default()).collect(),
            limiter: limiter.map_err(BlockError::Timer)?,
            workers: (0..config.queues).map(spawn).collect::<Result<_, _>>()?,
            paused: Vec::new(),
        };
        if let Some(backing) = backing {
            block.set_backing(backing).map_err(BlockError::Backing)?;
        }
        Ok(block)
    }

    /// Replaces the backing, also under a running driver, which is told of the new size. The
    /// requests in flight are ended on the old backing.
    pub fn set_backing(&mut self, backing: Backing) -> Result<(), BackingError> {
        if backing.read_only != self.config.read_only {
            return Err(BackingError::ReadOnly);
        }
        if backing.backends.len() != self.config.queues {
            return Err(BackingError::Queues(backing.backends.len(), self.config.queues));
        }
        let running = self.workers.iter().any(Worker::is_serving);
        self.pause();
        self.sectors.store(backing.sectors, Ordering::Release);
        self.file = Some(backing.file);
        self.backends = backing.backends.into_iter().map(Some).collect();
        for (serve, backend) in self.paused.iter_mut().zip(&mut self.backends) {
            serve.set_backend(backend.take());
        }
        if let Some(serve) = self.paused.first() {
            serve.size_changed();
        }
        if running {
            self.resume().map_err(BackingError::Resume)?;
        }
        Ok(())
    }

    /// Takes note of the size that the backing has now, in sectors. The caller tells the driver
    /// by [`crate::virtio::Interrupt::config_changed`].
    pub fn resize(&mut self) -> io::Result<u64> {
        let sectors = self.file.as_ref().map_or(Ok(0), sectors)?;
        self.sectors.store(sectors, Ordering::Release);
        Ok(sectors)
    }

    /// What the device has done since it was made.
    pub fn counts(&self) -> BlockCounts {
        self.counters.iter().fold(BlockCounts::default(), |sum, queue| sum + queue.read())
    }

    /// The state of a device that is paused or not activated.
    pub fn state(&self) -> BlockState {
        BlockState {
            config: self.config,
            sectors: self.sectors.load(Ordering::Acquire),
            queues: self.paused.iter().map(|paused| paused.queue().state()).collect(),
        }
    }

    /// `struct virtio_blk_config` (section 5.2.4).
    fn config_space(&self) -> [u8; CONFIG_BYTES] {
        let mut space = [0; CONFIG_BYTES];
        let mut set = |offset: usize, bytes: &[u8]| {
            space[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        set(0, &self.sectors.load(Ordering::Acquire).to_le_bytes());
        set(8, &SIZE_MAX.to_le_bytes());
        set(12, &SEG_MAX.to_le_bytes());
        set(20, &(SECTOR_BYTES as u32).to_le_bytes());
        // `num_queues`, at most a handful.
        set(34, &(self.config.queues as u16).to_le_bytes());
        if !self.config.read_only {
            set(36, &DISCARD_MAX_SECTORS.to_le_bytes());
            set(40, &1u32.to_le_bytes());
            set(44, &1u32.to_le_bytes());
            set(48, &ZEROES_MAX_SECTORS.to_le_bytes());
            set(52, &1u32.to_le_bytes());
            set(56, &[1]);
        }
        space
    }
}

/// Why a block device cannot be made.
#[derive(Debug, Error)]
pub enum BlockError {
    /// No queue, or too many.
    #[error("a block device with {0} queues (1 to {BLOCK_QUEUES_MAX})")]
    Queues(usize),
    /// Spawning the worker.
    #[error("starting the thread of a block device")]
    Spawn(#[source] io::Error),
    /// Timers of the rate limit.
    #[error("making the timer of a rate limit")]
    Timer(#[source] io::Error),
    /// The backing does not fit.
    #[error("giving a block device its backing")]
    Backing(#[source] BackingError),
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..self.config.queues]
    }

    fn queues_min(&self) -> usize {
        1
    }

    fn features(&self) -> u64 {
        let common = bits(&[
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_MQ,
        ]);
        if self.config.read_only {
            common | bits(&[VIRTIO_BLK_F_RO])
        } else {
            common | bits(&[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES])
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config_space(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, interrupt, queues } = activation;
        let used = queues.len();
        if used > self.workers.len() {
            return Err(ActivateError::Queues(used, self.workers.len()));
        }
        for (index, queue) in queues.into_iter().enumerate() {
            let limits = Limits {
                sectors: 0,
                read_only: self.config.read_only,
                discard: features & bits(&[VIRTIO_BLK_F_DISCARD]) != 0,
                write_zeroes: features & bits(&[VIRTIO_BLK_F_WRITE_ZEROES]) != 0,
            };
            let device = Shared {
                memory: memory.clone(),
                interrupt: interrupt.clone(),
                sectors: Arc::clone(&self.sectors),
                counters: Arc::clone(&self.counters[index]),
                limiter: self.limiter.as_ref().map(|limiter| limiter.of_queue(index)),
                id: self.config.serial.0,
            };
            let queue = ChainQueue::new(queue, interrupt.clone());
            let mut serve = BlockQueue::new(queue, device, limits);
            serve.set_backend(self.backends[index].take());
            self.paused.push(serve);
        }
        self.resume().inspect_err(|_| self.reset())
    }

    fn reset(&mut self) {
        self.pause();
        for (index, mut serve) in self.paused.drain(..).enumerate() {
            self.backends[index] = serve.take_backend();
        }
    }

    fn pause(&mut self) {
        // Queues are served or paused all together, in order.
        self.paused.extend(self.workers.iter_mut().filter_map(Worker::stop));
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        let mut failed = Vec::new();
        for (serve, worker) in self.paused.drain(..).zip(&mut self.workers) {
            failed.extend(worker.start(serve).err());
        }
        if failed.is_empty() {
            return Ok(());
        }
        // A worker that has ended gives nothing back: the device is whole no more.
        self.pause();
        self.paused.extend(failed);
        Err(ActivateError::Thread)
    }
}

fn bits(features: &[u32]) -> u64 {
    features.iter().fold(0, |all, feature| all | 1 << feature)
}
