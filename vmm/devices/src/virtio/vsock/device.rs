//! The vsock device as its transport sees it (virtio 1.2, section 5.10).

use std::io;
use std::sync::Arc;

use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::virtio::chain::ChainQueue;
use crate::virtio::{ActivateError, Activation, VirtioDevice, read_config_space};
use crate::worker::{ThreadHook, ThreadKind, Worker};

use super::backend::Backend;
use super::muxer::Muxer;
use super::ports::HostPorts;
use super::queue::{Handler, Queues};
use super::rx::RxQueue;

/// Sizes of the rx, tx and event queues. Linux fills the first with one page per entry and offers
/// eight events.
const QUEUE_SIZES: [u16; 3] = [256, 256, 8];

/// Why a device cannot be made or be given a backend.
#[derive(Debug, Error)]
pub enum VsockError {
    /// Creating an event.
    #[error("creating an event descriptor")]
    Event(#[source] io::Error),
    /// Creating the set of sockets to wait for.
    #[error("creating an epoll set")]
    Epoll(#[source] io::Error),
    /// Spawning the worker.
    #[error("starting the vsock thread")]
    Spawn(#[source] io::Error),
    /// The listening socket cannot be waited for.
    #[error("waiting for the listening socket")]
    Listen(#[source] io::Error),
    /// The device serves a driver.
    #[error("the vsock device is active")]
    Active,
}

/// All state of the device besides what lies in guest memory. Connections are not part of it: a
/// machine that is restored has none, and its driver is told so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockState {
    /// Context id of the guest.
    pub guest_cid: u64,
    /// Where the next port for a connection of a client is looked for.
    pub next_host_port: u32,
    /// The driver is to be told that all its connections are gone.
    pub reset_due: bool,
    /// The rx, tx and event queues of a device that was active.
    pub queues: Option<[QueueState; 3]>,
}

/// Where the connections are.
enum Stage {
    /// Not activated.
    Idle(Box<Muxer>),
    /// The worker has them.
    Serving,
    /// Activated and paused.
    Paused(Box<Handler>),
    /// Lost with a worker that has died.
    Lost,
}

/// A vsock device.
pub struct Vsock {
    guest_cid: u64,
    wake: Arc<EventFd>,
    worker: Worker<Handler>,
    stage: Stage,
    reset_due: bool,
}

impl Vsock {
    /// A device for the guest `guest_cid`, whose thread runs `hook` first. Without `backend` it
    /// refuses every connection until it is given one.
    pub fn new(
        guest_cid: u64,
        backend: Option<Backend>,
        hook: &ThreadHook,
    ) -> Result<Self, VsockError> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VsockError::Event)?;
        let muxer = Muxer::new(guest_cid).map_err(VsockError::Epoll)?;
        let worker = Worker::spawn(ThreadKind::Vsock, hook).map_err(VsockError::Spawn)?;
        let mut device = Self {
            guest_cid,
            wake: Arc::new(wake),
            worker,
            stage: Stage::Idle(Box::new(muxer)),
            reset_due: false,
        };
        if let Some(backend) = backend {
            device.set_backend(backend)?;
        }
        Ok(device)
    }

    /// Gives the device a backend, in place of the one it has. Not while it is active.
    pub fn set_backend(&mut self, backend: Backend) -> Result<(), VsockError> {
        match &mut self.stage {
            Stage::Idle(muxer) => muxer.set_backend(backend).map_err(VsockError::Listen),
            _ => Err(VsockError::Active),
        }
    }

    /// The state of the device, or `None` while it serves.
    pub fn state(&self) -> Option<VsockState> {
        let (muxer, reset_due, queues) = match &self.stage {
            Stage::Idle(muxer) => (&**muxer, self.reset_due, None),
            Stage::Paused(handler) => {
                let queues = handler.queue_states();
                (handler.muxer(), handler.reset_is_due(), Some(queues))
            }
            Stage::Serving | Stage::Lost => return None,
        };
        Some(VsockState {
            guest_cid: self.guest_cid,
            next_host_port: muxer.ports().next(),
            reset_due,
            queues,
        })
    }

    /// Takes over the state of an earlier device, whose queues the transport restores. If that
    /// one was active, the driver is told at the next activation that its connections are gone.
    /// Not while this one is active.
    pub fn restore(&mut self, state: &VsockState) -> Result<(), VsockError> {
        let Stage::Idle(muxer) = &mut self.stage else {
            return Err(VsockError::Active);
        };
        muxer.set_guest_cid(state.guest_cid);
        muxer.set_ports(HostPorts::starting_at(state.next_host_port));
        self.guest_cid = state.guest_cid;
        self.reset_due = state.reset_due || state.queues.is_some();
        Ok(())
    }

    fn start(&mut self, handler: Handler) -> Result<(), ActivateError> {
        match self.worker.start(handler) {
            Ok(()) => {
                self.stage = Stage::Serving;
                Ok(())
            }
            Err(handler) => {
                self.stage = Stage::Paused(Box::new(handler));
                Err(ActivateError::Thread)
            }
        }
    }

    /// Takes the handler back from the worker.
    fn stop(&mut self) {
        if matches!(self.stage, Stage::Serving) {
            let handler = self.worker.stop().map(Box::new);
            self.stage = handler.map_or(Stage::Lost, Stage::Paused);
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        // `VIRTIO_VSOCK_F_STREAM` is what a driver assumes where no socket type is offered.
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `guest_cid` is all there is (section 5.10.4).
        read_config_space(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let count = activation.queues.len();
        let Ok([rx, tx, event]) = <[_; 3]>::try_from(activation.queues) else {
            return Err(ActivateError::Queues(count, QUEUE_SIZES.len()));
        };
        let muxer = match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Idle(muxer) => muxer,
            other => {
                self.stage = other;
                return Err(ActivateError::Thread);
            }
        };
        let interrupt = activation.interrupt;
        let queue = |active| ChainQueue::new(active, interrupt.clone());
        let queues = Queues {
            rx: RxQueue::new(activation.memory.clone(), queue(rx)),
            tx: queue(tx),
            event: queue(event),
        };
        let reset_due = std::mem::take(&mut self.reset_due);
        let wake = Arc::clone(&self.wake);
        let memory = activation.memory;
        self.start(Handler::new(memory, queues, muxer, interrupt, wake, reset_due))
    }

    fn reset(&mut self) {
        self.stop();
        self.stage = match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Paused(handler) => {
                let mut muxer = handler.into_muxer();
                muxer.close_all();
                Stage::Idle(muxer)
            }
            other => other,
        };
    }

    fn pause(&mut self) {
        self.stop();
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Paused(handler) => self.start(*handler),
            // A device that was not active has nothing to resume.
            idle => {
                self.stage = idle;
                Ok(())
            }
        }
    }
}
