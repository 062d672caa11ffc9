//! What assembling ends in: a machine, its devices, and the address spaces in which its vCPUs find
//! them.

use std::sync::{Arc, Mutex};

use bulkhead_devices::bus::Bus;
use bulkhead_devices::serial::Serial;
use bulkhead_devices::virtio::ActivateError;
use bulkhead_machine::run::IoBus;
use bulkhead_machine::vm::Vm;
use vmm_sys_util::eventfd::EventFd;

use super::blocks::Blocks;
use super::memory::MemorySize;
use super::nets::Nets;
use super::placed::{Pausable, lock};

/// The two address spaces of a machine.
pub struct Buses {
    pub(super) ports: Bus,
    pub(super) memory: Bus,
}

impl IoBus for Buses {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }

    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        self.memory.read(addr, data);
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) {
        self.memory.write(addr, data);
    }
}

/// All devices of a machine.
pub struct Devices {
    pub(super) pausable: Vec<Arc<Mutex<dyn Pausable>>>,
    pub(super) serial: Arc<Mutex<Serial>>,
    pub(super) blocks: Blocks,
    pub(super) nets: Nets,
    pub(super) memory: MemorySize,
}

impl Devices {
    /// Network slots, in the order of the guest's windows.
    pub fn nets(&self) -> &Nets {
        &self.nets
    }

    /// Block devices, in the order of the configuration.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// What changes the size of the guest's memory.
    pub fn memory(&mut self) -> &mut MemorySize {
        &mut self.memory
    }

    /// Brings every device to a request boundary.
    pub fn pause(&self) {
        for device in &self.pausable {
            lock(device).pause();
        }
    }

    /// Lets every device go on.
    pub fn resume(&self) -> Result<(), ActivateError> {
        for device in &self.pausable {
            lock(device).resume()?;
        }
        Ok(())
    }

    /// Writes out what the console has not ended with a line.
    pub fn flush_console(&self) {
        lock(&self.serial).flush();
    }
}

/// A machine ready to run.
pub struct Machine {
    /// The virtual machine.
    pub vm: Vm,
    /// What its vCPUs reach.
    pub buses: Arc<Buses>,
    /// Its devices.
    pub devices: Devices,
    /// Signalled when the guest resets itself.
    pub reset: EventFd,
    /// Signalled when the file server is gone.
    pub server_gone: EventFd,
}
