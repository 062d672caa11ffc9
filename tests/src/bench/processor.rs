//! What the host's processor did, by the ticks of its clock (proc(5), `/proc/stat`).

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

const STAT: &str = "/proc/stat";

/// Ticks of work, by where the processor was; what ran at a lowered priority is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// In a guest.
    guest: u64,
    /// In programs.
    programs: u64,
    /// In the kernel: system calls, exits of guests and interrupts.
    kernel: u64,
}

impl Processor {
    /// Since the host has started.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string(STAT).context(STAT)?;
        Self::parse(&text).with_context(|| format!("{STAT} is not understood"))
    }

    fn parse(text: &str) -> Option<Self> {
        let all = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Result<Vec<u64>, _> = all.split_whitespace().map(str::parse).collect();
        let [user, _nice, system, _idle, _wait, irq, softirq, _steal, guest, ..] = ticks.ok()?[..]
        else {
            return None;
        };
        // Time of a guest is counted twice: as its own and as its program's.
        let programs = user.checked_sub(guest)?;
        Some(Self { guest, programs, kernel: system + irq + softirq })
    }

    /// From `earlier` until now.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            guest: self.guest.saturating_sub(earlier.guest),
            programs: self.programs.saturating_sub(earlier.programs),
            kernel: self.kernel.saturating_sub(earlier.kernel),
        }
    }
}

impl fmt::Display for Processor {
    /// In percent; nothing was measured if there was no tick.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = (self.guest + self.programs + self.kernel).max(1);
        let percent = |part: u64| (part * 100 + all / 2) / all;
        let (guest, programs, kernel) =
            (percent(self.guest), percent(self.programs), percent(self.kernel));
        write!(to, "guest {guest} %, programs {programs} %, kernel {kernel} %")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_stat_guest_is_told_apart_from_its_program() {
        let text = "cpu  70 9 20 500 1 2 3 0 50 0\ncpu0 70 9 20 500 1 2 3 0 50 0\nintr 1\n";
        let found = Processor::parse(text).unwrap();
        assert_eq!(found, Processor { guest: 50, programs: 20, kernel: 25 });
        assert_eq!(found.to_string(), "guest 53 %, programs 21 %, kernel 26 %");
        let later = Processor { guest: 51, ..found };
        assert_eq!(later.since(found).to_string(), "guest 100 %, programs 0 %, kernel 0 %");
    }

    #[test]
    fn processor_stat_of_another_form_is_none() {
        for text in
            ["", "cpu0 1 2", "cpu  1 2 3", "cpu  a 2 3 4 5 6 7 8 9", "cpu  1 2 3 4 5 6 7 8 9"]
        {
            assert_eq!(Processor::parse(text), None, "{text}");
        }
    }
}
