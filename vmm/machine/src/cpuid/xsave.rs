//! Leaf 0xd made to fit the features that are left.
//!
//! Linux adds up the sizes of the state components and compares the sum with what leaf 0xd says.
//! A component whose feature is filtered out must therefore leave the mask, its subleaf and the
//! total size, and what depends on XSAVE must go with it.

use kvm_bindings::kvm_cpuid_entry2;

use super::find;
use super::table::{AVX, AVX512F, PKU, XSAVE};

/// x87 and SSE, which every processor with XSAVE has.
const LEGACY: u32 = 0b11;
/// Size of the legacy area and the header, before the first component.
const HEADER_END: u32 = 576;
/// State components by bit, and the feature each belongs to.
const AVX_STATE: u32 = 1 << 2;
const AVX512_STATES: u32 = 0b111 << 5;
const PKRU_STATE: u32 = 1 << 9;
/// What programs compute with.
pub(super) const VECTOR_STATES: u32 = LEGACY | AVX_STATE | AVX512_STATES;

pub(super) fn apply(entries: &mut Vec<kvm_cpuid_entry2>) {
    let has = |function, pick: fn(&kvm_cpuid_entry2) -> u32, bit| {
        entries.iter().any(|e| e.function == function && e.index == 0 && pick(e) & bit != 0)
    };
    if !has(1, |e| e.ecx, XSAVE) {
        entries.retain(|entry| entry.function != 0xd);
        return;
    }
    let mut allowed = LEGACY;
    for (state, shown) in [
        (AVX_STATE, has(1, |e| e.ecx, AVX)),
        (AVX512_STATES, has(7, |e| e.ebx, AVX512F)),
        (PKRU_STATE, has(7, |e| e.ecx, PKU)),
    ] {
        if shown {
            allowed |= state;
        }
    }
    let Some(leaf) = find(entries, 0xd, 0) else {
        return;
    };
    let states = leaf.eax & allowed;
    entries.retain(|entry| {
        entry.function != 0xd
            || entry.index < 2
            || states.checked_shr(entry.index).unwrap_or(0) & 1 == 1
    });
    let size = entries
        .iter()
        .filter(|entry| entry.function == 0xd && entry.index >= 2)
        .map(|entry| entry.ebx.saturating_add(entry.eax))
        .fold(HEADER_END, u32::max);
    if let Some(leaf) = find(entries, 0xd, 0) {
        leaf.eax = states;
        leaf.ebx = HEADER_END;
        leaf.ecx = size;
        leaf.edx = 0;
    }
}
