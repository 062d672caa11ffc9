//! A driver for tests: it writes rings in guest memory and drives a transport's registers in the
//! order in which Linux does, and it can also write nonsense.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio::MmioTransport;
use super::{ActiveQueue, RING_FEATURES, Reach, VirtioDevice};
use crate::bus::BusDevice;
use crate::worker::ThreadHook;

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Size of the memory of [`memory`]; rings lie in its first 64 KiB.
pub const MEMORY_BYTES: u64 = 4 << 20;
/// The first address that tests may use for buffers.
pub const BUFFERS: u64 = 0x10_0000;

pub fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap()
}

/// A hook that lets everything pass.
pub fn no_hook() -> ThreadHook {
    Arc::new(|_| Ok(()))
}

/// A descriptor as the driver writes it.
#[derive(Debug, Clone, Copy)]
pub struct Desc {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A buffer that the device reads.
pub fn readable(address: u64, len: u32) -> Desc {
    Desc { address, len, flags: 0, next: 0 }
}

/// A buffer that the device writes.
pub fn writable(address: u64, len: u32) -> Desc {
    Desc { address, len, flags: WRITE, next: 0 }
}

/// The driver's side of one queue.
pub struct DriverQueue {
    pub memory: GuestMemoryMmap,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    next_descriptor: u16,
    available_index: u16,
    used_seen: u16,
}

impl DriverQueue {
    /// Rings for queue `index`, zeroed.
    pub fn new(memory: &GuestMemoryMmap, index: u64, size: u16) -> Self {
        let base = 0x1000 + index * 0x4000;
        let zeroes = [0; 0x4000];
        memory.write_slice(&zeroes, GuestAddress(base)).unwrap();
        Self {
            memory: memory.clone(),
            size,
            descriptors: base,
            available: base + 0x2000,
            used: base + 0x3000,
            next_descriptor: 0,
            available_index: 0,
            used_seen: 0,
        }
    }

