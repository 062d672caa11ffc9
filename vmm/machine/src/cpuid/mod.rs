//! What the processor tells the guest about itself.
//!
//! Input is what KVM can give a guest (`KVM_GET_SUPPORTED_CPUID`), output is what this guest gets.
//! The filter is an allow-list ([`table`]): a leaf or a bit that is not in it is not shown, so a
//! new processor or kernel shows nothing new by itself. On top come the bits that describe the
//! virtual machine rather than the processor ([`topology`], [`xsave`]).
//!
//! Kept are vendor, family, model, stepping, brand string and cache sizes: Linux chooses its
//! mitigations by the model, programs tune themselves by the caches, and none of it can be hidden
//! from a guest that measures time. Not shown are performance counters, nested virtualization,
//! SGX, TSX, MPX, AMX, resource control, machine check, MTRR, power management, the invariant TSC
//! (kvm-clock is the clock: it survives a snapshot) and five-level paging.

mod table;
#[cfg(test)]
mod tests;
mod topology;
mod xsave;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 0x80000000: the highest extended leaf.
const EXTENDED: u32 = 0x8000_0000;
/// First leaf of the hypervisor.
const HYPERVISOR: u32 = 0x4000_0000;

/// CPUID of every vCPU but for the bits that tell vCPUs apart.
#[derive(Debug, Clone)]
pub(crate) struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u32,
}

impl CpuidTemplate {
    /// Filters `supported` for a guest with `vcpus` vCPUs.
    ///
    /// `tsc_deadline` tells whether the in-kernel local APIC has the TSC-deadline timer; KVM
    /// leaves that bit out of its list.
    pub(crate) fn new(supported: &[kvm_cpuid_entry2], vcpus: u32, tsc_deadline: bool) -> Self {
        let mut entries = table::filter(supported);
        if let Some(leaf) = find(&mut entries, 1, 0) {
            leaf.ecx |= table::HYPERVISOR_PRESENT;
            if tsc_deadline {
                leaf.ecx |= table::TSC_DEADLINE;
            }
        }
        // KVM's local APIC timer runs in every power state. Linux wants to hear it, or else it
        // looks for a timer that is not there.
        if let Some(leaf) = find(&mut entries, 6, 0) {
            leaf.eax |= table::ARAT;
        }
        xsave::apply(&mut entries);
        topology::apply(&mut entries, vcpus);
        set_highest_leaves(&mut entries);
        Self { entries, vcpus }
    }

    /// CPUID of vCPU `id`, whose APIC id is the same number.
    pub(crate) fn for_vcpu(&self, id: u32) -> Vec<kvm_cpuid_entry2> {
        let mut entries = self.entries.clone();
        topology::number(&mut entries, id, self.vcpus);
        entries
    }

    /// The x87, SSE, AVX and AVX-512 states that the guest sees, as bits of XCR0; `None` without
    /// XSAVE.
    pub(crate) fn vector_states(&self) -> Option<u64> {
        let leaf = self.entries.iter().find(|entry| entry.function == 0xd && entry.index == 0)?;
        Some(u64::from(leaf.eax & xsave::VECTOR_STATES))
    }
}

/// Leaf 0 names the highest basic leaf, 0x80000000 the highest extended one, 0x40000000 the
/// highest of the hypervisor.
fn set_highest_leaves(entries: &mut [kvm_cpuid_entry2]) {
    for (base, end) in
        [(0, HYPERVISOR - 1), (HYPERVISOR, EXTENDED - 1), (EXTENDED, EXTENDED + 0xffff)]
    {
        let highest = entries
            .iter()
            .map(|entry| entry.function)
            .filter(|function| (base..=end).contains(function))
            .max();
        if let (Some(highest), Some(leaf)) = (highest, find(entries, base, 0)) {
            leaf.eax = highest;
        }
    }
}

fn find(
    entries: &mut [kvm_cpuid_entry2],
    function: u32,
    index: u32,
) -> Option<&mut kvm_cpuid_entry2> {
    entries.iter_mut().find(|entry| entry.function == function && entry.index == index)
}

/// An entry whose subleaf counts.
fn subleaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..Default::default()
    }
}
