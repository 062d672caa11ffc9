//! The entropy device as its transport sees it (virtio 1.2, section 5.4): one queue, no features,
//! no configuration.

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::QueueState;

use super::backend::Entropy;
use super::queue::RngQueue;
use crate::virtio::chain::ChainQueue;
use crate::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::{ThreadHook, ThreadKind, Worker};

const QUEUE_SIZES: &[u16] = &[64];

/// A virtio entropy device.
pub struct Rng {
    worker: Worker<RngQueue>,
    /// What the worker gave back for a pause.
    paused: Option<RngQueue>,
}

/// All state of an [`Rng`] that a snapshot must hold, taken while it is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RngState {
    /// Position of the queue; `None` before activation.
    pub queue: Option<QueueState>,
}

impl Rng {
    /// Spawns the worker, parked.
    pub fn new(hook: &ThreadHook) -> io::Result<Self> {
        Ok(Self { worker: Worker::spawn(ThreadKind::Rng, hook)?, paused: None })
    }

    /// The state of a device that is paused or not activated.
    pub fn state(&self) -> RngState {
        RngState { queue: self.paused.as_ref().map(|paused| paused.queue.state()) }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, interrupt, queues, .. } = activation;
        let [queue] = <[_; 1]>::try_from(queues)
            .map_err(|queues| ActivateError::Queues(queues.len(), QUEUE_SIZES.len()))?;
        let queue = ChainQueue::new(queue, interrupt.clone());
        let serve = RngQueue { queue, memory, interrupt, entropy: Entropy };
        self.worker.start(serve).map_err(|_| ActivateError::Thread)
    }

    fn reset(&mut self) {
        self.worker.stop();
        self.paused = None;
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
