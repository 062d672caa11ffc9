//! The file system device as its transport sees it (virtio 1.2, section 5.11): a high priority
//! queue, a request queue, no features, and the tag by which a guest mounts it.

use std::io;

use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_queue::QueueState;

use super::backend::Backend;
use super::queue::FsQueue;
use crate::virtio::chain::ChainQueue;
use crate::virtio::{ActivateError, Activation, VirtioDevice, read_config_space};
use crate::worker::{ThreadHook, ThreadKind, Worker};

/// The request queue holds a transfer of 256 pages, and its headers, thrice.
const QUEUE_SIZES: &[u16] = &[128, 1024];

/// Bytes of a tag (section 5.11.4).
const TAG_BYTES: usize = 36;
/// Bytes of `struct virtio_fs_config` without its last field, which is for a feature that is not
/// offered.
const CONFIG_BYTES: usize = TAG_BYTES + 4;

/// The tag by which a guest mounts the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag([u8; TAG_BYTES]);

/// A tag that is empty or does not fit.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the tag has {0} bytes (1 to 36)")]
pub struct TagError(pub usize);

impl TryFrom<&str> for Tag {
    type Error = TagError;

    fn try_from(text: &str) -> Result<Self, TagError> {
        let mut bytes = [0; TAG_BYTES];
        match bytes.get_mut(..text.len()) {
            Some(start) if !text.is_empty() => start.copy_from_slice(text.as_bytes()),
            _ => return Err(TagError(text.len())),
        }
        Ok(Self(bytes))
    }
}

/// What a file system device is, whatever serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsConfig {
    /// The tag.
    pub tag: Tag,
    /// Files that the guest may have open at once. Each takes a descriptor of this process; a
    /// guest that wants more gets `ENFILE`.
    pub files_max: usize,
}

/// All state of an [`Fs`] that a snapshot must hold, taken while it is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsState {
    /// What the device is.
    pub config: FsConfig,
    /// Positions of the queues; `None` before activation.
    pub queues: Option<[QueueState; 2]>,
    /// The server's numbers of the files that are open.
    pub open_files: Vec<u64>,
    /// Requests that the server has not answered, which a snapshot cannot hold.
    pub in_flight: usize,
}

/// A virtio file system device.
pub struct Fs {
    config: FsConfig,
    /// The backend while the device is not activated.
    backend: Option<Backend>,
    worker: Worker<FsQueue>,
    /// What the worker gave back for a pause.
    paused: Option<FsQueue>,
}

/// Why a file system device cannot be made.
#[derive(Debug, Error)]
pub enum FsError {
    /// Spawning the worker.
    #[error("starting the thread of the file system device")]
    Spawn(#[source] io::Error),
}

impl Fs {
    /// Spawns the worker, parked. Without a backend every request is an I/O error.
    pub fn new(
        config: FsConfig,
        backend: Option<Backend>,
        hook: &ThreadHook,
    ) -> Result<Self, FsError> {
        Ok(Self {
            config,
            backend,
            worker: Worker::spawn(ThreadKind::Fs, hook).map_err(FsError::Spawn)?,
            paused: None,
        })
    }

    /// Gives the device a backend, in place of the one that it has. Under a running driver, which
    /// has a session with the old server, this makes sense only if there was none.
    pub fn set_backend(&mut self, backend: Backend) -> Result<(), ActivateError> {
        let running = self.worker.is_serving();
        self.pause();
        match &mut self.paused {
            Some(serve) => serve.set_backend(backend),
            None => self.backend = Some(backend),
        }
        if running { self.resume() } else { Ok(()) }
    }

    /// The state of a device that is paused or not activated.
    pub fn state(&self) -> FsState {
        let paused = self.paused.as_ref();
        FsState {
            config: self.config,
            queues: paused.map(|paused| paused.queues().each_ref().map(ChainQueue::state)),
            open_files: paused.map(FsQueue::open_files).unwrap_or_default(),
            in_flight: paused.map_or(0, FsQueue::in_flight),
        }
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; CONFIG_BYTES];
        space[..TAG_BYTES].copy_from_slice(&self.config.tag.0);
        // One request queue.
        space[TAG_BYTES..].copy_from_slice(&1u32.to_le_bytes());
        read_config_space(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, interrupt, queues, .. } = activation;
        let queues = <[_; 2]>::try_from(queues)
            .map_err(|queues| ActivateError::Queues(queues.len(), QUEUE_SIZES.len()))?;
        let queues = queues.map(|queue| ChainQueue::new(queue, interrupt.clone()));
        let files_max = self.config.files_max;
        let serve = FsQueue::new(queues, memory, interrupt, self.backend.take(), files_max);
        self.worker.start(serve).map_err(|mut serve| {
            self.backend = serve.take_backend();
            ActivateError::Thread
        })
    }

    /// The server learns of the reset when the next driver begins a session with FUSE_INIT.
    fn reset(&mut self) {
        self.pause();
        if let Some(mut serve) = self.paused.take() {
            self.backend = serve.take_backend();
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
