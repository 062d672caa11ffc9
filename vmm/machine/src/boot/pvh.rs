//! The PVH boot protocol (Xen, `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry,
    hvm_start_info,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{BootError, Initrd, usable_ram};
use crate::layout::{CMDLINE, MEMORY_MAP, MODULE_LIST, START_INFO};

/// Writes the start info, memory map and module list. The command line lies at its place already.
pub(super) fn write(memory: &GuestMemoryMmap, initrd: Option<Initrd>) -> Result<(), BootError> {
    let map: Vec<_> = usable_ram(memory)
        .into_iter()
        .map(|(addr, size)| hvm_memmap_table_entry {
            addr,
            size,
            type_: XEN_HVM_MEMMAP_TYPE_RAM,
            reserved: 0,
        })
        .collect();
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: CMDLINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let module = initrd.map(|initrd| hvm_modlist_entry {
        paddr: initrd.start,
        size: initrd.size,
        ..Default::default()
    });
    if module.is_some() {
        info.nr_modules = 1;
        info.modlist_paddr = MODULE_LIST;
    }
    let mut params = BootParams::new(&info, GuestAddress(START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    params.set_modules(module.as_slice(), GuestAddress(MODULE_LIST));
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(BootError::Parameters)
}
