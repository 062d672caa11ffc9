//! The entries of the root directory, which the runtime may add and remove while it is served.

use std::collections::BTreeMap;
use std::sync::Arc;

use bulkhead_protocol::limits::SHARES_OF_ALL_MAX;

use crate::inode::Inode;
use crate::server::{NewShare, ServerError};

/// An entry of the root directory.
pub(crate) struct Share {
    /// Name of the entry.
    pub name: String,
    /// A directory or a single file.
    pub root: Arc<Inode>,
    /// Every change is refused.
    pub read_only: bool,
}

/// All entries, by numbers that are never used twice: an inode of a share that is gone is never
/// taken for one of another.
#[derive(Default)]
pub(crate) struct Shares {
    by_number: BTreeMap<u32, Share>,
    next: u32,
}

impl Shares {
    /// Adds all of `shares`, or none; their numbers.
    pub fn add(
        &mut self,
        shares: impl IntoIterator<Item = NewShare>,
    ) -> Result<Vec<u32>, ServerError> {
        let mut added = BTreeMap::new();
        for (number, (name, fd, read_only)) in (self.next..u32::MAX).zip(shares) {
            if self.find(name.as_bytes()).is_some() {
                return Err(ServerError::Twice(name));
            }
            match Inode::new(number, fd) {
                Ok((root, _)) => {
                    added.insert(number, Share { name, root: Arc::new(root), read_only })
                }
                Err(errno) => return Err(ServerError::Share { name, source: errno.into() }),
            };
        }
        if self.len() + added.len() > SHARES_OF_ALL_MAX {
            return Err(ServerError::TooMany);
        }
        let numbers: Vec<u32> = added.keys().copied().collect();
        self.next = numbers.last().map_or(self.next, |last| last + 1);
        self.by_number.extend(added);
        Ok(numbers)
    }

    /// Takes the shares with these names out.
    pub fn remove(&mut self, names: &[String]) -> BTreeMap<u32, Share> {
        let all = std::mem::take(&mut self.by_number);
        let (removed, kept) = all.into_iter().partition(|(_, share)| names.contains(&share.name));
        self.by_number = kept;
        removed
    }

    /// The share of this number.
    pub fn get(&self, number: u32) -> Option<&Share> {
        self.by_number.get(&number)
    }

    /// The share of this name.
    pub fn find(&self, name: &[u8]) -> Option<&Share> {
        self.iter().find(|share| share.name.as_bytes() == name)
    }

    /// All, in the order of the root directory.
    pub fn iter(&self) -> impl Iterator<Item = &Share> {
        self.by_number.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_number.len()
    }
}
