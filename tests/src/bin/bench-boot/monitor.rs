//! `bulkhead-vmm` by itself, with the guest of a few instructions.

use std::path::Path;

use anyhow::Result;
use bulkhead_tests::bench::watch::now;
use bulkhead_tests::vmm::Machine;

use crate::WORD;

/// Start the monitor with the kernel `kernel`; returns the nanoseconds to its first output.
pub fn tiny(kernel: &Path) -> Result<u64> {
    let start = now();
    let mut vmm = Machine::new(kernel, crate::MEMORY_MIB)?.spawn()?;
    vmm.start()?;
    vmm.console.wait_for(WORD)?;
    Ok(now() - start)
}
