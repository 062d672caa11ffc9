//! The block devices of a machine, as the runtime reaches them while it runs.

use std::io;

use bulkhead_devices::virtio::block::Block;
use bulkhead_protocol::control::BlockStats;
use thiserror::Error;

use super::placed::{Placed, lock};

/// Why a block device keeps its size.
#[derive(Debug, Error)]
pub enum ResizeError {
    /// No such device.
    #[error("there is no block device {0}")]
    Absent(u32),
    /// The size of its file.
    #[error("reading the size of block device {0}")]
    Size(u32, #[source] io::Error),
}

/// All of them, in the order of the configuration.
#[derive(Default)]
pub struct Blocks(Vec<Placed<Block>>);

impl Blocks {
    /// Adds the next one.
    pub fn push(&mut self, device: Placed<Block>) {
        self.0.push(device);
    }

    /// Tells the driver of device `index` the size that its file has now.
    pub fn resize(&self, index: u32) -> Result<(), ResizeError> {
        let device = self.0.get(index as usize).ok_or(ResizeError::Absent(index))?;
        let mut device = lock(device);
        device.device_mut().resize().map_err(|source| ResizeError::Size(index, source))?;
        device.interrupt().config_changed();
        Ok(())
    }

    /// What each has done.
    pub fn stats(&self) -> Vec<BlockStats> {
        let stats = |device: &Placed<Block>| {
            let counts = lock(device).device().counts();
            BlockStats {
                read_bytes: counts.read_bytes,
                reads: counts.reads,
                written_bytes: counts.written_bytes,
                writes: counts.writes,
                errors: counts.errors,
            }
        };
        self.0.iter().map(stats).collect()
    }
}
