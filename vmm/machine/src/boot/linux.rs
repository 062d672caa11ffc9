//! Linux's 64-bit boot protocol (`Documentation/arch/x86/boot.rst`), for kernels without PVH entry.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, Initrd, usable_ram};
use crate::layout::{CMDLINE, GDT, KERNEL_MIN, PML4, ZERO_PAGE};
use crate::vcpu::registers::GDT_ENTRIES;

/// `boot_flag` of the setup header.
const BOOT_FLAG: u16 = 0xaa55;
/// `header` of the setup header: "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// `type_of_loader`: none of the registered ones.
const LOADER_OTHER: u8 = 0xff;
const E820_RAM: u32 = 1;

/// What the identity map covers.
const IDENTITY_END: u64 = 1 << 30;
/// Page table bits: present and writable.
const TABLE: u64 = 0x3;
/// Page table bits: present, writable, 2 MiB.
const HUGE: u64 = 0x83;

/// Writes the zero page, the descriptor table and the identity map.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    initrd: Option<Initrd>,
    cmdline_len: usize,
    kernel_end: u64,
) -> Result<(), BootError> {
    if kernel_end > IDENTITY_END {
        return Err(BootError::KernelRoom { end: kernel_end, limit: IDENTITY_END });
    }
    let params = zero_page(&usable_ram(memory), initrd, cmdline_len);
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory).map_err(BootError::Parameters)?;
    write_words(memory, GDT, &GDT_ENTRIES)?;
    let pages: Vec<u64> = (0..512).map(|page| page << 21 | HUGE).collect();
    write_words(memory, PML4, &[(PML4 + 0x1000) | TABLE])?;
    write_words(memory, PML4 + 0x1000, &[(PML4 + 0x2000) | TABLE])?;
    write_words(memory, PML4 + 0x2000, &pages)
}

fn zero_page(ram: &[(u64, u64)], initrd: Option<Initrd>, cmdline_len: usize) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.kernel_alignment = KERNEL_MIN as u32;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    if let Some(initrd) = initrd {
        // Both are below the 32-bit gap.
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = initrd.size as u32;
    }
    for (entry, (addr, size)) in params.e820_table.iter_mut().zip(ram) {
        *entry = boot_e820_entry { addr: *addr, size: *size, r#type: E820_RAM };
    }
    params.e820_entries = ram.len() as u8;
    params
}

fn write_words(memory: &GuestMemoryMmap, at: u64, words: &[u64]) -> Result<(), BootError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(at)).map_err(BootError::Write)
}
