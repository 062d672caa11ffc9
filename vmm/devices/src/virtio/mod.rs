//! What every virtio device and its transport share (virtio 1.2, sections 2 and 4.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub mod balloon;
pub mod block;
pub mod chain;
pub mod fs;
pub mod mem;
pub mod mmio;
pub mod net;
mod reach;
mod reclaim;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;

pub use self::reach::Reach;

/// Ring features (virtio 1.2, section 6) that the transport offers for every device:
/// `VIRTIO_F_VERSION_1`, `VIRTIO_F_INDIRECT_DESC` and `VIRTIO_F_EVENT_IDX`.
pub const RING_FEATURES: u64 =
    (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_INDIRECT_DESC) | (1 << VIRTIO_RING_F_EVENT_IDX);

/// A virtio device as its transport sees it.
///
/// Life cycle: the constructor spawns the worker thread (see [`crate::worker`]); `activate` moves
/// queues and backend into it; `reset` and `pause` take them back at a request boundary. A device
/// may be created without backing and given one before `activate`; a device that is activated
/// without backing answers every request with an I/O error.
pub trait VirtioDevice: Send {
    /// Device id (virtio 1.2, section 5); 0 for a slot without a device, which drivers leave alone
    /// (section 4.2.2.2).
    fn device_type(&self) -> u32;
    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// Queues, from the first, without which the device cannot work; a driver may leave the
    /// others alone (section 3.1.1: "discovery of virtqueues").
    fn queues_min(&self) -> usize {
        self.queue_sizes().len()
    }
    /// Whether one event stands for the notifications of all queues: the device looks at each of
    /// them at any. It saves descriptors and, at boot, time. Fixed for the life of the device.
    fn has_one_kick(&self) -> bool {
        false
    }
    /// Feature bits of the device type offered; the transport adds [`RING_FEATURES`].
    fn features(&self) -> u64;
    /// Reads `data.len()` bytes of device configuration at `offset`; bytes beyond it read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes device configuration; most devices ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver has set `DRIVER_OK`: start serving.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// Stop serving and return to the state before activation; the backend stays.
    fn reset(&mut self);
    /// Stop serving at a request boundary, keeping all state, for a paused machine.
    fn pause(&mut self);
    /// Serve again after [`VirtioDevice::pause`].
    fn resume(&mut self) -> Result<(), ActivateError>;
}

/// Reads at `offset` of `space`, the whole device configuration: [`VirtioDevice::read_config`] of a
/// device that has one.
fn read_config_space(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|start| space.get(start..));
    for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *byte = *value;
    }
}

/// What the transport hands to a device that the driver has set up.
pub struct Activation {
    /// Guest memory; every address in it is the guest's choice.
    pub memory: GuestMemoryMmap,
    /// Features that the driver accepted, a subset of those offered.
    pub features: u64,
    /// The queues, validated by the transport, in device order.
    pub queues: Vec<ActiveQueue>,
    /// How the device tells the driver.
    pub interrupt: Interrupt,
}

/// A queue and the event that says the driver has added buffers; see [`chain::ChainQueue`].
pub struct ActiveQueue {
    /// Ready and valid.
    pub queue: Queue,
    /// Signalled by the driver's notification (ioeventfd); never blocks. Shared, since a vCPU
    /// thread, which activates, may not duplicate descriptors.
    pub kick: Arc<EventFd>,
    /// How far up buffers may lie.
    pub reach: Reach,
}

/// `InterruptStatus` bit: a queue has used buffers (virtio 1.2, section 4.2.2).
pub const INTERRUPT_USED: u32 = 1;
/// `InterruptStatus` bit: the device configuration or status has changed.
pub const INTERRUPT_CONFIG: u32 = 2;

/// The interrupt line of one device, shared by its transport and its worker.
#[derive(Clone)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

struct Shared {
    status: AtomicU32,
    needs_reset: AtomicBool,
    generation: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that is signalled by writing to `line` (irqfd).
    pub fn new(line: EventFd) -> Self {
        let shared = Shared {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            line,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn used(&self) {
        self.raise(INTERRUPT_USED);
    }

    /// Tells the driver that the configuration has changed, after the change.
    pub fn config_changed(&self) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(INTERRUPT_CONFIG);
    }

    /// Tells the driver that the device has met an error it cannot recover from
    /// (`DEVICE_NEEDS_RESET`, virtio 1.2, section 2.1.1).
    pub fn device_needs_reset(&self) {
        self.shared.needs_reset.store(true, Ordering::Release);
        self.raise(INTERRUPT_CONFIG);
    }

    /// The `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        self.shared.status.load(Ordering::Acquire)
    }

    /// The driver has handled the causes in `bits` (`InterruptACK`).
    ///
    /// [`INTERRUPT_USED`] stays set: it makes the driver look at its queues, which say themselves
    /// whether there is something. So its acknowledgement, one for each interrupt, need not reach
    /// this process at all (see [`mmio::INTERRUPT_ACK`]).
    pub fn acknowledge(&self, bits: u32) {
        self.shared.status.fetch_and(!bits | INTERRUPT_USED, Ordering::AcqRel);
    }

    /// Whether [`Interrupt::device_needs_reset`] was called since the last reset.
    pub fn needs_reset(&self) -> bool {
        self.shared.needs_reset.load(Ordering::Acquire)
    }

    /// The `ConfigGeneration` register.
    pub fn generation(&self) -> u32 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Back to the state before activation, at a reset of the device.
    pub fn clear(&self) {
        self.shared.status.store(0, Ordering::Release);
        self.shared.needs_reset.store(false, Ordering::Release);
    }

    fn raise(&self, bit: u32) {
        self.shared.status.fetch_or(bit, Ordering::AcqRel);
        // The counter of an eventfd overflows only after 2^64 - 2 unread signals.
        let _ = self.shared.line.write(1);
    }
}

/// Why a device could not start serving.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// A queue that the driver has not made ready, or whose rings are misshapen or not in guest
    /// memory.
    #[error("queue {0} is not set up")]
    Queue(usize),
    /// Fewer queues than the device has.
    #[error("{0} queues are ready, {1} are needed")]
    Queues(usize, usize),
    /// The worker cannot start: it serves already or has ended.
    #[error("the device thread is not ready to serve")]
    Thread,
}
