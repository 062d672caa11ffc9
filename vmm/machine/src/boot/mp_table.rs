//! Processors and interrupt lines for the kernel (Intel MultiProcessor Specification 1.4,
//! chapter 4).
//!
//! The floating pointer lies at the start of the last KiB of base memory, the configuration table
//! right behind it. Line `n` of the one ISA bus is pin `n` of the one I/O APIC, active high and
//! edge-triggered. Pin 0 is left out: line 0 would be the timer, which is not there.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::ioapic::PINS_MAX;
use crate::layout::{IOAPIC_ADDR, LAPIC_ADDR, MP_TABLE, MP_TABLE_SIZE};
use crate::vcpu::VCPUS_MAX;

const POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;
const PROCESSOR_SIZE: usize = 20;
const ENTRY_SIZE: usize = 8;
/// Bus, I/O APIC and two local interrupts.
const FIXED_ENTRIES: usize = 4;

const SPEC_1_4: u8 = 4;
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const IOAPIC_ID: u8 = 0;
const BUS_ID: u8 = 0;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
const ALL_LAPICS: u8 = 0xff;
/// Interrupt flags: active high, edge-triggered.
const HIGH_EDGE: u8 = 0b0101;

const _: () = assert!(
    POINTER_SIZE
        + HEADER_SIZE
        + VCPUS_MAX as usize * PROCESSOR_SIZE
        + (FIXED_ENTRIES + PINS_MAX as usize) * ENTRY_SIZE
        <= MP_TABLE_SIZE
);

/// Writes the tables for `vcpus` processors and an I/O APIC with `pins` pins.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    vcpus: u32,
    pins: u32,
) -> Result<(), GuestMemoryError> {
    memory.write_slice(&tables(vcpus as u8, pins as u8), GuestAddress(MP_TABLE))
}

fn tables(vcpus: u8, pins: u8) -> Vec<u8> {
    let mut table = header(vcpus, pins);
    for id in 0..vcpus {
        let boot = if id == 0 { BOOT_PROCESSOR } else { 0 };
        // Signature and feature flags are for the operating system's information; CPUID has them.
        let mut entry = [0; PROCESSOR_SIZE];
        entry[..4].copy_from_slice(&[PROCESSOR, id, LAPIC_VERSION, ENABLED | boot]);
        table.extend(entry);
    }
    table.extend([BUS, BUS_ID]);
    table.extend(b"ISA   ");
    table.extend([IOAPIC, IOAPIC_ID, IOAPIC_VERSION, ENABLED]);
    table.extend(IOAPIC_ADDR.to_le_bytes());
    for pin in 1..pins {
        table.extend([INTERRUPT, VECTORED, HIGH_EDGE, 0, BUS_ID, pin, IOAPIC_ID, pin]);
    }
    table.extend([LOCAL_INTERRUPT, EXTINT, 0, 0, BUS_ID, 0, 0, 0]);
    table.extend([LOCAL_INTERRUPT, NMI, 0, 0, BUS_ID, 0, ALL_LAPICS, 1]);
    let size = (table.len() as u16).to_le_bytes();
    table[4..6].copy_from_slice(&size);
    table[7] = checksum(&table);

    let mut bytes = pointer().to_vec();
    bytes.extend(table);
    bytes
}

/// Section 4.1: the floating pointer structure.
fn pointer() -> [u8; POINTER_SIZE] {
    let mut pointer = [0; POINTER_SIZE];
    pointer[..4].copy_from_slice(b"_MP_");
    let table = MP_TABLE as u32 + POINTER_SIZE as u32;
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    // Length in units of 16 bytes, revision.
    pointer[8..10].copy_from_slice(&[1, SPEC_1_4]);
    pointer[10] = checksum(&pointer);
    pointer
}

/// Section 4.2: the configuration table header, without length and checksum.
fn header(vcpus: u8, pins: u8) -> Vec<u8> {
    let mut header = vec![0; HEADER_SIZE];
    header[..4].copy_from_slice(b"PCMP");
    header[6] = SPEC_1_4;
    header[8..16].copy_from_slice(b"BULKHEAD");
    header[16..28].copy_from_slice(b"MICROVM     ");
    let entries = u16::from(vcpus) + FIXED_ENTRIES as u16 + u16::from(pins.saturating_sub(1));
    header[34..36].copy_from_slice(&entries.to_le_bytes());
    header[36..40].copy_from_slice(&LAPIC_ADDR.to_le_bytes());
    header
}

/// The byte that makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Sizes and types of the entries in a configuration table.
    fn entries(table: &[u8]) -> Vec<&[u8]> {
        let mut rest = &table[HEADER_SIZE..];
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let size = if rest[0] == PROCESSOR { PROCESSOR_SIZE } else { ENTRY_SIZE };
            let (entry, tail) = rest.split_at(size);
            entries.push(entry);
            rest = tail;
        }
        entries
    }

    #[test]
    fn checksums_of_every_size_are_zero() {
        for (vcpus, pins) in [(1, 1), (1, 24), (2, 6), (32, 24)] {
            let bytes = tables(vcpus, pins);
            let (pointer, table) = bytes.split_at(POINTER_SIZE);
            assert_eq!(sum(pointer), 0);
            assert_eq!(sum(table), 0);
            assert!(bytes.len() <= MP_TABLE_SIZE);
            let length = u16::from_le_bytes([table[4], table[5]]);
            assert_eq!(usize::from(length), table.len());
            let count = u16::from_le_bytes([table[34], table[35]]);
            assert_eq!(usize::from(count), entries(table).len());
        }
    }

    #[test]
    fn pointer_names_the_table_behind_it() {
        let bytes = tables(1, 1);
        assert_eq!(&bytes[..4], b"_MP_");
        assert_eq!(bytes[4..8], (MP_TABLE as u32 + 16).to_le_bytes());
        assert_eq!(&bytes[16..20], b"PCMP");
    }

    #[test]
    fn first_processor_is_the_boot_processor_and_all_are_enabled() {
        let bytes = tables(3, 1);
        let processors: Vec<_> = entries(&bytes[POINTER_SIZE..])
            .into_iter()
            .filter(|entry| entry[0] == PROCESSOR)
            .map(|entry| (entry[1], entry[3]))
            .collect();
        assert_eq!(processors, [(0, 3), (1, 1), (2, 1)]);
    }

    #[test]
    fn lines_are_the_pins_from_1() {
        let bytes = tables(1, 6);
        let lines: Vec<_> = entries(&bytes[POINTER_SIZE..])
            .into_iter()
            .filter(|entry| entry[0] == INTERRUPT)
            .map(|entry| (entry[2], entry[5], entry[7]))
            .collect();
        assert_eq!(lines, [1, 2, 3, 4, 5].map(|pin| (HIGH_EDGE, pin, pin)));
    }
}
