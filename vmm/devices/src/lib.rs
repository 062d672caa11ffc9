//! Devices of the microVM: the bus, the serial console, the reset port, the virtio-mmio transport
//! and the virtio devices behind it.
//!
//! Everything here handles bytes of a hostile guest. It holds descriptors and guest memory; it
//! knows no KVM, no path and no configuration file.

pub mod bus;
pub mod rate;
pub mod reset;
pub mod serial;
pub mod virtio;
pub mod worker;
