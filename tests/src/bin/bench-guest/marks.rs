//! Telling the host where a case begins and ends.

use std::arch::x86_64::_rdtsc;
use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};

/// The kernel log, of which the most urgent messages reach the console.
pub struct Marks {
    log: File,
}

impl Marks {
    /// Opens the kernel log.
    pub fn open() -> Result<Self> {
        let log = File::options().write(true).open("/dev/kmsg").context("/dev/kmsg")?;
        Ok(Self { log })
    }

    /// Writes a line.
    pub fn say(&mut self, line: &str) {
        // Nobody could be told of a failure.
        let _ = self.log.write_all(format!("<0>bench: {line}\n").as_bytes());
    }

    /// Does `work`, which returns how many operations it was, and tells its cost.
    pub fn case(&mut self, name: &str, work: impl FnOnce() -> Result<u64>) -> Result<()> {
        self.say(&format!("begin {name}"));
        let begin = ticks();
        let count = work().with_context(|| format!("doing {name}"))?;
        let elapsed = ticks() - begin;
        self.say(&format!("end {name} {elapsed} {count}"));
        Ok(())
    }
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and the kernel allows it.
    unsafe { _rdtsc() }
}
