//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2.2).
//!
//! Input: register accesses of vCPUs, in any order and with any value. Nothing that is written
//! takes effect out of order, no register makes the VMM allocate, and a queue is used only after
//! it was checked against guest memory. The transport calls its device only between `activate`
//! and `reset` of one driver.

mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::state::{CONFIGURING, NEGOTIATING, Transition, transition};
pub use self::state::{
    MmioState, QueueRegisters, STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FAILED,
    STATUS_FEATURES_OK, STATUS_NEEDS_RESET,
};
use super::{
    ActivateError, Activation, ActiveQueue, Interrupt, RING_FEATURES, Reach, VirtioDevice,
};
use crate::bus::BusDevice;

/// Size of a device's range in bytes.
pub const MMIO_LEN: u64 = 0x1000;
/// Offset of `QueueNotify`: a 4-byte write of a queue's index, for which an ioeventfd may stand.
pub const QUEUE_NOTIFY: u64 = 0x50;
/// Offset of `InterruptACK`. Nothing follows from a 4-byte write of
/// [`INTERRUPT_USED`](super::INTERRUPT_USED) there, so that an ioeventfd may take it.
pub const INTERRUPT_ACK: u64 = 0x64;

/// `MagicValue`: "virt".
const MAGIC: u32 = 0x7472_6976;
/// `Version` of a device that is not legacy.
const VERSION: u32 = 2;
/// `VendorID`: "BLKH".
const VENDOR: u32 = 0x484b_4c42;
/// Where device configuration begins.
const CONFIG: u64 = 0x100;

/// A virtio device behind virtio-mmio registers.
pub struct MmioTransport<D> {
    device: D,
    memory: GuestMemoryMmap,
    reach: Reach,
    interrupt: Interrupt,
    kicks: Kicks,
    state: MmioState,
}

/// The events of a device's queues.
pub enum Kicks {
    /// One for each queue. The monitor may have each written by an ioeventfd for 4-byte writes of
    /// the queue's index at [`QUEUE_NOTIFY`].
    Each(Vec<Arc<EventFd>>),
    /// One for all, which may be written for any write at [`QUEUE_NOTIFY`].
    One(Arc<EventFd>),
}

