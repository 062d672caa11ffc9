//! The virtual machine: KVM's file descriptors and the memory they refer to.
//!
//! # Interrupts
//!
//! KVM emulates the local APICs and nothing else ("split irqchip"); the I/O APIC is ours
//! (module `ioapic`). Against the full in-kernel chip set this saves the grace periods of
//! registering an 8259 pair and an I/O APIC at creation, a kernel worker per device interrupt, and
//! their code in the host kernel. Linux finds no 8259 and no PIT, and does without.
//!
//! Trust: callers pass checked configuration and descriptors that were opened by someone else.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_X86_NOTIFY_VMEXIT, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE,
    KVM_X86_NOTIFY_VMEXIT_ENABLED, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{
    GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, BootError, Payload};
use crate::cpuid::CpuidTemplate;
use crate::hotplug::{Hotplug, Reserved};
pub use crate::ioapic::PINS_MAX;
use crate::irq::Interrupts;
use crate::layout::TSS_ADDR;
use crate::vcpu::{self, VCPUS_MAX, VcpuError, registers};

/// What a host's KVM must have, by the name its documentation uses.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_ANY_LENGTH"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// What is turned on where the host has it: (capability, argument).
const HARDENING: &[(u32, u64)] = &[
    // No performance counters, whatever CPUID says.
    (KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE as u64),
    // A guest that shuts out interrupts by a storm of exceptions is made to exit.
    (KVM_CAP_X86_NOTIFY_VMEXIT, KVM_X86_NOTIFY_VMEXIT_ENABLED as u64),
];

