//! Ranges, overlaps and stray accesses.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::{Bus, BusDevice, BusError};

/// Remembers the last access and answers with a letter.
#[derive(Default)]
struct Probe {
    letter: u8,
    last: Option<(u64, usize)>,
}

impl BusDevice for Probe {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.last = Some((offset, data.len()));
        data.fill(self.letter);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.last = Some((offset, data.len()));
    }
}

fn probe(letter: u8) -> Arc<Mutex<Probe>> {
    Arc::new(Mutex::new(Probe { letter, last: None }))
}

fn read(bus: &Bus, address: u64) -> u8 {
    let mut data = [0];
    bus.read(address, &mut data);
    data[0]
}

#[test]
fn access_within_a_range_reaches_its_device_with_the_offset() {
    let mut bus = Bus::new();
    let (a, b) = (probe(b'a'), probe(b'b'));
    bus.insert(0x2000, 0x1000, b.clone()).unwrap();
    bus.insert(0x1000, 0x1000, a.clone()).unwrap();
    assert_eq!((read(&bus, 0x1000), read(&bus, 0x1fff), read(&bus, 0x2000)), (b'a', b'a', b'b'));
    bus.write(0x2ffc, &[0; 4]);
    assert_eq!(b.lock().unwrap().last, Some((0xffc, 4)));
    assert_eq!(a.lock().unwrap().last, Some((0xfff, 1)));
}

#[test]
fn access_outside_of_every_range_reads_as_ones() {
    let mut bus = Bus::new();
    assert_eq!(read(&bus, 0), 0xff);
    bus.insert(0x60, 1, probe(b'k')).unwrap();
    assert_eq!((read(&bus, 0x5f), read(&bus, 0x60), read(&bus, 0x61)), (0xff, b'k', 0xff));
    bus.write(0x61, &[1]);
}

#[test]
fn access_across_the_end_of_a_range_reaches_nobody() {
    let mut bus = Bus::new();
    let (a, b) = (probe(b'a'), probe(b'b'));
    bus.insert(0, 4, a.clone()).unwrap();
    bus.insert(4, 4, b.clone()).unwrap();
    let mut data = [0; 4];
    bus.read(2, &mut data);
    assert_eq!(data, [0xff; 4]);
    bus.read(u64::MAX - 1, &mut data);
    bus.read(0, &mut []);
    assert_eq!((a.lock().unwrap().last, b.lock().unwrap().last), (None, None));
}

#[test]
fn overlapping_and_impossible_ranges_are_refused() {
    let mut bus = Bus::new();
    bus.insert(0x10, 0x10, probe(0)).unwrap();
    for (base, len) in [(0x10, 0x10), (0x1f, 1), (0xf, 2), (0, 0x100), (0x18, 1)] {
        let refused = bus.insert(base, len, probe(0));
        assert_eq!(refused, Err(BusError::Overlap { base, other: 0x10 }));
    }
    assert_eq!(bus.insert(0, 0, probe(0)), Err(BusError::Range { base: 0, len: 0 }));
    let base = u64::MAX;
    assert_eq!(bus.insert(base, 2, probe(0)), Err(BusError::Range { base, len: 2 }));
    bus.insert(base, 1, probe(b'z')).unwrap();
    assert_eq!(read(&bus, base), b'z');
}

proptest! {
    #[test]
    fn lookup_agrees_with_a_plain_search(
        ranges in prop::collection::vec((0u64..300, 1u64..20), 0..20),
        address in 0u64..330,
    ) {
        let mut bus = Bus::new();
        let mut taken: Vec<(u64, u64, u8)> = Vec::new();
        for (letter, (base, len)) in ranges.into_iter().enumerate() {
            let free = taken.iter().all(|t| base + len <= t.0 || t.0 + t.1 <= base);
            let letter = letter as u8;
            prop_assert_eq!(bus.insert(base, len, probe(letter)).is_ok(), free);
            if free {
                taken.push((base, len, letter));
            }
        }
        let expected = taken.iter().find(|t| (t.0..t.0 + t.1).contains(&address));
        prop_assert_eq!(read(&bus, address), expected.map_or(0xff, |t| t.2));
    }
}
