//! Tests of loading: what a kernel finds in memory, and what is refused.

use std::fs::File;
use std::io::Write;

use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, Entry, Loading, Payload, load};
use crate::layout::{
    BASE_MEMORY_END, CMDLINE, GAP_END, GAP_START, MODULE_LIST, START_INFO, ZERO_PAGE,
};
use crate::memory::{HugePages, allocate};
use crate::tests::{LOAD, elf, note, pvh_elf, pvh_note};

const MIB: u64 = 1 << 20;
const BOTH: [Loading; 2] = [Loading::Mapped, Loading::Copied];

fn memory(mem_mib: u32) -> GuestMemoryMmap {
    allocate(mem_mib, HugePages::Never).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn boot(
    memory: &GuestMemoryMmap,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    loading: Loading,
) -> Result<Entry, BootError> {
    let (kernel, initrd) = (file(kernel), initrd.map(file));
    let payload =
        Payload { kernel: &kernel, initrd: initrd.as_ref(), cmdline: "quiet x=1", loading };
    load(memory, &payload, 2, 6)
}

fn refused(mem_mib: u32, kernel: &[u8], initrd: Option<&[u8]>) -> BootError {
    let memory = memory(mem_mib);
    let [mapped, copied] = BOTH.map(|loading| boot(&memory, kernel, initrd, loading).unwrap_err());
    assert_eq!(mapped.to_string(), copied.to_string());
    mapped
}

fn bytes(memory: &GuestMemoryMmap, at: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

/// A plain structure in guest memory.
fn read<const SIZE: usize, T: Default>(memory: &GuestMemoryMmap, at: u64) -> T {
    const { assert!(size_of::<T>() == SIZE) };
    let mut value = T::default();
    let at = bytes(memory, at, SIZE);
    // SAFETY: the structures read here are plain data of exactly this size.
    unsafe { std::ptr::copy_nonoverlapping(at.as_ptr(), (&raw mut value).cast(), SIZE) };
    value
}

/// Pages with different contents, and a piece of one.
fn code() -> Vec<u8> {
    (0..3 * 4096 + 123_u32).map(|at| (at / 4096 + at % 251) as u8 + 1).collect()
}

#[test]
fn kernel_is_loaded_the_same_mapped_and_copied() {
    for loading in BOTH {
        let memory = memory(4);
        let (code, rest) = (code(), [&[0; 8][..], b"behind the segment"].concat());
        // Bytes of the file behind the segment must not show in its zeroed part.
        let kernel = [elf(&code, code.len() as u64 + 5000, Some(&pvh_note())), rest].concat();
        assert_eq!(boot(&memory, &kernel, None, loading).unwrap(), Entry::Pvh(LOAD));
        assert_eq!(bytes(&memory, LOAD, code.len()), code);
        assert_eq!(bytes(&memory, LOAD + code.len() as u64, 5000), [0; 5000]);
    }
}

#[test]
fn guest_that_writes_mapped_pages_leaves_the_file_alone() {
    let memory = memory(4);
    let kernel = file(&pvh_elf(&code()));
    let payload = Payload { kernel: &kernel, initrd: None, cmdline: "", loading: Loading::Mapped };
    load(&memory, &payload, 1, 1).unwrap();
    memory.write_slice(&[0xee; 4096], GuestAddress(LOAD)).unwrap();
    let mut page = [0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&kernel, &mut page, 4096).unwrap();
    assert_eq!(page[..], code()[..4096]);
}

#[test]
fn descriptor_position_does_not_matter_and_stays() {
    use std::io::Seek;
    let memory = memory(4);
    let mut kernel = file(&pvh_elf(&code()));
    kernel.seek(std::io::SeekFrom::Start(17)).unwrap();
    let payload = Payload { kernel: &kernel, initrd: None, cmdline: "", loading: Loading::Copied };
    load(&memory, &payload, 1, 1).unwrap();
    assert_eq!(kernel.stream_position().unwrap(), 17);
}

#[test]
fn kernel_with_linux_note_starts_by_the_64_bit_protocol() {
    let salt = note(b"Linux\0", 0x100, b"salt");
    for notes in [[pvh_note(), salt.clone()], [salt.clone(), pvh_note()]] {
        let kernel = elf(&code(), 3 * 4096, Some(&notes.concat()));
        let kernel = [&kernel[..], &[0; 4096]].concat();
        assert_eq!(boot(&memory(4), &kernel, None, Loading::Mapped).unwrap(), Entry::Linux64(LOAD));
    }
}

#[test]
fn kernel_without_notes_starts_by_the_64_bit_protocol() {
    let kernel = elf(&code(), 4 * 4096, None);
    assert_eq!(boot(&memory(4), &kernel, None, Loading::Mapped).unwrap(), Entry::Linux64(LOAD));
}

#[test]
fn start_info_describes_memory_initrd_and_cmdline() {
    let memory = memory((GAP_START / MIB) as u32 + 16);
    let initrd = code();
    boot(&memory, &pvh_elf(&code()), Some(&initrd), Loading::Mapped).unwrap();
    let info: hvm_start_info = read::<56, _>(&memory, START_INFO);
    assert_eq!((info.magic, info.version, info.rsdp_paddr), (0x336e_c578, 1, 0));
    assert_eq!(bytes(&memory, info.cmdline_paddr, 10), b"quiet x=1\0");

    assert_eq!((info.nr_modules, info.modlist_paddr), (1, MODULE_LIST));
    let module: hvm_modlist_entry = read::<32, _>(&memory, info.modlist_paddr);
    assert_eq!((module.paddr, module.size), (GAP_START - 4 * 4096, initrd.len() as u64));
    assert_eq!(bytes(&memory, module.paddr, initrd.len()), initrd);

    let map: Vec<_> = (0..u64::from(info.memmap_entries))
        .map(|entry| read::<24, hvm_memmap_table_entry>(&memory, info.memmap_paddr + 24 * entry))
        .map(|entry| (entry.addr, entry.size, entry.type_))
        .collect();
    let high = (GAP_END, 16 * MIB, 1);
    assert_eq!(map, [(0, BASE_MEMORY_END, 1), (MIB, GAP_START - MIB, 1), high]);
}

#[test]
fn zero_page_describes_memory_initrd_and_cmdline() {
    let memory = memory(64);
    boot(&memory, &elf(&code(), 4 * 4096, None), Some(&code()), Loading::Copied).unwrap();
    let mut params = boot_params::default();
    memory.read_slice(params.as_mut_slice(), GuestAddress(ZERO_PAGE)).unwrap();
    let header = params.hdr;
    assert_eq!({ header.boot_flag }, 0xaa55);
    assert_eq!({ header.header }.to_le_bytes(), *b"HdrS");
    assert_eq!({ header.cmd_line_ptr }, CMDLINE as u32);
    assert_eq!({ header.cmdline_size }, 9);
    assert_eq!(bytes(&memory, CMDLINE, 10), b"quiet x=1\0");
    assert_eq!({ header.ramdisk_image }, (64 * MIB) as u32 - 4 * 4096);
    assert_eq!({ header.ramdisk_size } as usize, code().len());
    assert_eq!(bytes(&memory, 64 * MIB - 4 * 4096, code().len()), code());
    let map: Vec<_> = params.e820_table[..params.e820_entries.into()]
        .iter()
        .map(|entry| ({ entry.addr }, { entry.size }, { entry.r#type }))
        .collect();
    assert_eq!(map, [(0, BASE_MEMORY_END, 1), (MIB, 63 * MIB, 1)]);
}

#[test]
fn file_that_is_no_kernel_is_refused() {
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0x7f, b'E', b'L', b'F'], &[0; 4096]] {
        let error = refused(4, bytes, None);
        assert!(matches!(error, BootError::LoadKernel(_)), "{error}");
        assert!(error.to_string().contains("64-bit ELF"), "{error}");
    }
    // A 32-bit ELF file.
    let mut kernel = pvh_elf(&code());
    kernel[4] = 1;
    (kernel[54], kernel[42]) = (32, 32);
    assert!(matches!(refused(4, &kernel, None), BootError::LoadKernel(_)));
}

#[test]
fn kernel_that_is_cut_short_is_refused_at_every_length() {
    let kernel = pvh_elf(&code());
    for size in [40, 63, 64, 100, 1030, 4096, 5000, 3 * 4096, kernel.len() - 1] {
        let error = refused(4, &kernel[..size], None);
        assert!(matches!(error, BootError::LoadKernel(_)), "{size}: {error}");
    }
}

#[test]
fn kernel_larger_than_memory_is_refused() {
    let error = refused(1, &pvh_elf(&code()), None);
    assert!(matches!(error, BootError::LoadKernel(_)), "{error}");
    let error = refused(4, &elf(&code(), 5 * MIB, Some(&pvh_note())), None);
    assert!(matches!(error, BootError::KernelRoom { .. }), "{error}");
    let error = refused(2000, &elf(&code(), 1500 * MIB, None), None);
    assert!(matches!(error, BootError::KernelRoom { limit: 0x4000_0000, .. }), "{error}");
}

#[test]
fn initrd_that_does_not_fit_is_refused() {
    let kernel = elf(&code(), 2 * MIB, Some(&pvh_note()));
    let error = refused(4, &kernel, Some(&vec![1; MIB as usize + 1]));
    assert!(matches!(error, BootError::InitrdRoom { .. }), "{error}");
    let room = vec![1; MIB as usize];
    boot(&memory(4), &kernel, Some(&room), Loading::Mapped).unwrap();
}

#[test]
fn cmdline_of_impossible_form_is_refused() {
    let kernel = file(&pvh_elf(&code()));
    let memory = memory(4);
    let load = |cmdline: &str| {
        let payload = Payload { kernel: &kernel, initrd: None, cmdline, loading: Loading::Mapped };
        load(&memory, &payload, 1, 1)
    };
    for cmdline in ["x\0y", "straße", &"x".repeat(2048)] {
        assert!(matches!(load(cmdline), Err(BootError::Cmdline(_))));
    }
    load(&"x".repeat(2047)).unwrap();
    assert_eq!(bytes(&memory, CMDLINE + 2046, 2), b"x\0");
}
