//! Guest-physical addresses: one place that says who owns which range.
//!
//! ```text
//! 0x0000_0472  BIOS reboot-mode word
//! 0x0000_2000  boot data: zero page, page tables, PVH start info, GDT, command line
//! 0x0009_fc00  MP tables, up to the end of conventional memory at 640 KiB
//! 0x0010_0000  kernel and RAM; the initrd ends where low RAM ends
//! 0xd000_0000  32-bit gap: virtio-mmio windows, I/O APIC, local APIC, TSS
//! 0x1_0000_0000  the rest of RAM, then memory that may be added ([`crate::hotplug`])
//! ```

/// First byte of the 32-bit gap; low RAM ends here at the latest.
pub const GAP_START: u64 = 0xd000_0000;
/// First byte behind the 32-bit gap, where RAM goes on.
pub const GAP_END: u64 = 1 << 32;
/// First window for virtio-mmio devices.
pub const MMIO_START: u64 = GAP_START;
/// First byte behind the windows for virtio-mmio devices.
pub const MMIO_END: u64 = IOAPIC_ADDR as u64;
/// Registers of the I/O APIC (Intel 82093AA).
pub const IOAPIC_ADDR: u32 = 0xfec0_0000;
/// Size of the I/O APIC's register window.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Registers of the local APIC.
pub const LAPIC_ADDR: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors without unrestricted guest mode.
pub(crate) const TSS_ADDR: usize = 0xfffb_d000;

/// Reboot-mode word of the BIOS data area.
pub(crate) const REBOOT_MODE: u64 = 0x472;
/// `boot_params` of the 64-bit boot protocol.
pub(crate) const ZERO_PAGE: u64 = 0x2000;
/// Top page table of the 64-bit boot protocol; the two tables below it follow.
pub(crate) const PML4: u64 = 0x3000;
/// `hvm_start_info` of the PVH protocol.
pub(crate) const START_INFO: u64 = 0x6000;
/// Module list of the PVH protocol: one entry of 32 bytes.
pub(crate) const MODULE_LIST: u64 = 0x6040;
/// Memory map of the PVH protocol: three entries of 24 bytes.
pub(crate) const MEMORY_MAP: u64 = 0x6080;
/// Descriptor table of the 64-bit boot protocol: four entries of 8 bytes.
pub(crate) const GDT: u64 = 0x6100;
/// Command line with its terminator. It shares a page with what comes before: the fewer pages boot
/// data touches, the better.
pub(crate) const CMDLINE: u64 = 0x6200;
/// Room for the command line with its terminator (x86 `COMMAND_LINE_SIZE`).
pub(crate) const CMDLINE_SIZE: usize = 2048;
/// MP floating pointer and configuration table, in the last KiB of base memory.
pub(crate) const MP_TABLE: u64 = 0x9_fc00;
/// Room for the MP tables.
pub(crate) const MP_TABLE_SIZE: usize = 0x400;
/// First byte that is not conventional memory.
pub(crate) const BASE_MEMORY_END: u64 = 0x9_fc00;
/// Kernels are loaded from here.
pub(crate) const KERNEL_MIN: u64 = 0x10_0000;
