//! Hand-made kernels that tests of several modules load.

/// Where [`pvh_elf`] is loaded.
pub(crate) const LOAD: u64 = 0x10_0000;

/// An ELF note.
pub(crate) fn note(owner: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [owner.len() as u32, descriptor.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    for bytes in [owner, descriptor] {
        note.extend(bytes);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// The note that names [`LOAD`] as PVH entry: `XEN_ELFNOTE_PHYS32_ENTRY`.
pub(crate) fn pvh_note() -> Vec<u8> {
    note(b"Xen\0", 18, &(LOAD as u32).to_le_bytes())
}

/// A 64-bit ELF file with one segment, `code`, and a PVH note that names its first byte.
pub(crate) fn pvh_elf(code: &[u8]) -> Vec<u8> {
    elf(code, code.len() as u64, Some(&pvh_note()))
}

/// A 64-bit ELF file with the segment `code` of `memory_size` bytes at [`LOAD`], and a note.
///
/// The segment starts on a page of the file, as linkers lay it out.
pub(crate) fn elf(code: &[u8], memory_size: u64, note: Option<&[u8]>) -> Vec<u8> {
    const PAGE: usize = 4096;
    const HEADER: usize = 64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // Executable for x86-64.
    for half in [2_u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    // Entry, program headers, section headers.
    for word in [LOAD, HEADER as u64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    let segments = 1 + u16::from(note.is_some());
    for half in [HEADER as u16, 56, segments, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let code_size = code.len() as u64;
    program_header(&mut file, 1, PAGE as u64, code_size, memory_size);
    if let Some(note) = note {
        program_header(&mut file, 4, 1024, note.len() as u64, note.len() as u64);
        file.resize(1024, 0);
        file.extend(note);
    }
    file.resize(PAGE, 0);
    file.extend(code);
    file
}

fn program_header(file: &mut Vec<u8>, kind: u32, offset: u64, file_size: u64, memory_size: u64) {
    for word in [kind, 7] {
        file.extend(word.to_le_bytes());
    }
    for word in [offset, LOAD, LOAD, file_size, memory_size, 4096] {
        file.extend(word.to_le_bytes());
    }
}
