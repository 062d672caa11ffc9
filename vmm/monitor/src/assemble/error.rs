//! Why there is no machine, named after the part that could not be made.

use std::io;

use bulkhead_devices::bus::BusError;
use bulkhead_devices::virtio::block::{BackingError, BlockError, SerialError};
use bulkhead_devices::virtio::fs::{self, FsError, TagError};
use bulkhead_devices::virtio::vsock::VsockError;
use bulkhead_machine::memory::MemoryError;
use bulkhead_machine::vm::VmError;
use thiserror::Error;

use super::descriptors::DescriptorError;
use super::nets::NetError;

/// Why the machine could not be built.
#[derive(Debug, Error)]
pub enum AssembleError {
    /// A descriptor that the configuration names.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// Guest memory.
    #[error("allocating guest memory")]
    Memory(#[from] MemoryError),
    /// KVM or the kernel image.
    #[error("setting up the virtual machine")]
    Vm(#[from] VmError),
    /// Two devices at one address.
    #[error("placing the devices")]
    Bus(#[from] BusError),
    /// An event descriptor.
    #[error("creating an event descriptor")]
    Event(#[source] io::Error),
    /// The serial console.
    #[error("creating the serial console")]
    Serial(#[source] io::Error),
    /// The entropy device.
    #[error("creating the entropy device")]
    Rng(#[source] io::Error),
    /// The tag of the share device.
    #[error("naming the share device")]
    Tag(#[from] TagError),
    /// The socket to the file server.
    #[error("taking the socket to the file server")]
    Server(#[from] fs::BackendError),
    /// The share device.
    #[error("creating the share device")]
    Share(#[from] FsError),
    /// The listening socket of the vsock device.
    #[error("listening for connections to the guest")]
    VsockListener(#[source] io::Error),
    /// The vsock device.
    #[error("creating the vsock device")]
    Vsock(#[from] VsockError),
    /// The file a block device stands for.
    #[error("opening the backing of block device {serial:?}")]
    Backing {
        /// The device's serial number.
        serial: String,
        /// Why.
        #[source]
        source: BackingError,
    },
    /// The serial number of a block device.
    #[error("naming a block device")]
    SerialNumber(#[from] SerialError),
    /// A block device.
    #[error("creating a block device")]
    Block(#[from] BlockError),
    /// A network slot.
    #[error("creating a network slot")]
    Slot(#[source] io::Error),
    /// A network interface.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The balloon.
    #[error("creating the balloon")]
    Balloon(#[source] io::Error),
    /// The memory device.
    #[error("creating the memory device")]
    Mem(#[source] io::Error),
}
