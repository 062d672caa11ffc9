//! Telling the host where a case begins and ends.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

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
        let begin = nanoseconds();
        let count = work().with_context(|| format!("doing {name}"))?;
        let elapsed = nanoseconds() - begin;
        self.say(&format!("end {name} {elapsed} {count}"));
        Ok(())
    }
}

/// The clock as the processor counts it. With the instruction clock a nanosecond is an instruction.
fn nanoseconds() -> u64 {
    let now = clock_gettime(ClockId::MonotonicRaw);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
