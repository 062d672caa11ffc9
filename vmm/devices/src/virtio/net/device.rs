//! The network device as its transport sees it (virtio 1.2, section 5.1): a slot that is empty or
//! has an interface, its features, its queues and its configuration.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::QueueState;

use super::backend::{Backend, Port};
use super::counters::{Counters, Counts};
use super::header::Offloads;
use super::queue::{Limits, NetQueues, Pair, Shared};
use super::rx::RxQueue;
use super::tx::TxQueue;
use crate::rate::{RateLimit, RateLimiter};
use crate::virtio::chain::ChainQueue;
use crate::virtio::{ActivateError, Activation, VirtioDevice, read_config_space};
use crate::worker::{ThreadHook, ThreadKind, Worker};

/// Entries of a receive or transmit queue.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_SIZE: u16 = 16;

/// Bytes of `struct virtio_net_config` up to `mtu`.
const CONFIG_BYTES: usize = 12;

/// Features of every interface.
const FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_STATUS;

/// Features of an interface with several queue pairs.
const SEVERAL: u64 = 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;

/// What an interface is, whatever backs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfig {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest packet without its Ethernet header, in bytes.
    pub mtu: u16,
    /// Limit of what the guest receives.
    pub rx_rate: RateLimit,
    /// Limit of what the guest sends.
    pub tx_rate: RateLimit,
}

/// Why an interface cannot be attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The slot has an interface.
    #[error("the network slot is in use")]
    Occupied,
    /// Making the timer of a rate limit.
    #[error("making the timer of a rate limit")]
    Timer(#[source] io::Error),
}

/// All state of a [`Net`] that a snapshot must hold, taken while it is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetState {
    /// What the interface is.
    pub config: NetConfig,
    /// How many queue pairs the driver uses; 0 before activation.
    pub active_pairs: usize,
    /// Positions of the queues; none before activation.
    pub queues: Vec<QueueState>,
}

/// An interface in its slot.
struct Interface {
    config: NetConfig,
    queue_sizes: Vec<u16>,
    shared: Shared,
    /// What the worker does not have.
    idle: Option<Idle>,
}

/// What outlives a driver.
struct Idle {
    ports: Vec<Box<dyn Port>>,
    limits: Limits,
    counts: Counts,
}

/// A network slot: empty, or a virtio network device.
pub struct Net {
    interface: Option<Interface>,
    worker: Worker<NetQueues>,
    /// What the worker gave back for a pause.
    paused: Option<NetQueues>,
}

impl Net {
    /// An empty slot. Spawns the worker, parked.
    pub fn new(hook: &ThreadHook) -> io::Result<Self> {
        let worker = Worker::spawn(ThreadKind::Net, hook)?;
        Ok(Self { interface: None, worker, paused: None })
    }

    /// Fills the slot. The transport must be told that the device is another.
    pub fn attach(&mut self, config: NetConfig, backend: Backend) -> Result<(), AttachError> {
        if self.interface.is_some() {
            return Err(AttachError::Occupied);
        }
        let limit = |limit: RateLimit| {
            let limited = limit != RateLimit::default();
            limited.then(|| RateLimiter::new(limit)).transpose().map_err(AttachError::Timer)
        };
        let limits = Limits { rx: limit(config.rx_rate)?, tx: limit(config.tx_rate)? };
        let ports = backend.ports;
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * ports.len()];
        if ports.len() > 1 {
            queue_sizes.push(CONTROL_SIZE);
        }
        let counters = Arc::new(Counters::default());
        let shared = Shared { counters, link: Arc::new(AtomicBool::new(true)) };
        let idle = Some(Idle { ports, limits, counts: Counts::default() });
        self.interface = Some(Interface { config, queue_sizes, shared, idle });
        Ok(())
    }

    /// Empties the slot and closes the queues of the tap. The transport must have reset the
    /// device. Whether there was an interface.
    pub fn detach(&mut self) -> bool {
        self.reset();
        self.interface.take().is_some()
    }

    /// What the interface has moved since it was attached, if there is one.
    pub fn counts(&self) -> Option<Counts> {
        self.interface.as_ref().map(|interface| interface.shared.counters.load())
    }

    /// The state of an interface that is paused or not activated.
    pub fn state(&self) -> Option<NetState> {
        let config = self.interface.as_ref()?.config;
        let paused = self.paused.as_ref();
        let queues = paused.map(NetQueues::states).unwrap_or_default();
        let active_pairs = paused.map_or(0, |paused| paused.active);
        Some(NetState { config, active_pairs, queues })
    }

    fn start(&mut self, serve: NetQueues) -> Result<(), ActivateError> {
        self.worker.start(serve).map_err(|serve| {
            self.paused = Some(serve);
            ActivateError::Thread
        })
    }
}

