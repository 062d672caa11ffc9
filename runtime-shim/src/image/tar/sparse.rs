//! Sparse maps in the four forms that GNU tar writes. Input: untrusted; a map is used only after
//! [`checked`] has found it in order and equal in sum to the stored data.

use super::header::number;
use super::pax::{PaxSparse, decimal};
use super::{BLOCK, EXTENTS_MAX};

/// Bytes `offset..offset + length` of a sparse file that have data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes, never zero.
    pub length: u64,
}

/// Bytes of one slot of the old GNU format.
const SLOT: usize = 24;

/// Appends the used slots of an old GNU header or extension block; `None` if malformed or
/// beyond the limit.
pub fn push_slots(extents: &mut Vec<Extent>, slots: &[u8]) -> Option<()> {
    for slot in slots.chunks_exact(SLOT) {
        if slot[0] == 0 {
            break;
        }
        let offset = u64::try_from(number(&slot[..12])?).ok()?;
        let length = u64::try_from(number(&slot[12..])?).ok()?;
        if extents.len() == EXTENTS_MAX {
            return None;
        }
        extents.push(Extent { offset, length });
    }
    Some(())
}

/// The slots of an old GNU extension block, and whether another block follows.
pub fn extension(block: &[u8; BLOCK]) -> (&[u8], bool) {
    (&block[..504], block[504] != 0)
}

/// The map of formats 0.0 and 0.1; `None` if there is none or it is malformed.
pub fn pax_map(sparse: &PaxSparse) -> Option<Vec<Extent>> {
    match &sparse.map {
        Some(map) => {
            let numbers: Option<Vec<u64>> = map.split(|&b| b == b',').map(decimal).collect();
            pairs(&numbers?)
        }
        None => pairs(&sparse.pairs),
    }
}

/// Makes extents of offsets and lengths in turn.
pub fn pairs(numbers: &[u64]) -> Option<Vec<Extent>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() > EXTENTS_MAX {
        return None;
    }
    Some(pairs.iter().map(|&[offset, length]| Extent { offset, length }).collect())
}

/// Drops empty extents and checks the rest: in order, apart, inside `size`, and together as
/// long as the `stored` data.
pub fn checked(mut extents: Vec<Extent>, size: u64, stored: u64) -> Option<Vec<Extent>> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for extent in &extents {
        if extent.offset < end {
            return None;
        }
        end = extent.offset.checked_add(extent.length)?;
        sum = sum.checked_add(extent.length)?;
    }
    extents.retain(|extent| extent.length != 0);
    (end <= size && sum == stored).then_some(extents)
}
