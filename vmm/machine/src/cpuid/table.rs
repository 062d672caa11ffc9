//! The allow-list: which bits of which leaf a guest may see, if the host has them.
//!
//! Bit names are those of the Intel SDM (volume 2A, CPUID) and the AMD APM (volume 3, appendix E).

use kvm_bindings::kvm_cpuid_entry2;

/// Leaf 1 ecx: a hypervisor is present.
pub(super) const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// Leaf 1 ecx: the local APIC timer takes a TSC deadline.
pub(super) const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ecx: XSAVE and XRSTOR.
pub(super) const XSAVE: u32 = 1 << 26;
/// Leaf 1 ecx: AVX.
pub(super) const AVX: u32 = 1 << 28;
/// Leaf 1 edx: more than one logical processor in the package.
pub(super) const HTT: u32 = 1 << 28;
/// Leaf 6 eax: the local APIC timer always runs.
pub(super) const ARAT: u32 = 1 << 2;
/// Leaf 7.0 ebx: AVX-512 foundation.
pub(super) const AVX512F: u32 = 1 << 16;
/// Leaf 7.0 ecx: protection keys of user pages.
pub(super) const PKU: u32 = 1 << 3;
/// Leaf 0x80000001 ecx: several cores in the package (AMD).
pub(super) const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x80000001 ecx: leaves 0x8000001d and 0x8000001e exist (AMD).
pub(super) const TOPOEXT: u32 = 1 << 22;

const ALL: u32 = u32::MAX;

