//! Places devices in the guest's address spaces, one after the other, and tells the guest of them.

use std::sync::{Arc, Mutex};

use bulkhead_devices::bus::{Bus, SharedDevice};
use bulkhead_devices::reset::{RESET_PORT, RESET_PORT_LEN, ResetPort};
use bulkhead_devices::serial::{SERIAL_PORT, SERIAL_PORT_LEN, Serial};
use bulkhead_devices::virtio::mmio::{INTERRUPT_ACK, Kicks, MMIO_LEN, MmioTransport, QUEUE_NOTIFY};
use bulkhead_devices::virtio::net::Net;
use bulkhead_devices::virtio::{INTERRUPT_USED, Reach, VirtioDevice};
use bulkhead_devices::worker::ThreadHook;
use bulkhead_machine::boot::{Loading, Payload};
use bulkhead_machine::layout::MMIO_START;
use bulkhead_machine::vm::{PINS_MAX, Vm};
use bulkhead_protocol::vm::VmConfig;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::blocks::Blocks;
use super::descriptors::Descriptors;
use super::error::AssembleError;
use super::machine::{Buses, Devices, Machine};
use super::memory::MemorySize;
use super::nets::Nets;
use super::placed::{Pausable, Placed};

/// First interrupt line of a device. The lines below belonged to legacy devices, whose numbers
/// some kernels still treat specially.
const FIRST_LINE: u32 = 5;

/// Most interrupt lines of devices.
const LINES_MAX: u32 = PINS_MAX - FIRST_LINE;

/// Pins of an I/O APIC for the devices of `config`.
pub fn pins(config: &VmConfig) -> u32 {
    let lines = 1
        + u32::from(config.balloon())
        + u32::from(config.hotplug_mib() > 0)
        + u32::from(config.vsock().is_some())
        + u32::from(config.share().is_some())
        + config.blocks().len() as u32
        + config.nets().len() as u32
        + config.net_spares().min(1);
    FIRST_LINE + lines.min(LINES_MAX)
}

/// Places devices one after the other.
pub struct Builder {
    vm: Vm,
    memory: GuestMemoryMmap,
    reach: Reach,
    ports: Bus,
    mmio: Bus,
    pausable: Vec<Arc<Mutex<dyn Pausable>>>,
    serial: Arc<Mutex<Serial>>,
    /// Block devices placed so far.
    pub blocks: Blocks,
    nets: Nets,
    /// Interrupt lines given out.
    lines: u32,
    /// What changes the size of the guest.
    pub size: MemorySize,
    cmdline: String,
}

impl Builder {
    /// No device but the console and the reset port. Devices may use `memory` within `reach`.
    pub fn new(
        vm: Vm,
        memory: GuestMemoryMmap,
        reach: Reach,
        config: &VmConfig,
        fds: &mut Descriptors,
        reset: &EventFd,
    ) -> Result<Self, AssembleError> {
        let console = config.console().map(|index| fds.file(index)).transpose()?;
        let serial = Serial::new(console).map_err(AssembleError::Serial)?;
        let serial = Arc::new(Mutex::new(serial));
        let port = ResetPort::new(reset.try_clone().map_err(AssembleError::Event)?);
        let mut ports = Bus::new();
        ports.insert(SERIAL_PORT, SERIAL_PORT_LEN, serial.clone())?;
        ports.insert(RESET_PORT, RESET_PORT_LEN, Arc::new(Mutex::new(port)))?;
        Ok(Self {
            vm,
            memory,
            reach,
            ports,
            mmio: Bus::new(),
            pausable: Vec::new(),
            serial,
            blocks: Blocks::default(),
            nets: Nets::default(),
            lines: 0,
            size: MemorySize {
                boot_bytes: u64::from(config.mem_mib()) << 20,
                ..MemorySize::default()
            },
            cmdline: config.cmdline().to_owned(),
        })
    }

