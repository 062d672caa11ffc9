//! A device in its place: behind its registers, where vCPUs, the runtime and a pause reach it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_devices::virtio::mmio::MmioTransport;
use bulkhead_devices::virtio::{ActivateError, VirtioDevice};

/// A device behind its registers.
pub type Placed<D> = Arc<Mutex<MmioTransport<D>>>;

/// Nobody else reaches the device meanwhile. A panic of another holder has ended the process in
/// what ships.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that a pause of the machine reaches.
pub trait Pausable: Send {
    /// Brings it to a request boundary.
    fn pause(&mut self);
    /// Lets it go on.
    fn resume(&mut self) -> Result<(), ActivateError>;
}

impl<D: VirtioDevice> Pausable for MmioTransport<D> {
    fn pause(&mut self) {
        MmioTransport::pause(self);
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        MmioTransport::resume(self)
    }
}
