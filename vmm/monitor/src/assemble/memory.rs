//! The balloon and the memory that can be added, as the runtime reaches them while they run.

use bulkhead_devices::virtio::Reach;
use bulkhead_devices::virtio::balloon::Balloon;
use bulkhead_devices::virtio::mem::Mem;
use bulkhead_machine::hotplug::{Hotplug, HotplugError};
use bulkhead_protocol::control::{BalloonStats, GuestFigures, HotplugStats, VmStats};
use thiserror::Error;

use super::placed::{Placed, lock};

const MIB: u64 = 1 << 20;

/// Why the size of the guest's memory stays as it is.
#[derive(Debug, Error)]
pub enum MemorySizeError {
    /// The machine was made without.
    #[error("the machine has no {0}")]
    Absent(&'static str),
    /// A balloon that leaves the guest nothing.
    #[error("a balloon of {asked} MiB (below the {memory} of the guest)")]
    Balloon {
        /// MiB asked for.
        asked: u32,
        /// MiB that the guest has from its start.
        memory: u64,
    },
    /// Giving the guest memory.
    #[error("adding memory")]
    Hotplug(#[from] HotplugError),
}

/// Memory to add, and the device by which the guest takes it.
pub struct Addable {
    /// What the guest can be given.
    pub hotplug: Hotplug,
    /// The device.
    pub device: Placed<Mem>,
    /// How far devices may use guest memory.
    pub reach: Reach,
}

/// What changes the size of a running guest.
#[derive(Default)]
pub struct MemorySize {
    /// Memory of the guest from its start, in bytes.
    pub boot_bytes: u64,
    /// The balloon.
    pub balloon: Option<Placed<Balloon>>,
    /// Memory that can be added.
    pub addable: Option<Addable>,
}

impl MemorySize {
    /// Asks the guest for a balloon of `mib` MiB.
    pub fn inflate(&self, mib: u32) -> Result<(), MemorySizeError> {
        let device = self.balloon.as_ref().ok_or(MemorySizeError::Absent("balloon"))?;
        let bytes = u64::from(mib) * MIB;
        if bytes >= self.boot_bytes {
            let memory = self.boot_bytes / MIB;
            return Err(MemorySizeError::Balloon { asked: mib, memory });
        }
        let device = lock(device);
        device.device().set_target(bytes);
        device.interrupt().config_changed();
        Ok(())
    }

    /// Asks the guest to use `mib` MiB of the memory that can be added, which it is given first.
    pub fn plug(&mut self, mib: u32) -> Result<(), MemorySizeError> {
        let addable = self.addable.as_mut();
        let addable = addable.ok_or(MemorySizeError::Absent("memory to add"))?;
        let bytes = u64::from(mib) * MIB;
        let given_bytes = addable.hotplug.give(bytes)?;
        addable.reach.extend(addable.hotplug.end());
        let device = lock(&addable.device);
        device.device().request(bytes, given_bytes);
        device.interrupt().config_changed();
        Ok(())
    }

    /// Writes what both devices do into `stats`.
    pub fn tell(&self, stats: &mut VmStats) {
        stats.balloon = self.balloon.as_ref().map(|device| {
            let counts = lock(device).device().counts();
            BalloonStats {
                target_bytes: counts.target_bytes,
                actual_bytes: counts.actual_bytes,
                reported_bytes: counts.reported_bytes,
                guest: counts.figures.map(|figures| GuestFigures {
                    total_bytes: figures.total_bytes,
                    free_bytes: figures.free_bytes,
                    available_bytes: figures.available_bytes,
                    cache_bytes: figures.cache_bytes,
                }),
            }
        });
        stats.hotplug = self.addable.as_ref().map(|addable| {
            let counts = lock(&addable.device).device().counts();
            HotplugStats {
                requested_bytes: counts.requested_bytes,
                plugged_bytes: counts.plugged_bytes,
            }
        });
    }
}
