//! A bounded table whose ids are never used twice.

use rustix::io::Errno;

/// Ids below this are not given out: 0 is no node, 1 is the root directory.
const FIRST_ID: u64 = 2;

/// Values by id.
///
/// An id is the number of a slot with a serial number above it. So an id that the guest has
/// given back never names the value that took the slot later.
pub struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    serial: u32,
    capacity: usize,
}

struct Slot<T> {
    serial: u32,
    value: Option<T>,
}

impl<T> Table<T> {
    /// An empty table of at most `capacity` values.
    pub fn new(capacity: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), serial: 0, capacity }
    }

    /// Values in the table.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether more than half of the table is in use.
    pub fn is_crowded(&self) -> bool {
        self.count() > self.capacity / 2
    }

    /// Adds a value; `ENFILE` if the table is full.
    pub fn insert(&mut self, value: T) -> Result<u64, Errno> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.capacity => {
                let index = u32::try_from(self.slots.len()).map_err(|_| Errno::NFILE)?;
                self.slots.push(Slot { serial: 0, value: None });
                index
            }
            None => return Err(Errno::NFILE),
        };
        let serial = self.serial;
        self.serial = serial.wrapping_add(1);
        self.slots[index as usize] = Slot { serial, value: Some(value) };
        Ok((u64::from(serial) << 32) + u64::from(index) + FIRST_ID)
    }

    /// The value with this id.
    pub fn get(&self, id: u64) -> Option<&T> {
        let (serial, index) = split(id)?;
        let slot = self.slots.get(index)?;
        slot.value.as_ref().filter(|_| slot.serial == serial)
    }

    /// The value with this id.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (serial, index) = split(id)?;
        let slot = self.slots.get_mut(index)?;
        slot.value.as_mut().filter(|_| slot.serial == serial)
    }

    /// Takes the value with this id out.
    pub fn remove(&mut self, id: u64) -> Option<T> {
        self.get(id)?;
        let (_, index) = split(id)?;
        let value = self.slots.get_mut(index)?.value.take();
        self.free.push(index as u32);
        value
    }

    /// Takes every value out. Ids given out before stay void.
    pub fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.free = Vec::new();
        std::mem::take(&mut self.slots).into_iter().filter_map(|slot| slot.value)
    }
}

/// Serial number and slot of an id.
fn split(id: u64) -> Option<(u32, usize)> {
    let id = id.checked_sub(FIRST_ID)?;
    Some(((id >> 32) as u32, (id & u64::from(u32::MAX)) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_of_a_removed_value_is_void_after_reuse_of_its_slot() {
        let mut table = Table::new(1);
        let first = table.insert('a').unwrap();
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('b').unwrap();
        assert_ne!(first, second);
        assert_eq!((table.get(first), table.get(second)), (None, Some(&'b')));
        assert_eq!(table.remove(first), None);
        assert_eq!(table.count(), 1);
    }

    #[test]
    fn full_table_refuses_with_enfile() {
        let mut table = Table::new(2);
        table.insert(1).unwrap();
        table.insert(2).unwrap();
        assert_eq!(table.insert(3), Err(Errno::NFILE));
        assert_eq!(table.take_all().count(), 2);
        assert!(table.insert(4).is_ok());
    }

    #[test]
    fn id_that_was_never_given_out_is_void() {
        let mut table = Table::new(2);
        let id = table.insert(()).unwrap();
        for wrong in [0, 1, id + 1, id + (1 << 32), u64::MAX] {
            assert!(table.get(wrong).is_none() && table.remove(wrong).is_none());
        }
    }
}