impl Interface {
    fn features(&self) -> u64 {
        FEATURES | if self.queue_sizes.len() > 2 { SEVERAL } else { 0 }
    }

    /// How many queue pairs a driver knows of, and whether it knows the control queue behind them
    /// (section 5.1.2).
    fn layout(&self, features: u64) -> (usize, bool) {
        let control = features & 1 << VIRTIO_NET_F_CTRL_VQ != 0;
        let several = control && features & 1 << VIRTIO_NET_F_MQ != 0;
        (if several { self.queue_sizes.len() / 2 } else { 1 }, control)
    }

    /// `struct virtio_net_config` (section 5.1.4).
    fn config_space(&self) -> [u8; CONFIG_BYTES] {
        let link = if self.shared.link.load(Ordering::Acquire) { VIRTIO_NET_S_LINK_UP } else { 0 };
        let pairs = self.queue_sizes.len() / 2;
        let mut space = [0; CONFIG_BYTES];
        space[..6].copy_from_slice(&self.config.mac);
        space[6..8].copy_from_slice(&(link as u16).to_le_bytes());
        space[8..10].copy_from_slice(&(pairs as u16).to_le_bytes());
        space[10..].copy_from_slice(&self.config.mtu.to_le_bytes());
        space
    }

    /// Puts queues and what backs them together for the worker.
    fn serve(&mut self, activation: Activation) -> Result<NetQueues, ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        let (pair_count, has_control) = self.layout(features);
        let needed = 2 * pair_count + usize::from(has_control);
        let Some(kick) = queues.first().map(|queue| Arc::clone(&queue.kick)) else {
            return Err(ActivateError::Queues(0, needed));
        };
        if queues.len() < needed {
            return Err(ActivateError::Queues(queues.len(), needed));
        }
        let Idle { ports, limits, counts } = self.idle.take().ok_or(ActivateError::Thread)?;

        let offloads = Offloads::new(features);
        let mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let bytes_max = offloads.rx_bytes_max(self.config.mtu);
        let mut queues = queues.into_iter();
        let mut next = || {
            let queue = queues.next().expect("as many queues as were counted");
            ChainQueue::new(queue, interrupt.clone())
        };
        let mut ports = ports.into_iter();
        let pairs = (&mut ports).take(pair_count).map(|port| Pair {
            rx: RxQueue::new(next(), mergeable, bytes_max),
            tx: TxQueue::new(next(), offloads),
            port,
            rx_waits: false,
        });
        let pairs = pairs.collect();
        let control = has_control.then(next);
        Ok(NetQueues {
            memory,
            interrupt: interrupt.clone(),
            kick,
            offloads,
            pairs,
            active: 1,
            control,
            idle_ports: ports.collect(),
            limits,
            counts,
            shared: self.shared.clone(),
        })
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        if self.interface.is_some() { VIRTIO_ID_NET } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        self.interface.as_ref().map_or(&[], |interface| &interface.queue_sizes)
    }

    fn queues_min(&self) -> usize {
        self.queue_sizes().len().min(2)
    }

    fn has_one_kick(&self) -> bool {
        true
    }

    fn features(&self) -> u64 {
        self.interface.as_ref().map_or(0, Interface::features)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        match &self.interface {
            Some(interface) => read_config_space(&interface.config_space(), offset, data),
            None => data.fill(0),
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interface = self.interface.as_mut().ok_or(ActivateError::Queues(0, 0))?;
        let serve = interface.serve(activation)?;
        self.start(serve)
    }

    fn reset(&mut self) {
        self.pause();
        if let (Some(interface), Some(serve)) = (&mut self.interface, self.paused.take()) {
            let (ports, limits, counts) = serve.into_parts();
            interface.idle = Some(Idle { ports, limits, counts });
        }
    }

    fn pause(&mut self) {
        if let Some(serve) = self.worker.stop() {
            self.paused = Some(serve);
        }
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        match self.paused.take() {
            Some(serve) => self.start(serve),
            None => Ok(()),
        }
    }
}
