//! KVM, guest memory, vCPUs, boot, CPUID, MSRs and interrupts. Knows no devices.
//!
//! The order of use:
//!
//! 1. [`memory::allocate`] makes guest memory.
//! 2. [`vm::Vm::new`] makes the machine from an open `/dev/kvm`.
//! 3. [`vm::Vm::load`] puts kernel, initrd and command line into memory.
//!    [`vm::Vm::hotplug`] connects memory that may be added later.
//! 4. [`vm::Vm::register_irq`] and [`vm::Vm::register_mmio_notify`] connect devices.
//! 5. [`run::VcpuSet::start`] runs the vCPUs against an [`run::IoBus`].
//!
//! Trust: configuration is checked by the caller, files and descriptors come from the runtime;
//! everything that comes out of a running guest is hostile.

pub mod boot;
mod cpuid;
pub mod hotplug;
mod ioapic;
mod irq;
pub mod layout;
pub mod memory;
pub mod run;
pub mod vcpu;
pub mod vm;

pub use ioapic::PINS_MAX;

#[cfg(test)]
mod tests;
