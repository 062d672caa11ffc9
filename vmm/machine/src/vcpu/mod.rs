//! A vCPU before it runs: CPUID, model-specific registers and, for the first one, registers.
//!
//! Application processors stay as KVM makes them, waiting for INIT and SIPI. Their state, and that
//! of a vCPU that has run, is what a snapshot will hold; it belongs here too.

pub(crate) mod registers;

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_xcr, kvm_xcrs};
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::fam;

use crate::cpuid::CpuidTemplate;

/// Most vCPUs of one guest: what the MP table has room for.
pub const VCPUS_MAX: u32 = 32;

/// `IA32_MISC_ENABLE` (Intel SDM volume 4): fast string operations on, branch trace storage and
/// precise event sampling not there. Linux uses `rep movs` for copies only with the first bit set.
const MISC_ENABLE: kvm_msr_entry =
    kvm_msr_entry { index: 0x1a0, reserved: 0, data: 1 << 0 | 1 << 11 | 1 << 12 };

/// Why a vCPU could not be set up.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// `KVM_CREATE_VCPU`.
    #[error("creating vCPU {0} (KVM_CREATE_VCPU)")]
    Create(u32, #[source] kvm_ioctls::Error),
    /// More CPUID entries than KVM takes.
    #[error("CPUID of vCPU {0} has too many entries")]
    CpuidSize(u32, #[source] fam::Error),
    /// `KVM_SET_CPUID2`.
    #[error("setting CPUID of vCPU {0} (KVM_SET_CPUID2)")]
    SetCpuid(u32, #[source] kvm_ioctls::Error),
    /// The list of registers.
    #[error("listing model-specific registers of vCPU {0}")]
    MsrList(u32, #[source] fam::Error),
    /// `KVM_SET_MSRS`.
    #[error("setting model-specific registers of vCPU {0} (KVM_SET_MSRS)")]
    SetMsrs(u32, #[source] kvm_ioctls::Error),
    /// KVM refused a register.
    #[error("KVM refuses model-specific register {index:#x} of vCPU {id}")]
    Msr {
        /// The vCPU.
        id: u32,
        /// The register.
        index: u32,
    },
    /// `KVM_SET_XCRS`.
    #[error("setting XCR0 of vCPU {0} (KVM_SET_XCRS)")]
    SetXcr0(u32, #[source] kvm_ioctls::Error),
    /// `KVM_GET_SREGS` or `KVM_SET_SREGS`.
    #[error("setting system registers of the first vCPU (KVM_SET_SREGS)")]
    SystemRegisters(#[source] kvm_ioctls::Error),
    /// `KVM_SET_REGS`.
    #[error("setting registers of the first vCPU (KVM_SET_REGS)")]
    Registers(#[source] kvm_ioctls::Error),
}

/// Creates vCPU `id`.
pub(crate) fn create(vm: &VmFd, id: u32, cpuid: &CpuidTemplate) -> Result<VcpuFd, VcpuError> {
    let vcpu = vm.create_vcpu(u64::from(id)).map_err(|e| VcpuError::Create(id, e))?;
    let entries = CpuId::from_entries(&cpuid.for_vcpu(id));
    let entries = entries.map_err(|e| VcpuError::CpuidSize(id, e))?;
    vcpu.set_cpuid2(&entries).map_err(|e| VcpuError::SetCpuid(id, e))?;
    set_msrs(&vcpu, id, &[MISC_ENABLE])?;
    if let Some(states) = cpuid.vector_states() {
        set_xcr0(&vcpu, states).map_err(|e| VcpuError::SetXcr0(id, e))?;
    }
    Ok(vcpu)
}

/// Enables the x87 and vector states before the guest does.
///
/// KVM computes the size in leaf 0xd of CPUID from the XCR0 it knows of. Where this host is itself
/// a guest and the hypervisor below does not trap XSETBV (QEMU's TCG does not), KVM never learns
/// what the guest enables: Linux finds the size inconsistent and does without XSAVE, or runs on
/// with KVM's XCR0 in place of its own. Elsewhere the guest overwrites what is set here.
fn set_xcr0(vcpu: &VcpuFd, states: u64) -> Result<(), kvm_ioctls::Error> {
    let mut registers = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    registers.xcrs[0] = kvm_xcr { xcr: 0, value: states, ..Default::default() };
    vcpu.set_xcrs(&registers)
}

fn set_msrs(vcpu: &VcpuFd, id: u32, msrs: &[kvm_msr_entry]) -> Result<(), VcpuError> {
    let list = Msrs::from_entries(msrs).map_err(|e| VcpuError::MsrList(id, e))?;
    let set = vcpu.set_msrs(&list).map_err(|e| VcpuError::SetMsrs(id, e))?;
    // KVM stops at the first register that it refuses.
    match msrs.get(set) {
        Some(msr) => Err(VcpuError::Msr { id, index: msr.index }),
        None => Ok(()),
    }
}