impl Kicks {
    fn new(each: usize, one: bool) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        Ok(match one {
            true => Self::One(event()?),
            false => Self::Each((0..each).map(|_| event()).collect::<Result<_, _>>()?),
        })
    }

    fn of(&self, queue: usize) -> Option<&Arc<EventFd>> {
        match self {
            Self::Each(kicks) => kicks.get(queue),
            Self::One(kick) => Some(kick),
        }
    }

    fn clear(&self) {
        let kicks = match self {
            Self::Each(kicks) => kicks.as_slice(),
            Self::One(kick) => std::slice::from_ref(kick),
        };
        for kick in kicks {
            // There may be none.
            let _ = kick.read();
        }
    }
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// A transport in the state after reset. `line` is the device's interrupt (irqfd).
    pub fn new(device: D, memory: GuestMemoryMmap, line: EventFd) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let kicks = Kicks::new(sizes.len(), device.has_one_kick())?;
        let state = MmioState::new(sizes);
        let (reach, interrupt) = (Reach::default(), Interrupt::new(line));
        Ok(Self { device, memory, reach, interrupt, kicks, state })
    }

    /// With memory that is the driver's only up to a boundary.
    pub fn within(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// The events of the queues.
    pub fn kicks(&self) -> &Kicks {
        &self.kicks
    }

    /// Resets the device, and makes it another, or none, by `change`. The number of queues may
    /// change only if they have one event.
    pub fn replace<T>(&mut self, change: impl FnOnce(&mut D) -> T) -> T {
        self.reset();
        let outcome = change(&mut self.device);
        self.state = MmioState::new(self.device.queue_sizes());
        outcome
    }

    /// The device's interrupt, for changes of configuration that come from the host.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, to change its backing.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Stops the device at a request boundary. Kicks that come meanwhile are kept.
    pub fn pause(&mut self) {
        self.device.pause();
    }

    /// Lets the device go on after [`MmioTransport::pause`].
    pub fn resume(&mut self) -> Result<(), ActivateError> {
        self.device.resume()
    }

    /// All state of the transport itself.
    pub fn state(&self) -> MmioState {
        MmioState {
            needs_reset: self.interrupt.needs_reset(),
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            ..self.state.clone()
        }
    }

    fn features(&self) -> u64 {
        self.device.features() | RING_FEATURES
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.state.queues.get(self.state.queue_sel as usize);
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.device_type(),
            0x0c => VENDOR,
            0x10 => half(self.features(), self.state.device_features_sel),
            0x34 => queue.map_or(0, |queue| u32::from(queue.max_size)),
            0x44 => queue.map_or(0, |queue| u32::from(queue.ready)),
            0x60 => self.interrupt.status(),
            0x70 if self.interrupt.needs_reset() => self.state.status | STATUS_NEEDS_RESET,
            0x70 => self.state.status,
            // SHMLen and SHMBase of a shared memory region that does not exist.
            0xb0 | 0xb4 | 0xb8 | 0xbc => u32::MAX,
            0xfc => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            // A slot without a device; a driver may still write from when there was one.
            _ if self.device.device_type() == 0 => {}
            0x14 => self.state.device_features_sel = value,
            0x20 if self.state.status == NEGOTIATING => {
                let sel = self.state.driver_features_sel;
                set_half(&mut self.state.driver_features, sel, value);
            }
            0x24 => self.state.driver_features_sel = value,
            0x30 => self.state.queue_sel = value,
            QUEUE_NOTIFY => self.notify(value),
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            0x70 => self.set_status(value),
            0x38..=0xa4 if self.state.status == CONFIGURING => self.write_queue(offset, value),
            _ => {}
        }
    }

    /// A write to a register of the selected queue. While the queue is ready all else is fixed
    /// (section 4.2.2.2).
    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.state.queues.get_mut(self.state.queue_sel as usize) else {
            return;
        };
        match offset {
            0x44 => queue.ready = value & 1 != 0,
            _ if queue.ready => {}
            0x38 => queue.size = u16::try_from(value).unwrap_or(0),
            0x80 => set_half(&mut queue.descriptors, 0, value),
            0x84 => set_half(&mut queue.descriptors, 1, value),
            0x90 => set_half(&mut queue.available, 0, value),
            0x94 => set_half(&mut queue.available, 1, value),
            0xa0 => set_half(&mut queue.used, 0, value),
            0xa4 => set_half(&mut queue.used, 1, value),
            _ => {}
        }
    }

    /// The same as an ioeventfd does.
    fn notify(&self, queue: u32) {
        let known = (queue as usize) < self.state.queues.len();
        if let (true, Some(kick)) = (known, self.kicks.of(queue as usize)) {
            // The counter overflows only after 2^64 - 2 unread kicks, and then the queue is kicked.
            let _ = kick.write(1);
        }
    }

    fn set_status(&mut self, written: u32) {
        match transition(self.state.status, written) {
            Transition::Reset => self.reset(),
            Transition::Set(bit) => self.state.status |= bit,
            Transition::AcceptFeatures if self.features_acceptable() => {
                self.state.status |= STATUS_FEATURES_OK;
            }
            Transition::Activate => {
                self.state.status |= STATUS_DRIVER_OK;
                // The driver is told; it may reset the device and try again.
                if self.activate().is_err() {
                    self.interrupt.device_needs_reset();
                }
            }
            Transition::AcceptFeatures | Transition::Ignore => {}
        }
    }

    /// Section 2.2.2: nothing that was not offered; legacy drivers are refused.
    fn features_acceptable(&self) -> bool {
        let driver = self.state.driver_features;
        driver & !self.features() == 0 && driver & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let features = self.state.driver_features;
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let all = &self.state.queues;
        // Queues behind the last one that is ready are not used by this driver.
        let ready = all.iter().rposition(|queue| queue.ready).map_or(0, |last| last + 1);
        let used = &all[..ready.max(self.device.queues_min())];
        let mut queues = Vec::with_capacity(used.len());
        for (index, registers) in used.iter().enumerate() {
            let queue = registers.queue(event_idx, &self.memory, &self.reach);
            let (Some(queue), Some(kick)) = (queue, self.kicks.of(index)) else {
                return Err(ActivateError::Queue(index));
            };
            let (kick, reach) = (Arc::clone(kick), self.reach.clone());
            queues.push(ActiveQueue { queue, kick, reach });
        }
        let interrupt = self.interrupt.clone();
        self.device.activate(Activation {
            memory: self.memory.clone(),
            features,
            queues,
            interrupt,
        })
    }

    /// Section 2.4: after this nothing of the old driver's is touched.
    fn reset(&mut self) {
        self.device.reset();
        self.interrupt.clear();
        self.state = MmioState::new(self.device.queue_sizes());
        // Those of the old driver.
        self.kicks.clear();
    }
}

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device.read_config(offset, data);
        } else if let (0, Ok(data)) = (offset % 4, <&mut [u8; 4]>::try_from(data)) {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if self.state.status & (STATUS_DRIVER | STATUS_FAILED) == STATUS_DRIVER {
                self.device.write_config(offset, data);
            }
        } else if let (0, Ok(data)) = (offset % 4, <[u8; 4]>::try_from(data)) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}

/// Half `sel` of a 64-bit register that is seen through a window of 32 bits.
fn half(value: u64, sel: u32) -> u32 {
    match sel {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(register: &mut u64, sel: u32, value: u32) {
    match sel {
        0 => *register = (*register & !0xffff_ffff) | u64::from(value),
        1 => *register = (*register & 0xffff_ffff) | u64::from(value) << 32,
        _ => {}
    }
}
