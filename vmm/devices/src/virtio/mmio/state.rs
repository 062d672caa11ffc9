//! What the driver has written to a virtio-mmio transport: plain data, as a snapshot holds it.
//!
//! Trust: none of it is checked but for the order of the status bits; [`QueueRegisters::queue`]
//! checks a queue when the device is activated.

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::virtio::Reach;

/// `ACKNOWLEDGE`: the driver has noticed the device (virtio 1.2, section 2.1).
pub const STATUS_ACKNOWLEDGE: u32 = 1;
/// `DRIVER`: it knows how to drive it.
pub const STATUS_DRIVER: u32 = 2;
/// `DRIVER_OK`: it drives it.
pub const STATUS_DRIVER_OK: u32 = 4;
/// `FEATURES_OK`: features are agreed on.
pub const STATUS_FEATURES_OK: u32 = 8;
/// `DEVICE_NEEDS_RESET`: set by the device alone.
pub const STATUS_NEEDS_RESET: u32 = 64;
/// `FAILED`: the driver has given up.
pub const STATUS_FAILED: u32 = 128;

/// Status of a driver that sets up queues.
pub(super) const CONFIGURING: u32 = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
/// Status of a driver that negotiates features.
pub(super) const NEGOTIATING: u32 = STATUS_ACKNOWLEDGE | STATUS_DRIVER;

/// All state of one transport.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MmioState {
    /// `Status` without `DEVICE_NEEDS_RESET`.
    pub status: u32,
    /// `DEVICE_NEEDS_RESET`.
    pub needs_reset: bool,
    /// `DeviceFeaturesSel`.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_sel: u32,
    /// `DriverFeatures`, both halves.
    pub driver_features: u64,
    /// `QueueSel`.
    pub queue_sel: u32,
    /// Registers of each queue.
    pub queues: Vec<QueueRegisters>,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// `ConfigGeneration`.
    pub config_generation: u32,
}

impl MmioState {
    /// The state after reset of a device with queues of at most these sizes.
    pub(super) fn new(queue_sizes: &[u16]) -> Self {
        let queues = queue_sizes
            .iter()
            .map(|&max_size| QueueRegisters { max_size, ..QueueRegisters::default() })
            .collect();
        Self { queues, ..Self::default() }
    }
}

/// Registers of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueRegisters {
    /// `QueueNumMax`.
    pub max_size: u16,
    /// `QueueNum`; 0 until written, or if what was written is no size.
    pub size: u16,
    /// `QueueReady`.
    pub ready: bool,
    /// `QueueDesc`: address of the descriptor table.
    pub descriptors: u64,
    /// `QueueDriver`: address of the available ring.
    pub available: u64,
    /// `QueueDevice`: address of the used ring.
    pub used: u64,
}

impl QueueRegisters {
    /// The queue that the registers describe, if it is ready, of a power of two of entries not
    /// above the maximum, aligned, and wholly in guest memory that is the driver's.
    pub(super) fn queue(
        &self,
        event_idx: bool,
        memory: &GuestMemoryMmap,
        reach: &Reach,
    ) -> Option<Queue> {
        let state = QueueState {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        // Address 0 means "not set" to virtio-queue, which then reports an error for each access.
        let set = self.available != 0;
        // Section 2.7: bytes of the rings of a queue with event indices.
        let size = u64::from(self.size);
        let rings = [
            (self.descriptors, 16 * size),
            (self.available, 6 + 2 * size),
            (self.used, 6 + 8 * size),
        ];
        let set = set && rings.iter().all(|(start, len)| reach.covers(*start, *len));
        Queue::try_from(state).ok().filter(|queue| set && queue.is_valid(memory))
    }
}

/// What a write to `Status` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transition {
    /// Back to the beginning.
    Reset,
    /// This bit is set, and nothing else happens.
    Set(u32),
    /// Set `FEATURES_OK` if the features are acceptable.
    AcceptFeatures,
    /// Set `DRIVER_OK` and start the device.
    Activate,
    /// Against the order of section 3.1.1, or nothing new.
    Ignore,
}

/// The state machine of the device status (virtio 1.2, sections 2.1 and 3.1.1): one bit at a
/// time, in order, never one back. `FAILED` may come at any time; after it only a reset counts.
pub(super) fn transition(current: u32, written: u32) -> Transition {
    if written == 0 {
        return Transition::Reset;
    }
    // A driver writes back what it has read.
    let written = written & !STATUS_NEEDS_RESET;
    if written & current != current || current & STATUS_FAILED != 0 {
        return Transition::Ignore;
    }
    match (current, written & !current) {
        (_, STATUS_FAILED) => Transition::Set(STATUS_FAILED),
        (0, STATUS_ACKNOWLEDGE) => Transition::Set(STATUS_ACKNOWLEDGE),
        (STATUS_ACKNOWLEDGE, STATUS_DRIVER) => Transition::Set(STATUS_DRIVER),
        (NEGOTIATING, STATUS_FEATURES_OK) => Transition::AcceptFeatures,
        (CONFIGURING, STATUS_DRIVER_OK) => Transition::Activate,
        _ => Transition::Ignore,
    }
}
