//! How vCPUs are numbered and grouped: one package, each vCPU a core with one thread, the APIC id
//! the number of the vCPU. Whether two vCPUs share a host core is nothing that a guest should
//! build on, and scheduling on flat cores is the cheapest.

use kvm_bindings::kvm_cpuid_entry2;

use super::table::{CMP_LEGACY, HTT, TOPOEXT};
use super::{find, subleaf};

/// Leaf 0xb level types (Intel SDM volume 2A).
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;
const AMD: [u32; 3] = words(b"AuthenticAMD");
const HYGON: [u32; 3] = words(b"HygonGenuine");

/// A vendor name as ebx, edx, ecx of leaf 0.
const fn words(name: &[u8; 12]) -> [u32; 3] {
    [word_at(name, 0), word_at(name, 4), word_at(name, 8)]
}

const fn word_at(name: &[u8; 12], at: usize) -> u32 {
    u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]])
}

/// Bits that an APIC id needs to number `vcpus`.
fn id_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

/// Writes what is the same for every vCPU.
pub(super) fn apply(entries: &mut Vec<kvm_cpuid_entry2>, vcpus: u32) {
    let amd = is_amd(entries);
    for entry in entries.iter_mut() {
        match entry.function {
            1 => {
                entry.ebx |= vcpus.next_power_of_two().min(255) << 16;
                if vcpus > 1 {
                    entry.edx |= HTT;
                }
            }
            4 => share_cache(entry, vcpus, true),
            0x8000_0001 if amd && vcpus > 1 => entry.ecx |= CMP_LEGACY,
            0x8000_0008 if amd => entry.ecx = id_bits(vcpus) << 12 | (vcpus - 1),
            0x8000_001d => share_cache(entry, vcpus, false),
            _ => {}
        }
    }
    let mut threads = subleaf(0xb, 0);
    (threads.ebx, threads.ecx) = (1, LEVEL_SMT);
    let mut cores = subleaf(0xb, 1);
    (cores.eax, cores.ebx, cores.ecx) = (id_bits(vcpus), vcpus, LEVEL_CORE | 1);
    let mut end = subleaf(0xb, 2);
    end.ecx = 2;
    entries.extend([threads, cores, end]);
    let topoext = find(entries, 0x8000_0001, 0).is_some_and(|leaf| leaf.ecx & TOPOEXT != 0);
    if amd && topoext {
        entries.push(kvm_cpuid_entry2 { function: 0x8000_001e, ..Default::default() });
    } else {
        entries.retain(|entry| entry.function != 0x8000_001d);
    }
}

/// Writes what tells vCPU `id` from the others.
pub(super) fn number(entries: &mut [kvm_cpuid_entry2], id: u32, vcpus: u32) {
    debug_assert!(id < vcpus);
    for entry in entries {
        match entry.function {
            1 => entry.ebx |= (id & 0xff) << 24,
            0xb => entry.edx = id,
            // Core id; one thread a core, one node a package.
            0x8000_001e => (entry.eax, entry.ebx) = (id, id & 0xff),
            _ => {}
        }
    }
}

fn is_amd(entries: &mut [kvm_cpuid_entry2]) -> bool {
    find(entries, 0, 0).is_some_and(|leaf| {
        let name = [leaf.ebx, leaf.edx, leaf.ecx];
        name == AMD || name == HYGON
    })
}

/// A cache leaf: levels 1 and 2 belong to a core, level 3 to the package.
fn share_cache(entry: &mut kvm_cpuid_entry2, vcpus: u32, has_cores: bool) {
    let kind = entry.eax & 0x1f;
    if kind == 0 {
        return;
    }
    let level = entry.eax >> 5 & 0x7;
    let sharing = if level < 3 { 0 } else { vcpus.next_power_of_two() - 1 };
    entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
    if has_cores {
        entry.eax = entry.eax & !(0x3f << 26) | (vcpus.next_power_of_two() - 1).min(0x3f) << 26;
    }
}