/// Why there is no virtual machine, or why something could not be attached to it.
#[derive(Debug, Error)]
pub enum VmError {
    /// The descriptor is no `/dev/kvm`, or a KVM of another kind.
    #[error("KVM API version is {0}, not {KVM_API_VERSION}: is the descriptor /dev/kvm?")]
    ApiVersion(i32),
    /// The host's KVM is too old or was built without something.
    #[error("this host's KVM lacks {0}")]
    Capability(&'static str),
    /// More vCPUs than the host or this crate allows, or none.
    #[error("{vcpus} vCPUs (1 to {max} here)")]
    Vcpus {
        /// vCPUs asked for.
        vcpus: u32,
        /// Most that are possible.
        max: u32,
    },
    /// More interrupt lines than an I/O APIC has, or none.
    #[error("{0} interrupt lines (1 to {PINS_MAX})")]
    Lines(u32),
    /// `KVM_CREATE_VM`.
    #[error("creating the virtual machine (KVM_CREATE_VM)")]
    Create(#[source] kvm_ioctls::Error),
    /// `KVM_SET_TSS_ADDR`.
    #[error("placing the TSS (KVM_SET_TSS_ADDR)")]
    Tss(#[source] kvm_ioctls::Error),
    /// `KVM_ENABLE_CAP` with `KVM_CAP_SPLIT_IRQCHIP`.
    #[error("creating the local APICs (KVM_CAP_SPLIT_IRQCHIP)")]
    SplitIrqchip(#[source] kvm_ioctls::Error),
    /// `KVM_ENABLE_CAP` with a capability that the host says it has.
    #[error("turning on KVM capability {0}")]
    Hardening(u32, #[source] kvm_ioctls::Error),
    /// A region has no host address.
    #[error("finding guest memory at {0:#x} in this process")]
    HostAddress(u64, #[source] GuestMemoryError),
    /// `KVM_SET_USER_MEMORY_REGION`.
    #[error("giving the guest its memory at {0:#x} (KVM_SET_USER_MEMORY_REGION)")]
    MemorySlot(u64, #[source] kvm_ioctls::Error),
    /// `KVM_GET_SUPPORTED_CPUID`.
    #[error("asking for the CPUID that KVM supports (KVM_GET_SUPPORTED_CPUID)")]
    SupportedCpuid(#[source] kvm_ioctls::Error),
    /// Setting up a vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Loading the guest.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A line that the I/O APIC does not have, or line 0.
    #[error("interrupt line {gsi} (1 to {last})")]
    Line {
        /// Line asked for.
        gsi: u32,
        /// Last line.
        last: u32,
    },
    /// `KVM_IRQFD`.
    #[error("connecting interrupt line {0} (KVM_IRQFD)")]
    Irqfd(u32, #[source] kvm_ioctls::Error),
    /// `KVM_IOEVENTFD`.
    #[error("connecting the notification at {0:#x} (KVM_IOEVENTFD)")]
    Ioeventfd(u64, #[source] kvm_ioctls::Error),
}

/// How large a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u32,
    /// Pins of the I/O APIC, 1 to [`PINS_MAX`]: the highest interrupt line of a device plus 1.
    /// Linux touches each pin about twenty times at boot, so not more than needed.
    pub pins: u32,
}

/// A virtual machine whose vCPUs do not run yet. [`crate::run::VcpuSet::start`] takes it.
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    fd: Arc<VmFd>,
    interrupts: Arc<Interrupts>,
    memory: GuestMemoryMmap,
    /// Mapped for as long as the machine can run.
    reserved: Option<Reserved>,
    shape: Shape,
}

impl Vm {
    /// Creates a machine from an open `/dev/kvm`.
    pub fn new(kvm: OwnedFd, memory: GuestMemoryMmap, shape: Shape) -> Result<Self, VmError> {
        // SAFETY: the descriptor is open and owned, and ownership passes on.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        check(&kvm, shape)?;
        let fd = kvm.create_vm().map_err(VmError::Create)?;
        fd.set_tss_address(TSS_ADDR).map_err(VmError::Tss)?;
        enable(&fd, KVM_CAP_SPLIT_IRQCHIP, 0).map_err(VmError::SplitIrqchip)?;
        for (capability, argument) in HARDENING {
            if kvm.check_extension_raw((*capability).into()) > 0 {
                enable(&fd, *capability, *argument)
                    .map_err(|error| VmError::Hardening(*capability, error))?;
            }
        }
        add_memory(&fd, &memory)?;

        let supported: CpuId =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VmError::SupportedCpuid)?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let cpuid = CpuidTemplate::new(supported.as_slice(), shape.vcpus, deadline);
        let vcpus = (0..shape.vcpus).map(|id| vcpu::create(&fd, id, &cpuid));
        let vcpus = vcpus.collect::<Result<_, _>>()?;

        let fd = Arc::new(fd);
        let interrupts = Arc::new(Interrupts::new(fd.clone(), shape.pins));
        Ok(Self { vcpus, fd, interrupts, memory, reserved: None, shape })
    }

    /// Loads kernel, initrd and command line, and points the first vCPU at the kernel's entry.
    pub fn load(&mut self, payload: &Payload<'_>) -> Result<(), VmError> {
        let entry = boot::load(&self.memory, payload, self.shape.vcpus, self.shape.pins)?;
        registers::set(&self.vcpus[0], entry)?;
        Ok(())
    }

    /// Connects memory that can be given to the guest while it runs; once at most.
    pub fn hotplug(&mut self, reserved: Reserved) -> Hotplug {
        debug_assert!(self.reserved.is_none(), "one region");
        self.reserved = Some(reserved.clone());
        Hotplug::new(Arc::clone(&self.fd), reserved, self.memory.num_regions() as u32)
    }

    /// Guest memory that is there from the start.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Raises interrupt line `gsi` as an edge whenever `event` is signalled. Line 0 does not exist.
    pub fn register_irq(&self, event: &EventFd, gsi: u32) -> Result<(), VmError> {
        let last = self.shape.pins - 1;
        if !(1..=last).contains(&gsi) {
            return Err(VmError::Line { gsi, last });
        }
        self.fd.register_irqfd(event, gsi).map_err(|error| VmError::Irqfd(gsi, error))
    }

    /// Signals `event` when the guest writes the 32-bit `value` at `addr`; such a write does not
    /// reach the bus.
    pub fn register_mmio_notify(
        &self,
        event: &EventFd,
        addr: u64,
        value: u32,
    ) -> Result<(), VmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(addr), value)
            .map_err(|error| VmError::Ioeventfd(addr, error))
    }

    /// Signals `event` when the guest writes anything at `addr`; such a write does not reach the
    /// bus.
    pub fn register_mmio_notify_any(&self, event: &EventFd, addr: u64) -> Result<(), VmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(addr), NoDatamatch)
            .map_err(|error| VmError::Ioeventfd(addr, error))
    }

    /// The vCPUs, for the threads that run them.
    pub(crate) fn take_vcpus(&mut self) -> Vec<VcpuFd> {
        std::mem::take(&mut self.vcpus)
    }

    pub(crate) fn interrupts(&self) -> &Arc<Interrupts> {
        &self.interrupts
    }
}

fn check(kvm: &Kvm, shape: Shape) -> Result<(), VmError> {
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(VmError::ApiVersion(version));
    }
    for (capability, name) in REQUIRED {
        if !kvm.check_extension(*capability) {
            return Err(VmError::Capability(name));
        }
    }
    let max = VCPUS_MAX.min(kvm.get_max_vcpus() as u32);
    if !(1..=max).contains(&shape.vcpus) {
        return Err(VmError::Vcpus { vcpus: shape.vcpus, max });
    }
    if !(1..=PINS_MAX).contains(&shape.pins) {
        return Err(VmError::Lines(shape.pins));
    }
    Ok(())
}

fn enable(fd: &VmFd, capability: u32, argument: u64) -> Result<(), kvm_ioctls::Error> {
    let mut request = kvm_enable_cap { cap: capability, ..Default::default() };
    request.args[0] = argument;
    fd.enable_cap(&request)
}

fn add_memory(fd: &VmFd, memory: &GuestMemoryMmap) -> Result<(), VmError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let start = region.start_addr().0;
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|error| VmError::HostAddress(start, error))?;
        add_slot(fd, slot, start, region.len(), host)?;
    }
    Ok(())
}

/// Gives the guest `len` bytes at `host` as its memory from `start` on. The `Vm` of `fd` holds
/// the region that `host` lies in.
pub(crate) fn add_slot(
    fd: &VmFd,
    slot: u32,
    start: u64,
    len: u64,
    host: *mut u8,
) -> Result<(), VmError> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: start,
        memory_size: len,
        userspace_addr: host as u64,
    };
    // SAFETY: the region stays mapped while the machine can run: `Vm` holds the memory, and
    // whoever runs the vCPUs holds the `Vm`.
    unsafe { fd.set_user_memory_region(slot) }.map_err(|error| VmError::MemorySlot(start, error))
}
