//! Registers of the first vCPU at its first instruction.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::VcpuError;
use crate::layout::{GDT, PML4, START_INFO, ZERO_PAGE};

/// Where and how the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// At this address in 32-bit protected mode without paging, start info in ebx.
    Pvh(u64),
    /// At this address in long mode with an identity map, zero page in rsi.
    Linux64(u64),
}

/// Flat segments as descriptors: `__BOOT_CS` (0x10) and `__BOOT_DS` (0x18) of the 64-bit boot
/// protocol.
pub(crate) const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
/// Segment types (Intel SDM volume 3, section 3.4.5): accessed code, accessed data, busy TSS.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TSS: u8 = 0xb;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of rflags that is always set. Interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// Sets the registers of `vcpu` for `entry`.
pub(crate) fn set(vcpu: &VcpuFd, entry: Entry) -> Result<(), VcpuError> {
    let mut system = vcpu.get_sregs().map_err(VcpuError::SystemRegisters)?;
    let registers = prepare(&mut system, entry);
    vcpu.set_sregs(&system).map_err(VcpuError::SystemRegisters)?;
    vcpu.set_regs(&registers).map_err(VcpuError::Registers)
}

fn prepare(system: &mut kvm_sregs, entry: Entry) -> kvm_regs {
    let data = segment(DATA, TYPE_DATA, true);
    (system.ds, system.es, system.ss) = (data, data, data);
    (system.fs, system.gs) = (data, data);
    system.tr = kvm_segment { limit: 0x67, present: 1, type_: TYPE_TSS, ..Default::default() };
    system.cs = segment(CODE, TYPE_CODE, true);
    system.idt = kvm_dtable::default();
    match entry {
        // The segments are loaded, but there is no table to load them from: a PVH kernel brings
        // its own.
        Entry::Pvh(rip) => {
            system.cr0 = CR0_PE | CR0_ET;
            system.gdt = kvm_dtable::default();
            kvm_regs { rip, rbx: START_INFO, rflags: RFLAGS, ..Default::default() }
        }
        Entry::Linux64(rip) => {
            (system.cs.l, system.cs.db) = (1, 0);
            system.cr0 = CR0_PE | CR0_ET | CR0_PG;
            system.cr3 = PML4;
            system.cr4 = CR4_PAE;
            system.efer = EFER_LME | EFER_LMA;
            let limit = size_of_val(&GDT_ENTRIES) as u16 - 1;
            system.gdt = kvm_dtable { base: GDT, limit, ..Default::default() };
            kvm_regs { rip, rsi: ZERO_PAGE, rflags: RFLAGS, ..Default::default() }
        }
    }
}

/// A flat 4 GiB segment.
fn segment(selector: u16, type_: u8, db: bool) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: db.into(),
        s: 1,
        g: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pvh_entry_is_protected_mode_without_paging() {
        let mut system = kvm_sregs::default();
        let registers = prepare(&mut system, Entry::Pvh(0x100_0000));
        assert_eq!((registers.rip, registers.rbx), (0x100_0000, START_INFO));
        assert_eq!(registers.rflags & 1 << 9, 0, "interrupts off");
        assert_eq!((system.cr0 & (CR0_PE | CR0_PG), system.efer, system.cr4), (CR0_PE, 0, 0));
        assert_eq!((system.cs.base, system.cs.limit, system.cs.db, system.cs.l), (0, !0, 1, 0));
        assert_eq!((system.tr.limit, system.tr.type_, system.tr.s), (0x67, 0xb, 0));
    }

    #[test]
    fn linux64_entry_is_long_mode() {
        let mut system = kvm_sregs::default();
        let registers = prepare(&mut system, Entry::Linux64(0x100_0123));
        assert_eq!((registers.rip, registers.rsi), (0x100_0123, ZERO_PAGE));
        assert_eq!((system.cs.db, system.cs.l), (0, 1));
        assert_eq!(system.efer, EFER_LME | EFER_LMA);
        assert_eq!(system.cr3, PML4);
        assert_eq!((system.gdt.base, system.gdt.limit), (GDT, 31));
    }

    #[test]
    fn descriptors_say_what_the_segments_say() {
        for (selector, type_, long) in [(CODE, TYPE_CODE, true), (DATA, TYPE_DATA, false)] {
            let entry = GDT_ENTRIES[usize::from(selector) / 8];
            assert_eq!(entry >> 40 & 0xf, u64::from(type_));
            assert_eq!(entry >> 53 & 1 == 1, long);
            assert_eq!((entry >> 44 & 1, entry >> 47 & 1, entry >> 55 & 1), (1, 1, 1));
        }
    }
}
