//! vCPUs that run: their threads, what they do on each exit, and how they are paused and stopped.
//!
//! Trust: everything in an exit is the guest's choice: ports, addresses, data. It goes to the
//! [`IoBus`] as it is.

mod control;
mod exit;
mod kick;
mod set;
#[cfg(test)]
mod tests;
mod thread;

pub use exit::{InternalError, RunError, VcpuExit};
pub use set::{StartError, VcpuHook, VcpuSet};

/// What the guest reaches by port and memory accesses. Called on vCPU threads, several at a time.
///
/// Reads fill `data`; where nothing answers, hardware reads all ones. Sizes are 1, 2 or 4 bytes
/// for ports and 1 to 8 bytes for memory. A call may block its vCPU, but must come to an end by
/// itself: a vCPU cannot be paused or stopped within. For the same reason it must not call
/// [`VcpuSet`]; it signals whoever owns that.
pub trait IoBus: Send + Sync {
    /// The guest reads a port.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// The guest writes a port.
    fn pio_write(&self, port: u16, data: &[u8]);
    /// The guest reads memory that is not RAM.
    fn mmio_read(&self, addr: u64, data: &mut [u8]);
    /// The guest writes memory that is not RAM.
    fn mmio_write(&self, addr: u64, data: &[u8]);
}
