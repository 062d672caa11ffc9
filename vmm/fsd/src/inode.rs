//! The inodes that the guest knows, each held by an `O_PATH` descriptor.
//!
//! A descriptor keeps the inode from being reused and is the place from which the next path
//! component is looked up. It was opened without following a symbolic link, and `O_PATH` opens
//! nothing: a device, FIFO or socket is never touched by it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;

use crate::table::Table;

/// What makes two descriptors the same inode to the guest.
///
/// The mount is part of it, as one file may be reachable through a read-only and through a
/// writable mount; so is the share, which has its own read-only flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Number of the share.
    pub share: u32,
    device: (u32, u32),
    mount: u64,
    number: u64,
}

impl Key {
    /// The key of what `attributes` (with [`attributes_wanted`]) describe.
    pub fn new(share: u32, attributes: &Statx) -> Self {
        Self {
            share,
            device: (attributes.stx_dev_major, attributes.stx_dev_minor),
            mount: attributes.stx_mnt_id,
            number: attributes.stx_ino,
        }
    }

    /// Whether both lie on the same mount of the same share.
    pub fn same_mount(&self, other: &Self) -> bool {
        self.share == other.share && self.mount == other.mount
    }
}

/// What [`Key::new`] and a FUSE attribute need of `statx`.
pub fn attributes_wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::MNT_ID
}

/// An inode.
pub struct Inode {
    /// `O_PATH` descriptor.
    pub fd: OwnedFd,
    /// Identity.
    pub key: Key,
    /// Type, which never changes.
    pub kind: FileType,
}

impl Inode {
    /// Wraps an `O_PATH` descriptor, and returns its attributes too.
    pub fn new(share: u32, fd: OwnedFd) -> Result<(Self, Statx), Errno> {
        let attributes = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, attributes_wanted())?;
        let key = Key::new(share, &attributes);
        let kind = FileType::from_raw_mode(attributes.stx_mode.into());
        Ok((Self { fd, key, kind }, attributes))
    }

    /// The inode's attributes now.
    pub fn attributes(&self) -> Result<Statx, Errno> {
        rustix::fs::statx(&self.fd, c"", AtFlags::EMPTY_PATH, attributes_wanted())
    }

    /// [`Inode::attributes`] with the time at which the inode was made, if its file system knows.
    pub fn attributes_with_birth(&self) -> Result<Statx, Errno> {
        let wanted = attributes_wanted() | StatxFlags::BTIME;
        rustix::fs::statx(&self.fd, c"", AtFlags::EMPTY_PATH, wanted)
    }
}

struct Known {
    inode: Arc<Inode>,
    /// How often the guest was told of it, less what it has forgotten.
    lookups: u64,
}

/// Inodes by node id and by identity.
pub struct InodeTable {
    known: Table<Known>,
    /// A tree, as the keys of a hash table would have to be drawn from the kernel.
    ids: BTreeMap<Key, u64>,
    /// Shares whose inodes may be here.
    shares: BTreeSet<u32>,
}

impl InodeTable {
    /// A table of at most `capacity` inodes.
    pub fn new(capacity: usize) -> Self {
        Self { known: Table::new(capacity), ids: BTreeMap::new(), shares: BTreeSet::new() }
    }

    /// Lets inodes of `share` in.
    pub fn admit(&mut self, share: u32) {
        self.shares.insert(share);
    }

    /// Takes all inodes of `share` out, for the caller to drop without the lock, and lets no
    /// others in: a lookup that began before must not keep its mount.
    pub fn expel(&mut self, share: u32) -> Vec<Arc<Inode>> {
        self.shares.remove(&share);
        let of_share = |key: &Key| key.share == share;
        let ids: Vec<u64> =
            self.ids.iter().filter(|(key, _)| of_share(key)).map(|(_, id)| *id).collect();
        self.ids.retain(|key, _| !of_share(key));
        ids.into_iter().filter_map(|id| Some(self.known.remove(id)?.inode)).collect()
    }

    /// Whether inodes should be spared.
    pub fn is_crowded(&self) -> bool {
        self.known.is_crowded()
    }

    /// Inodes in the table.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.known.count()
    }

    /// The inode with this node id.
    pub fn get(&self, nodeid: u64) -> Option<Arc<Inode>> {
        self.known.get(nodeid).map(|known| Arc::clone(&known.inode))
    }

    /// Counts one more lookup of the inode with this identity and gives its node id, if it is
    /// known.
    pub fn look_up(&mut self, key: &Key) -> Option<u64> {
        let nodeid = *self.ids.get(key)?;
        let known = self.known.get_mut(nodeid)?;
        known.lookups = known.lookups.saturating_add(1);
        Some(nodeid)
    }

    /// Counts one more lookup of `inode` and gives its node id; `ENFILE` if the table is full,
    /// `ESTALE` if its share is gone.
    pub fn insert(&mut self, inode: Arc<Inode>) -> Result<u64, Errno> {
        if !self.shares.contains(&inode.key.share) {
            return Err(Errno::STALE);
        }
        if let Some(nodeid) = self.look_up(&inode.key) {
            return Ok(nodeid);
        }
        let key = inode.key;
        let nodeid = self.known.insert(Known { inode, lookups: 1 })?;
        self.ids.insert(key, nodeid);
        Ok(nodeid)
    }

    /// Takes `lookups` back. The inode is returned when none is left, for the caller to drop
    /// without the lock.
    pub fn forget(&mut self, nodeid: u64, lookups: u64) -> Option<Arc<Inode>> {
        let known = self.known.get_mut(nodeid)?;
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return None;
        }
        let known = self.known.remove(nodeid)?;
        self.ids.remove(&known.inode.key);
        Some(known.inode)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ids = BTreeMap::new();
        self.known.take_all().for_each(drop);
    }
}