    /// The device's side, set up by hand.
    pub fn device_side(&self, event_idx: bool) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(self.descriptors as u32), None);
        queue.set_avail_ring_address(Some(self.available as u32), None);
        queue.set_used_ring_address(Some(self.used as u32), None);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        ActiveQueue { queue, kick, reach: Reach::default() }
    }

    /// Writes `desc` as it is to entry `index` of the table at `table`.
    pub fn write_descriptor(&self, table: u64, index: u16, desc: Desc) {
        let at = table + u64::from(index) * 16;
        self.memory.write_obj(desc.address, GuestAddress(at)).unwrap();
        self.memory.write_obj(desc.len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(desc.flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(desc.next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain that begins at `head` available, without looking at it.
    pub fn offer_head(&mut self, head: u16) {
        let slot = self.available + 4 + u64::from(self.available_index % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_available_index(self.available_index.wrapping_add(1));
    }

    /// Moves the available index anywhere.
    pub fn set_available_index(&mut self, index: u16) {
        self.available_index = index;
        self.memory.store(index, GuestAddress(self.available + 2), Ordering::Release).unwrap();
    }

    /// Links `descs` to a chain in the next free entries and makes it available.
    pub fn offer(&mut self, descs: &[Desc]) -> u16 {
        let head = self.next_descriptor % self.size;
        for (position, desc) in descs.iter().enumerate() {
            let index = self.next_descriptor % self.size;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let mut desc = *desc;
            if position + 1 < descs.len() {
                desc.flags |= NEXT;
                desc.next = self.next_descriptor % self.size;
            }
            self.write_descriptor(self.descriptors, index, desc);
        }
        self.offer_head(head);
        head
    }

    /// Writes `descs` as a chain to the table at `table`, and offers it by one indirect descriptor.
    pub fn offer_indirect(&mut self, table: u64, descs: &[Desc]) -> u16 {
        for (index, desc) in (0u16..).zip(descs) {
            let mut desc = *desc;
            if usize::from(index) + 1 < descs.len() {
                desc.flags |= NEXT;
                desc.next = index + 1;
            }
            self.write_descriptor(table, index, desc);
        }
        let len = descs.len() as u32 * 16;
        self.offer(&[Desc { address: table, len, flags: INDIRECT, next: 0 }])
    }

    /// What the device has returned since the last call: heads and lengths. Asks for an interrupt
    /// at the next one.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut seen = Vec::new();
        loop {
            let index: u16 =
                self.memory.load(GuestAddress(self.used + 2), Ordering::Acquire).unwrap();
            if self.used_seen == index {
                return seen;
            }
            while self.used_seen != index {
                let at = self.used + 4 + u64::from(self.used_seen % self.size) * 8;
                let head = self.memory.read_obj(GuestAddress(at)).unwrap();
                let len = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
                seen.push((head, len));
                self.used_seen = self.used_seen.wrapping_add(1);
            }
            let used_event = self.available + 4 + u64::from(self.size) * 2;
            self.memory.store(self.used_seen, GuestAddress(used_event), Ordering::Relaxed).unwrap();
            // The device must see the event before this looks at its index again.
            fence(Ordering::SeqCst);
        }
    }
}

/// A transport with its device, and the driver of its queues.
pub struct Machine<D> {
    pub transport: MmioTransport<D>,
    pub queues: Vec<DriverQueue>,
    pub line: EventFd,
    pub memory: GuestMemoryMmap,
    /// Most entries of a queue that the driver wants.
    pub queue_size_max: u32,
}

impl<D: VirtioDevice> Machine<D> {
    /// A device after reset. Reading `line` waits for an interrupt.
    pub fn new(device: D) -> Self {
        Self::within(device, Reach::default())
    }

    /// The same for memory that is the driver's only up to a boundary.
    pub fn within(device: D, reach: Reach) -> Self {
        let memory = memory();
        let line = EventFd::new(0).unwrap();
        let transport =
            MmioTransport::new(device, memory.clone(), line.try_clone().unwrap()).unwrap();
        let transport = transport.within(reach);
        Self { transport, queues: Vec::new(), line, memory, queue_size_max: 64 }
    }

    pub fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Accepts those of the offered features that are in `wanted` or of the ring.
    pub fn negotiate(&mut self, wanted: u64) {
        self.write(0x70, 0);
        self.write(0x70, 1);
        self.write(0x70, 3);
        for half in [0, 1] {
            self.write(0x14, half);
            let offered = self.read(0x10);
            self.write(0x24, half);
            self.write(0x20, offered & ((wanted | RING_FEATURES) >> (32 * half)) as u32);
        }
        self.write(0x70, 11);
        assert_eq!(self.read(0x70), 11, "FEATURES_OK");
    }

    /// Sets up every queue as Linux's `vm_setup_vq` does.
    pub fn set_up_queues(&mut self) {
        self.queues.clear();
        for index in 0..self.transport.device().queue_sizes().len() {
            self.write(0x30, index as u32);
            assert_eq!(self.read(0x44), 0, "QueueReady");
            let size = self.read(0x34).min(self.queue_size_max) as u16;
            let queue = DriverQueue::new(&self.memory, index as u64, size);
            self.write(0x38, u32::from(size));
            for (offset, address) in
                [(0x80, queue.descriptors), (0x90, queue.available), (0xa0, queue.used)]
            {
                self.write(offset, address as u32);
                self.write(offset + 4, (address >> 32) as u32);
            }
            self.write(0x44, 1);
            self.queues.push(queue);
        }
    }

    /// From reset to `DRIVER_OK`.
    pub fn start(&mut self, wanted: u64) {
        self.negotiate(wanted);
        self.set_up_queues();
        self.write(0x70, 15);
        assert_eq!(self.read(0x70), 15, "DRIVER_OK");
    }

    /// Kicks queue `index` by the register.
    pub fn kick(&mut self, index: u32) {
        self.write(0x50, index);
    }

    /// Waits for interrupts until queue `index` has returned `count` chains.
    pub fn wait_used(&mut self, index: usize, count: usize) -> Vec<(u32, u32)> {
        let mut used = self.queues[index].take_used();
        while used.len() < count {
            self.line.read().unwrap();
            let status = self.read(0x60);
            self.write(0x64, status);
            used.extend(self.queues[index].take_used());
        }
        used
    }
}
