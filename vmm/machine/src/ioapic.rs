//! The I/O APIC (Intel 82093AA), as much of it as message-signalled delivery needs.
//!
//! KVM keeps only the local APICs ("split irqchip"); this is the rest. Each pin whose redirection
//! entry is unmasked becomes an MSI route of the same number, so that a device's irqfd reaches the
//! local APIC straight from the signalling thread. Routes through an in-kernel I/O APIC take a
//! detour over a kernel worker thread each time. The guest sees as many pins as there are, which
//! saves most of its register accesses at boot, and the host kernel neither emulates an 8259 nor
//! an I/O APIC for it.
//!
//! Lines are edge-triggered: an irqfd is an edge. A pin that the guest programs as level-triggered
//! works as an edge. Events on a masked pin are dropped, as on hardware for edges.
//!
//! Trust: every access is the guest's choice; none can do more than change its own interrupts.

/// Index register: selects what the window shows.
const SELECT: u64 = 0x00;
/// Window register.
const WINDOW: u64 = 0x10;

const INDEX_ID: u8 = 0x00;
const INDEX_VERSION: u8 = 0x01;
const INDEX_ARBITRATION: u8 = 0x02;
const INDEX_REDIRECTION: u8 = 0x10;
/// Version of the 82093AA.
const VERSION: u32 = 0x11;

/// Redirection entry: masked.
const MASKED: u64 = 1 << 16;
/// Redirection entry: delivery status and remote IRR, which are read-only.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;
/// Redirection entry: bits that exist.
const EXISTING: u64 = 0xff00_0000_0001_ffff;

/// Most pins that an I/O APIC can have here: the 24 of the 82093AA.
pub const PINS_MAX: u32 = 24;

/// An MSI route for one pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MsiRoute {
    pub(crate) gsi: u32,
    pub(crate) address: u32,
    pub(crate) data: u32,
}

/// Registers of the I/O APIC: plain data.
#[derive(Debug, Clone)]
pub(crate) struct Ioapic {
    id: u32,
    select: u8,
    redirection: Vec<u64>,
}

impl Ioapic {
    /// An I/O APIC after reset with `pins` pins, 1 to [`PINS_MAX`], all masked.
    pub(crate) fn new(pins: u32) -> Self {
        Self { id: 0, select: 0, redirection: vec![MASKED; pins as usize] }
    }

    /// Reads a register; anything but an aligned 32-bit read of one that exists gives 0.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match offset {
            SELECT => u32::from(self.select),
            WINDOW => self.read_window(),
            _ => 0,
        };
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = value.to_le_bytes();
        }
    }

    /// Writes a register; returns whether the routes have changed.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let Ok(data) = <[u8; 4]>::try_from(data) else {
            return false;
        };
        let value = u32::from_le_bytes(data);
        match offset {
            // Bits above the index are reserved.
            SELECT => self.select = value as u8,
            WINDOW => return self.write_window(value),
            _ => {}
        }
        false
    }

    /// The routes of all pins that deliver.
    pub(crate) fn routes(&self) -> impl Iterator<Item = MsiRoute> {
        self.redirection.iter().zip(0..).filter_map(|(entry, gsi)| route(*entry, gsi))
    }

    fn read_window(&self) -> u32 {
        match self.select {
            INDEX_ID | INDEX_ARBITRATION => self.id,
            INDEX_VERSION => VERSION | (self.redirection.len() as u32 - 1) << 16,
            _ => match self.selected_pin() {
                Some((pin, false)) => self.redirection[pin] as u32,
                Some((pin, true)) => (self.redirection[pin] >> 32) as u32,
                None => 0,
            },
        }
    }

    fn write_window(&mut self, value: u32) -> bool {
        if self.select == INDEX_ID {
            self.id = value & 0x0f00_0000;
        }
        let Some((pin, high)) = self.selected_pin() else {
            return false;
        };
        let old = self.redirection[pin];
        let value = u64::from(value);
        let new = if high { old & 0xffff_ffff | value << 32 } else { old & !0xffff_ffff | value };
        self.redirection[pin] = new & EXISTING & !READ_ONLY;
        route(old, 0) != route(self.redirection[pin], 0)
    }

    /// The pin whose entry the window shows, and whether it is the upper half.
    fn selected_pin(&self) -> Option<(usize, bool)> {
        let at = usize::from(self.select.checked_sub(INDEX_REDIRECTION)?);
        (at / 2 < self.redirection.len()).then_some((at / 2, at % 2 == 1))
    }
}

