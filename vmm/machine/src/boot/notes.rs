//! Whether an ELF file is a Linux kernel: its notes say so.
//!
//! Trust: the file is the runtime's; counts and sizes in it are bounded all the same.

use std::io::{self, Read, Seek, SeekFrom};

/// Owner of Linux's own notes (`include/linux/elfnote.h`).
const OWNER: &[u8] = b"Linux\0";
/// `LINUX_ELFNOTE_BUILD_SALT`, in every kernel since 4.19 (`include/linux/build-salt.h`).
const BUILD_SALT: u32 = 0x100;

const PT_NOTE: u32 = 4;
const PROGRAM_HEADER_SIZE: usize = 56;
/// Most program headers and most bytes of a note segment that are looked at.
const HEADERS_MAX: u16 = 64;
const NOTES_MAX: u64 = 16 << 10;

/// Looks for Linux's note in a 64-bit ELF file.
pub(super) fn is_linux(file: &mut (impl Read + Seek)) -> io::Result<bool> {
    let mut header = [0; 64];
    file.rewind()?;
    file.read_exact(&mut header)?;
    let count = u16::from_le_bytes([header[56], header[57]]).min(HEADERS_MAX);
    file.seek(SeekFrom::Start(word(&header, 32)))?;
    let mut headers = vec![0; usize::from(count) * PROGRAM_HEADER_SIZE];
    file.read_exact(&mut headers)?;
    for header in headers.chunks_exact(PROGRAM_HEADER_SIZE) {
        if half(header, 0) != Some(PT_NOTE) {
            continue;
        }
        file.seek(SeekFrom::Start(word(header, 8)))?;
        let mut notes = Vec::new();
        file.take(word(header, 32).min(NOTES_MAX)).read_to_end(&mut notes)?;
        if has_note(&notes, OWNER, BUILD_SALT) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks for a note in a segment of notes, each aligned to 4 bytes.
fn has_note(mut notes: &[u8], owner: &[u8], kind: u32) -> bool {
    while let (Some(name), Some(descriptor), Some(found)) =
        (half(notes, 0), half(notes, 4), half(notes, 8))
    {
        if found == kind && name as usize == owner.len() && notes[12..].starts_with(owner) {
            return true;
        }
        let size = |size: u32| (size as usize).next_multiple_of(4);
        match notes.get(12 + size(name) + size(descriptor)..) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

/// The 64-bit word at `at`; 0 if `bytes` ends before.
fn word(bytes: &[u8], at: usize) -> u64 {
    let low = half(bytes, at).unwrap_or(0);
    let high = half(bytes, at + 4).unwrap_or(0);
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::note;

    #[test]
    fn note_behind_others_is_found() {
        let notes = [note(b"GNU\0", 3, &[1; 20]), note(b"Linux\0", 0x100, b"x")].concat();
        assert!(has_note(&notes, OWNER, BUILD_SALT));
    }

    #[test]
    fn note_of_another_owner_or_kind_is_not_taken() {
        let notes = [note(b"Linux\0", 0, &[]), note(b"Lin\0", 0x100, &[])].concat();
        assert!(!has_note(&notes, OWNER, BUILD_SALT));
    }

    proptest! {
        #[test]
        fn notes_of_any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            has_note(&bytes, OWNER, BUILD_SALT);
            let mut file = io::Cursor::new(bytes);
            let _ = is_linux(&mut file);
        }
    }
}
