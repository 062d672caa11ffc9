//! What the driver tells on the statistics queue (virtio 1.2, section 5.5.6.3).
//!
//! Trust: none; every figure is the guest's word and is passed on as that.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Entries that are looked at; Linux sends 16.
const ENTRIES_MAX: usize = 64;

/// `VIRTIO_BALLOON_S_MEMFREE`.
const FREE: u16 = 4;
/// `VIRTIO_BALLOON_S_MEMTOT`.
const TOTAL: u16 = 5;
/// `VIRTIO_BALLOON_S_AVAIL`.
const AVAILABLE: u16 = 6;
/// `VIRTIO_BALLOON_S_CACHES`.
const CACHES: u16 = 7;

/// Memory of the guest, in its own words; what it does not tell is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestFigures {
    /// Bytes that the guest has.
    pub total_bytes: u64,
    /// Bytes in no use.
    pub free_bytes: u64,
    /// Bytes that new programs could have.
    pub available_bytes: u64,
    /// Bytes of disk caches.
    pub cache_bytes: u64,
}

/// `struct virtio_balloon_stat`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    tag: [u8; 2],
    value: [u8; 8],
}

/// Bytes of a buffer that are read.
pub(super) const BUFFER_MAX: usize = ENTRIES_MAX * size_of::<Entry>();

/// The figures in a buffer of the driver's; tags that are not known are left out.
pub(super) fn parse(bytes: &[u8]) -> GuestFigures {
    let mut figures = GuestFigures::default();
    for entry in bytes.chunks_exact(size_of::<Entry>()).take(ENTRIES_MAX) {
        let Ok(entry) = Entry::ref_from_bytes(entry) else { continue };
        let value = u64::from_le_bytes(entry.value);
        match u16::from_le_bytes(entry.tag) {
            FREE => figures.free_bytes = value,
            TOTAL => figures.total_bytes = value,
            AVAILABLE => figures.available_bytes = value,
            CACHES => figures.cache_bytes = value,
            _ => {}
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_tags_are_read_and_others_left_out() {
        let mut bytes = Vec::new();
        for (tag, value) in [(5_u16, 50_u64), (99, 1), (4, 40), (7, 70), (6, 60), (0, 3)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.push(4);
        let expected =
            GuestFigures { total_bytes: 50, free_bytes: 40, available_bytes: 60, cache_bytes: 70 };
        assert_eq!(parse(&bytes), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
            parse(&bytes);
        }
    }
}