/// The message of a redirection entry (Intel SDM volume 3, "Message Signalled Interrupts"), unless
/// it is masked or its delivery mode is neither fixed nor lowest priority.
fn route(entry: u64, gsi: u32) -> Option<MsiRoute> {
    let low = entry as u32;
    let delivery = low >> 8 & 0x7;
    if entry & MASKED != 0 || delivery > 1 {
        return None;
    }
    let destination = (entry >> 56) as u32;
    let logical = low >> 11 & 1;
    Some(MsiRoute {
        gsi,
        address: crate::layout::LAPIC_ADDR | destination << 12 | logical << 2,
        // Vector and delivery mode; edge-triggered.
        data: low & 0x7ff,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(ioapic: &mut Ioapic, index: u32, value: u32) -> bool {
        assert!(!ioapic.write(SELECT, &index.to_le_bytes()));
        ioapic.write(WINDOW, &value.to_le_bytes())
    }

    fn read(ioapic: &mut Ioapic, index: u32) -> u32 {
        ioapic.write(SELECT, &index.to_le_bytes());
        let mut data = [0xff; 4];
        ioapic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn version_names_the_last_pin() {
        assert_eq!(read(&mut Ioapic::new(6), 1), 0x0005_0011);
        assert_eq!(read(&mut Ioapic::new(24), 1), 0x0017_0011);
    }

    #[test]
    fn pins_after_reset_are_masked() {
        let mut ioapic = Ioapic::new(2);
        assert_eq!(read(&mut ioapic, 0x10), 0x10000);
        assert_eq!(read(&mut ioapic, 0x12), 0x10000);
        assert_eq!(ioapic.routes().count(), 0);
    }

    #[test]
    fn unmasked_pin_becomes_a_route() {
        let mut ioapic = Ioapic::new(6);
        assert!(!write(&mut ioapic, 0x1b, 0x0300_0000), "still masked");
        assert!(write(&mut ioapic, 0x1a, 0x0000_0831));
        let route = MsiRoute { gsi: 5, address: 0xfee0_3004, data: 0x31 };
        assert_eq!(ioapic.routes().collect::<Vec<_>>(), [route]);
        assert!(!write(&mut ioapic, 0x1a, 0x0000_0831), "nothing new");
        assert!(write(&mut ioapic, 0x1b, 0x0100_0000), "another destination");
        assert!(write(&mut ioapic, 0x1a, 0x0001_0831), "masked again");
        assert_eq!(ioapic.routes().count(), 0);
    }

    #[test]
    fn level_trigger_is_kept_but_delivered_as_an_edge() {
        let mut ioapic = Ioapic::new(1);
        assert!(write(&mut ioapic, 0x10, 0x8040));
        assert_eq!(read(&mut ioapic, 0x10), 0x8040);
        assert_eq!(ioapic.routes().next().unwrap().data, 0x40);
    }

    #[test]
    fn delivery_mode_other_than_fixed_or_lowest_gives_no_route() {
        for mode in 2..8 {
            let mut ioapic = Ioapic::new(1);
            assert!(!write(&mut ioapic, 0x10, mode << 8 | 0x40));
            assert_eq!(ioapic.routes().count(), 0);
        }
    }

    #[test]
    fn read_only_and_missing_bits_stay_zero() {
        let mut ioapic = Ioapic::new(1);
        write(&mut ioapic, 0x10, u32::MAX);
        write(&mut ioapic, 0x11, u32::MAX);
        write(&mut ioapic, 0x00, u32::MAX);
        assert_eq!(read(&mut ioapic, 0x10), 0x1_afff);
        assert_eq!(read(&mut ioapic, 0x11), 0xff00_0000);
        assert_eq!(read(&mut ioapic, 0x00), 0x0f00_0000);
    }

    #[test]
    fn access_outside_the_registers_does_nothing() {
        let mut ioapic = Ioapic::new(1);
        assert!(!write(&mut ioapic, 0x12, 0));
        assert_eq!(read(&mut ioapic, 0xff), 0);
        assert!(!ioapic.write(WINDOW, &[0; 8]));
        assert!(!ioapic.write(0x40, &[0; 4]));
        let mut data = [0xff; 8];
        ioapic.read(WINDOW, &mut data);
        assert_eq!(data, [0; 8]);
        let mut data = [0xff; 4];
        ioapic.read(0xffc, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