    /// Slots with the configuration's interfaces, and those that are spare. A spare one seldom has
    /// an interface, so they share a line: each line costs time at boot.
    pub fn network(
        &mut self,
        config: &VmConfig,
        fds: &mut Descriptors,
        hook: &ThreadHook,
    ) -> Result<(), AssembleError> {
        for (slot, net) in (0..).zip(config.nets()) {
            let device = self.attach(Net::new(hook).map_err(AssembleError::Slot)?)?;
            self.nets.push(device);
            self.nets.fill(slot, net, fds)?;
        }
        let spares = config.net_spares();
        let line = if spares > 0 { self.next_line() } else { 0 };
        for _ in 0..spares {
            let device = Net::new(hook).map_err(AssembleError::Slot)?;
            let device = self.attach_at(device, line)?;
            self.nets.push(device);
        }
        Ok(())
    }

    /// The next interrupt line; with more devices than lines, one that another has too. Drivers of
    /// virtio-mmio expect that.
    fn next_line(&mut self) -> u32 {
        let line = FIRST_LINE + self.lines % LINES_MAX;
        self.lines += 1;
        line
    }

    /// Gives the next window and interrupt line to `device` and names both to the guest.
    pub fn attach<D: VirtioDevice + 'static>(
        &mut self,
        device: D,
    ) -> Result<Placed<D>, AssembleError> {
        let line = self.next_line();
        self.attach_at(device, line)
    }

    /// Gives the next window to `device`, with interrupt line `line`.
    fn attach_at<D: VirtioDevice + 'static>(
        &mut self,
        device: D,
        line: u32,
    ) -> Result<Placed<D>, AssembleError> {
        let base = MMIO_START + self.pausable.len() as u64 * MMIO_LEN;
        let interrupt = event()?;
        self.vm.register_irq(&interrupt, line)?;
        let transport = MmioTransport::new(device, self.memory.clone(), interrupt)
            .map_err(AssembleError::Event)?
            .within(self.reach.clone());
        match transport.kicks() {
            Kicks::Each(kicks) => {
                for (queue, kick) in (0..).zip(kicks) {
                    self.vm.register_mmio_notify(kick, base + QUEUE_NOTIFY, queue)?;
                }
            }
            Kicks::One(kick) => self.vm.register_mmio_notify_any(kick, base + QUEUE_NOTIFY)?,
        }
        // Every interrupt is acknowledged; KVM takes that without leaving to this process. Nobody
        // reads the event.
        self.vm.register_mmio_notify(&event()?, base + INTERRUPT_ACK, INTERRUPT_USED)?;
        let transport = Arc::new(Mutex::new(transport));
        self.mmio.insert(base, MMIO_LEN, transport.clone() as SharedDevice)?;
        self.pausable.push(transport.clone());
        // Documentation/admin-guide/kernel-parameters.txt: virtio_mmio.device=SIZE@BASE:IRQ.
        self.cmdline += &format!(" virtio_mmio.device=4K@{base:#x}:{line}");
        Ok(transport)
    }

    /// Loads the guest, which now knows all its devices.
    pub fn finish(
        mut self,
        config: &VmConfig,
        mut fds: Descriptors,
        reset: EventFd,
        server_gone: EventFd,
    ) -> Result<Machine, AssembleError> {
        let kernel = fds.file(config.kernel())?;
        let initrd = config.initrd().map(|index| fds.file(index)).transpose()?;
        let payload = Payload {
            kernel: &kernel,
            initrd: initrd.as_ref(),
            cmdline: &self.cmdline,
            loading: Loading::Mapped,
        };
        self.vm.load(&payload)?;
        Ok(Machine {
            vm: self.vm,
            buses: Arc::new(Buses { ports: self.ports, memory: self.mmio }),
            devices: Devices {
                pausable: self.pausable,
                serial: self.serial,
                blocks: self.blocks,
                nets: self.nets,
                memory: self.size,
            },
            reset,
            server_gone,
        })
    }
}

/// An event descriptor.
pub fn event() -> Result<EventFd, AssembleError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(AssembleError::Event)
}
