//! Netlink attributes and numbers of the kernel's messages; what is cut short is not there.

use netlink_packet_core::{NLA_HEADER_SIZE, NlasIterator};

/// The attributes in `bytes`: number and value.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    // What cannot be read ends the list: an iterator over garbage gives errors for ever.
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        let value = attribute.into_inner().get(NLA_HEADER_SIZE..length);
        (kind, value.unwrap_or_default())
    })
}

/// The value of the first attribute of this number.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A text that ends with the value or a NUL, if it is UTF-8.
pub(super) fn text(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok().map(str::to_owned)
}

/// A number in the kernel's byte order.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number in the kernel's byte order.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_found_by_number_without_their_flags() {
        let bytes = [6, 0, 3, 0x80, b'l', b'o', 0, 0, 8, 0, 4, 0, 1, 0, 0, 0];
        assert_eq!(attribute(&bytes, 3), Some(&b"lo"[..]));
        assert_eq!(attribute(&bytes, 4).and_then(|value| u32_at(value, 0)), Some(1));
        assert_eq!(attribute(&bytes, 5), None);
        assert_eq!(attribute(&bytes[..14], 4), None, "it is cut short");
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(attributes(&bytes).count() <= 16);
        }
    }
}
