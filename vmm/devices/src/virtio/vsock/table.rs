//! A bounded table of what the host's sockets belong to.

/// Names an entry; never names a later one in the same slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    /// As the data of an epoll event. `u64::MAX` is no token.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// From the data of an epoll event.
    pub fn from_u64(data: u64) -> Self {
        Self { index: data as u32, generation: (data >> 32) as u32 }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values by token. Slots are reused, so that the table is as large as its fullest moment.
#[derive(Debug)]
pub struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Table<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a value. The caller keeps the number of values bounded.
    pub fn insert(&mut self, value: T) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.value = Some(value);
        Token { index, generation: slot.generation }
    }

    /// The value of `token`, if it still has one.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.index as usize)?;
        if slot.generation == token.generation { slot.value.as_mut() } else { None }
    }

    /// Takes a value out; its token names nothing any more.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let slot = self.slots.get_mut(token.index as usize)?;
        if slot.generation != token.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(token.index);
        Some(value)
    }

    /// All values.
    pub fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let token = Token { index: index as u32, generation: slot.generation };
            slot.value.as_ref().map(|value| (token, value))
        })
    }

    /// Drops all values. Their tokens name nothing any more.
    pub fn clear(&mut self) {
        self.free.clear();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            slot.generation = slot.generation.wrapping_add(u32::from(slot.value.is_some()));
            slot.value = None;
            self.free.push(index as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_of_removed_value_does_not_name_its_successor() {
        let mut table = Table::new();
        let first = table.insert('a');
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('b');
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get_mut(Token::from_u64(second.to_u64())), Some(&mut 'b'));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn clear_invalidates_tokens_and_keeps_slots() {
        let mut table = Table::new();
        let tokens: Vec<_> = (0..3).map(|value| table.insert(value)).collect();
        table.remove(tokens[1]);
        table.clear();
        assert_eq!(table.len(), 0);
        table.insert(9);
        assert!(tokens.iter().all(|&token| table.get_mut(token).is_none()));
        assert_eq!(table.iter().count(), 1);
        assert_eq!(table.slots.len(), 3);
    }
}
