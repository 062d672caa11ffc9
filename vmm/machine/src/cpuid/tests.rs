//! Tests of the filter on made-up hosts.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::CpuidTemplate;

type Registers = [u32; 4];

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: Registers) -> kvm_cpuid_entry2 {
    let flags = if index > 0 { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
    kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
}

/// A host with every bit of every leaf, of the vendor named.
fn full_host(vendor: &[u8; 12]) -> Vec<kvm_cpuid_entry2> {
    let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    let mut entries = vec![entry(0, 0, [0x24, word(0), word(8), word(4)])];
    let basic = (1..0x25).filter(|f| ![4, 7, 0xb, 0xd, 0x1f].contains(f));
    let extended = 0x8000_0000..=0x8000_0026;
    let hypervisor = 0x4000_0000..=0x4000_0001;
    entries.extend(basic.chain(hypervisor).chain(extended).map(|f| entry(f, 0, [u32::MAX; 4])));
    for index in 0..3 {
        entries.push(entry(7, index, [u32::MAX; 4]));
        entries.push(entry(0xb, index, [u32::MAX; 4]));
    }
    // L1 data, L1 code, L2, L3, end.
    for (index, kind) in [0x21, 0x22, 0x43, 0x63, 0].into_iter().enumerate() {
        let eax = if kind == 0 { 0 } else { kind | 0xffff_c000 };
        entries.retain(|e| e.function != 0x8000_001d || e.index != 0 || e.eax != u32::MAX);
        entries.push(entry(4, index as u32, [eax, 63, 63, 0]));
        entries.push(entry(0x8000_001d, index as u32, [eax, 63, 63, 0]));
    }
    // AVX, MPX, AVX-512, PKRU, AMX.
    entries.push(entry(0xd, 0, [0x602ff, 11_008, 11_008, 0]));
    entries.push(entry(0xd, 1, [0x1f, 11_008, 0x1900, 0]));
    for (index, size, offset) in [
        (2, 256, 576),
        (3, 64, 960),
        (4, 64, 1024),
        (5, 64, 1088),
        (6, 512, 1152),
        (7, 1024, 1664),
        (9, 8, 2688),
        (17, 64, 2752),
        (18, 8192, 2816),
    ] {
        entries.push(entry(0xd, index, [size, offset, 6, 0]));
    }
    entries
}

fn guest(vendor: &[u8; 12], vcpus: u32, id: u32) -> Vec<kvm_cpuid_entry2> {
    CpuidTemplate::new(&full_host(vendor), vcpus, true).for_vcpu(id)
}

fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Registers {
    let mut found = entries.iter().filter(|e| e.function == function && e.index == index);
    let Some(entry) = found.next() else {
        return [0; 4];
    };
    assert!(found.next().is_none(), "leaf {function:#x}.{index} twice");
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";

#[test]
fn feature_that_no_guest_may_have_is_hidden() {
    let entries = guest(INTEL, 1, 0);
    // (leaf, subleaf, register, bits)
    for (function, index, register, mask) in [
        (1, 0, 2, 1 << 5),                     // VMX
        (1, 0, 2, 1 << 3),                     // MONITOR
        (1, 0, 2, 1 << 15),                    // PDCM
        (1, 0, 3, 1 << 7 | 1 << 12 | 1 << 14), // MCE, MTRR, MCA
        (1, 0, 3, 1 << 21),                    // debug store
        (6, 0, 0, !(1 << 2)),                  // power management but ARAT
        (6, 0, 2, u32::MAX),
        (7, 0, 1, 1 << 2 | 1 << 4 | 1 << 11 | 1 << 14 | 1 << 25), // SGX, HLE, RTM, MPX, PT
        (7, 0, 2, 1 << 16 | 1 << 7),                              // LA57, shadow stacks
        (7, 0, 3, 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25),         // IBT, AMX
        (0xa, 0, 0, u32::MAX),                                    // PMU
        (0xd, 1, 2, u32::MAX),                                    // supervisor states
        (0x12, 0, 0, u32::MAX),                                   // SGX
        (0x14, 0, 0, u32::MAX),                                   // PT
        (0x4000_0001, 0, 0, 1 << 4),                              // asynchronous page faults
        (0x8000_0001, 0, 2, 1 << 2 | 1 << 10 | 1 << 23),          // SVM, IBS, PMU
        (0x8000_0007, 0, 3, u32::MAX),                            // invariant TSC
        (0x8000_000a, 0, 0, u32::MAX),                            // SVM
        (0x8000_001f, 0, 0, u32::MAX),                            // SEV
        (0x8000_0022, 0, 0, u32::MAX),                            // PMU
    ] {
        let value = leaf(&entries, function, index)[register];
        assert_eq!(value & mask, 0, "leaf {function:#x}.{index} register {register}: {value:#x}");
    }
}

#[test]
fn highest_leaves_are_those_that_exist() {
    let entries = guest(AMD, 2, 0);
    assert_eq!(leaf(&entries, 0, 0)[0], 0xd);
    assert_eq!(leaf(&entries, 0x4000_0000, 0)[0], 0x4000_0001);
    assert_eq!(leaf(&entries, 0x8000_0000, 0)[0], 0x8000_0021);
}

#[test]
fn timer_bits_are_set_only_when_kvm_has_the_timer() {
    let bit = |deadline| {
        let template = CpuidTemplate::new(&full_host(INTEL), 1, deadline);
        leaf(&template.for_vcpu(0), 1, 0)[2] >> 24 & 1
    };
    assert_eq!((bit(false), bit(true)), (0, 1));
    let entries = guest(INTEL, 1, 0);
    assert_eq!(leaf(&entries, 6, 0)[0], 1 << 2);
    assert_eq!(leaf(&entries, 1, 0)[2] >> 31, 1, "hypervisor bit");
}

#[test]
fn apic_id_is_the_number_of_the_vcpu_in_every_leaf() {
    for (vendor, vcpus) in [(INTEL, 3), (AMD, 32)] {
        for id in [0, 1, vcpus - 1] {
            let entries = guest(vendor, vcpus, id);
            assert_eq!(leaf(&entries, 1, 0)[1] >> 24, id);
            for level in 0..3 {
                assert_eq!(leaf(&entries, 0xb, level)[3], id);
            }
            if vendor == AMD {
                assert_eq!(leaf(&entries, 0x8000_001e, 0), [id, id, 0, 0]);
            }
        }
    }
}

#[test]
fn topology_is_one_package_of_single_thread_cores() {
    let entries = guest(INTEL, 3, 0);
    assert_eq!(leaf(&entries, 1, 0)[1] >> 16 & 0xff, 4);
    assert_eq!(leaf(&entries, 1, 0)[3] >> 28 & 1, 1, "HTT");
    assert_eq!(leaf(&entries, 0xb, 0)[..3], [0, 1, 0x100]);
    assert_eq!(leaf(&entries, 0xb, 1)[..3], [2, 3, 0x201]);
    assert_eq!(leaf(&entries, 0xb, 2)[..3], [0, 0, 2]);
    let one = guest(INTEL, 1, 0);
    assert_eq!(leaf(&one, 1, 0)[3] >> 28 & 1, 0, "HTT");
    assert_eq!(leaf(&one, 0xb, 1)[..2], [0, 1]);
    let amd = guest(AMD, 3, 0);
    assert_eq!(leaf(&amd, 0x8000_0008, 0)[2], 2 << 12 | 2);
    assert_eq!(leaf(&amd, 0x8000_0001, 0)[2] >> 1 & 1, 1, "CMP_LEGACY");
}

#[test]
fn cache_is_shared_only_at_level_3() {
    let sharing = |function, vendor, index| {
        let eax = leaf(&guest(vendor, 4, 0), function, index)[0];
        (eax >> 14 & 0xfff, eax >> 26)
    };
    assert_eq!(sharing(4, INTEL, 0), (0, 3));
    assert_eq!(sharing(4, INTEL, 2), (0, 3));
    assert_eq!(sharing(4, INTEL, 3), (3, 3));
    assert_eq!(sharing(4, INTEL, 4), (0, 0));
    assert_eq!(sharing(0x8000_001d, AMD, 2).0, 0);
    assert_eq!(sharing(0x8000_001d, AMD, 3).0, 3);
}

#[test]
fn xsave_leaf_has_only_states_of_visible_features() {
    let entries = guest(INTEL, 1, 0);
    // x87, SSE, AVX, AVX-512, PKRU; neither MPX (3, 4) nor AMX (17, 18).
    assert_eq!(leaf(&entries, 0xd, 0), [0x2e7, 576, 2688 + 8, 0]);
    for index in [3, 4, 17, 18] {
        assert_eq!(leaf(&entries, 0xd, index), [0; 4]);
    }
    assert_eq!(leaf(&entries, 0xd, 7), [1024, 1664, 2, 0]);
    assert_eq!(leaf(&entries, 0xd, 1)[0], 0xf, "no XFD");
}

#[test]
fn xsave_leaf_without_avx512_ends_at_what_is_left() {
    let mut host = full_host(INTEL);
    for e in host.iter_mut().filter(|e| e.function == 7) {
        e.ebx &= !(1 << 16);
        e.ecx = 0;
    }
    let entries = CpuidTemplate::new(&host, 1, true).for_vcpu(0);
    assert_eq!(leaf(&entries, 0xd, 0), [7, 576, 576 + 256, 0]);
}

#[test]
fn host_without_xsave_has_no_xsave_leaf() {
    let mut host = full_host(INTEL);
    for e in host.iter_mut().filter(|e| e.function == 1) {
        e.ecx &= !(1 << 26);
    }
    let entries = CpuidTemplate::new(&host, 1, true).for_vcpu(0);
    assert!(entries.iter().all(|e| e.function != 0xd));
}

#[test]
fn host_that_supports_nothing_gives_nothing_but_topology() {
    let entries = CpuidTemplate::new(&[], 1, true).for_vcpu(0);
    assert!(entries.iter().all(|e| e.function == 0xb));
}

#[test]
fn vector_states_are_the_visible_ones_without_protection_keys() {
    let template = CpuidTemplate::new(&full_host(INTEL), 1, true);
    assert_eq!(template.vector_states(), Some(0xe7));
    assert_eq!(CpuidTemplate::new(&[], 1, true).vector_states(), None);
}