/// Bits of one leaf that pass.
struct Rule {
    function: u32,
    /// The one subleaf meant, or every one.
    index: Option<u32>,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

/// The bits of `numbers`.
const fn bits(numbers: &[u32]) -> u32 {
    let mut mask = 0;
    let mut at = 0;
    while at < numbers.len() {
        mask |= 1 << numbers[at];
        at += 1;
    }
    mask
}

const fn rule(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Rule {
    Rule { function, index: None, eax, ebx, ecx, edx }
}

const fn sub(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Rule {
    Rule { function, index: Some(index), eax, ebx, ecx, edx }
}

/// Leaf 1 ecx: SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, x2APIC, MOVBE,
/// POPCNT, AES, XSAVE, AVX, F16C, RDRAND. OSXSAVE follows CR4 and is KVM's. The TSC deadline and
/// the hypervisor bit are set apart.
const LEAF_1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 25, 26, 28, 29, 30]);
/// Leaf 1 edx: FPU, VME, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, PGE, CMOV, PAT, PSE36, CLFSH,
/// MMX, FXSR, SSE, SSE2, SS. Without MCE, MCA and MTRR: no machine checks reach a guest, and its
/// memory is write-back whatever it asks for.
const LEAF_1_EDX: u32 =
    bits(&[0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26, 27]);
/// Leaf 7.0 ebx: FSGSBASE, TSC_ADJUST, BMI1, AVX2, FDP_EXCPTN_ONLY, SMEP, BMI2, ERMS, INVPCID,
/// deprecated FPU CS/DS, AVX512F, AVX512DQ, RDSEED, ADX, SMAP, AVX512_IFMA, CLFLUSHOPT, CLWB,
/// AVX512CD, SHA, AVX512BW, AVX512VL.
const LEAF_7_EBX: u32 =
    bits(&[0, 1, 3, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31]);
/// Leaf 7.0 ecx: AVX512_VBMI, UMIP, PKU, AVX512_VBMI2, GFNI, VAES, VPCLMULQDQ, AVX512_VNNI,
/// AVX512_BITALG, AVX512_VPOPCNTDQ, RDPID, MOVDIRI, MOVDIR64B.
const LEAF_7_ECX: u32 = bits(&[1, 2, 3, 6, 8, 9, 10, 11, 12, 14, 22, 27, 28]);
/// Leaf 7.0 edx: FSRM, AVX512_VP2INTERSECT, MD_CLEAR, SERIALIZE, AVX512_FP16, and the controls of
/// speculation: IBRS/IBPB, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
const LEAF_7_EDX: u32 = bits(&[4, 8, 10, 14, 23, 26, 27, 28, 29, 31]);
/// Leaf 7.1 eax: AVX_VNNI, AVX512_BF16, FZRM, FSRS, FSRC.
const LEAF_7_1_EAX: u32 = bits(&[4, 5, 10, 11, 12]);
/// Leaf 7.2 edx: PSFD, IPRED_CTRL, RRSBA_CTRL, DDPD_U, BHI_CTRL, MCDT_NO.
const LEAF_7_2_EDX: u32 = bits(&[0, 1, 2, 3, 4, 5]);
/// Leaf 0xd.1 eax: XSAVEOPT, XSAVEC, XGETBV with ecx 1, XSAVES.
const LEAF_D_1_EAX: u32 = bits(&[0, 1, 2, 3]);
/// Leaf 0x40000001 eax: CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, STEAL_TIME, PV_EOI, PV_UNHALT,
/// PV_TLB_FLUSH, PV_SEND_IPI, PV_SCHED_YIELD, CLOCKSOURCE_STABLE. Without asynchronous page
/// faults, poll control and the extended MSI destination, which nothing here serves.
const KVM_FEATURES: u32 = bits(&[0, 1, 3, 5, 6, 7, 9, 11, 13, 24]);
/// Leaf 0x80000001 ecx: LAHF, CR8 in 32-bit mode, ABM, SSE4A, MISALIGNSSE, PREFETCHW, TOPOEXT.
/// CMP_LEGACY is set apart.
const EXTENDED_1_ECX: u32 = bits(&[0, 4, 5, 6, 7, 8, 22]);
/// Leaf 0x80000001 edx: on AMD the lower bits repeat those of leaf 1; then SYSCALL, NX, MMXEXT,
/// FXSR_OPT, 1 GiB pages, RDTSCP, long mode.
const EXTENDED_1_EDX: u32 =
    bits(&[0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 20, 22, 23, 24, 25, 26, 27, 29]);
/// Leaf 0x80000008 ebx: CLZERO, XSAVEERPTR, WBNOINVD, and the controls of speculation: IBPB, IBRS,
/// STIBP, the hints on how to use them, SSBD, VIRT_SSBD, SSB_NO, PSFD, IBPB_RET.
const EXTENDED_8_EBX: u32 = bits(&[0, 2, 9, 12, 14, 15, 16, 17, 18, 19, 24, 25, 26, 28, 30]);
/// Leaf 0x80000021 eax: LFENCE serialises, null selectors clear the base, automatic IBRS, SBPB,
/// IBPB_BRTYPE, SRSO_NO.
const EXTENDED_21_EAX: u32 = bits(&[2, 6, 8, 27, 28, 29]);

const RULES: &[Rule] = &[
    // Highest leaf and vendor.
    rule(0, [ALL, ALL, ALL, ALL]),
    // Model and features. ebx keeps the CLFLUSH size.
    rule(1, [ALL, 0xff00, LEAF_1_ECX, LEAF_1_EDX]),
    // Intel: cache and TLB descriptors, which libraries still read.
    rule(2, [ALL, ALL, ALL, ALL]),
    // Intel: caches; who shares them is set apart.
    rule(4, [ALL, ALL, ALL, ALL]),
    rule(6, [0, 0, 0, 0]),
    sub(7, 0, [ALL, LEAF_7_EBX, LEAF_7_ECX, LEAF_7_EDX]),
    sub(7, 1, [LEAF_7_1_EAX, 0, 0, 0]),
    sub(7, 2, [0, 0, 0, LEAF_7_2_EDX]),
    // State components: made to fit the features, and without supervisor states.
    sub(0xd, 0, [ALL, ALL, ALL, ALL]),
    sub(0xd, 1, [LEAF_D_1_EAX, ALL, 0, 0]),
    rule(0xd, [ALL, ALL, 0x2, 0]),
    // The hypervisor's signature and features; edx holds hints.
    rule(0x4000_0000, [ALL, ALL, ALL, ALL]),
    rule(0x4000_0001, [KVM_FEATURES, 0, 0, 0]),
    rule(0x8000_0000, [ALL, ALL, ALL, ALL]),
    rule(0x8000_0001, [ALL, 0, EXTENDED_1_ECX, EXTENDED_1_EDX]),
    // Brand string.
    rule(0x8000_0002, [ALL, ALL, ALL, ALL]),
    rule(0x8000_0003, [ALL, ALL, ALL, ALL]),
    rule(0x8000_0004, [ALL, ALL, ALL, ALL]),
    // Caches and TLBs.
    rule(0x8000_0005, [ALL, ALL, ALL, ALL]),
    rule(0x8000_0006, [ALL, ALL, ALL, ALL]),
    // Address sizes; the number of cores is set apart.
    rule(0x8000_0008, [ALL, EXTENDED_8_EBX, 0, 0]),
    // AMD: caches; who shares them is set apart.
    rule(0x8000_001d, [ALL, ALL, ALL, ALL]),
    rule(0x8000_0021, [EXTENDED_21_EAX, 0, 0, 0]),
];

/// The entries of `supported` that have a rule, cut down to what passes.
pub(super) fn filter(supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    supported.iter().filter_map(filtered).collect()
}

fn filtered(entry: &kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    let rule = RULES.iter().find(|rule| {
        rule.function == entry.function && rule.index.is_none_or(|index| index == entry.index)
    })?;
    let mut kept = *entry;
    kept.eax &= rule.eax;
    kept.ebx &= rule.ebx;
    kept.ecx &= rule.ecx;
    kept.edx &= rule.edx;
    Some(kept)
}
