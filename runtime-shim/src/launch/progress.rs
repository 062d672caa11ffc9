//! A line on standard error while layers are unpacked.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::image::store::Progress;

/// Work that is shorter shows nothing, so that nothing flickers.
const TERMINAL_DELAY: Duration = Duration::from_millis(100);
/// How often the line on a terminal is renewed.
const TERMINAL_PERIOD: Duration = Duration::from_millis(100);
/// Elsewhere lines stay, so there are few.
const LOG_DELAY: Duration = Duration::from_secs(1);
const LOG_PERIOD: Duration = Duration::from_secs(5);

/// When a line is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    delay: Duration,
    period: Duration,
}

impl Pace {
    fn of(terminal: bool) -> Self {
        match terminal {
            true => Self { delay: TERMINAL_DELAY, period: TERMINAL_PERIOD },
            false => Self { delay: LOG_DELAY, period: LOG_PERIOD },
        }
    }

    /// Whether a line is due at `now` if the last one was at `last`; both from the start.
    fn is_due(self, now: Duration, last: Option<Duration>) -> bool {
        now >= last.map_or(self.delay, |last| last + self.period)
    }
}

/// Shows how much is done: one line that is overwritten on a terminal, a line every few seconds
/// elsewhere.
pub struct StderrProgress {
    what: &'static str,
    terminal: bool,
    pace: Pace,
    started: Instant,
    total: AtomicU64,
    done: AtomicU64,
    /// Milliseconds from the start to the last line; `u64::MAX` before the first.
    last_ms: AtomicU64,
    shown: AtomicBool,
}

impl StderrProgress {
    /// Progress of `what`.
    pub fn new(what: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            what,
            terminal,
            pace: Pace::of(terminal),
            started: Instant::now(),
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            last_ms: AtomicU64::new(u64::MAX),
            shown: AtomicBool::new(false),
        }
    }

    /// Takes the line away, or says that the end was reached.
    pub fn finish(&self) {
        if !self.shown.load(Ordering::Relaxed) {
            return;
        }
        let _ = match self.terminal {
            true => write!(std::io::stderr(), "\r\x1b[K"),
            false => writeln!(std::io::stderr(), "{}", self.line()),
        };
    }

    fn line(&self) -> String {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        line(self.what, done, total)
    }

    fn show(&self) {
        self.shown.store(true, Ordering::Relaxed);
        // Who cannot read this will not miss it.
        let _ = match self.terminal {
            true => write!(std::io::stderr(), "\r{}\x1b[K", self.line()),
            false => writeln!(std::io::stderr(), "{}", self.line()),
        };
    }
}

/// A line on standard error while something is done that does not tell how far it is.
pub struct Announcement {
    what: &'static str,
    terminal: bool,
    begun: AtomicBool,
}

impl Announcement {
    /// Of `what`.
    pub fn new(what: &'static str) -> Self {
        Self { what, terminal: std::io::stderr().is_terminal(), begun: AtomicBool::new(false) }
    }

    /// It begins now.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
        let end = if self.terminal { "" } else { "\n" };
        let _ = write!(std::io::stderr(), "bulkhead: {}...{end}", self.what);
    }

    /// It has ended, if it ever began: the line goes away where that is possible.
    pub fn finish(&self) {
        if self.terminal && self.begun.load(Ordering::Relaxed) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Progress for StderrProgress {
    fn start(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        let now = self.started.elapsed();
        let last_ms = self.last_ms.load(Ordering::Relaxed);
        let last = (last_ms != u64::MAX).then(|| Duration::from_millis(last_ms));
        if !self.pace.is_due(now, last) {
            return;
        }
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX - 1);
        let (relaxed, ours) = (Ordering::Relaxed, &self.last_ms);
        // Of several threads that see it is due, one shows it.
        if ours.compare_exchange(last_ms, now_ms, relaxed, relaxed).is_ok() {
            self.show();
        }
    }
}

fn line(what: &str, done: u64, total: u64) -> String {
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100).min(100);
    format!("{what}: {} / {} ({percent} %)", size(done.min(total)), size(total))
}

fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    format!("{mib:.1} MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_tells_done_and_total() {
        assert_eq!(line("x", 1 << 20, 4 << 20), "x: 1.0 MiB / 4.0 MiB (25 %)");
        assert_eq!(line("x", 9, 0), "x: 0.0 MiB / 0.0 MiB (100 %)");
    }

    #[test]
    fn short_work_shows_nothing_and_long_work_little() {
        let at = Duration::from_millis;
        let log = Pace::of(false);
        assert!(!log.is_due(at(900), None) && log.is_due(at(1000), None));
        assert!(!log.is_due(at(5900), Some(at(1000))) && log.is_due(at(6000), Some(at(1000))));
        let terminal = Pace::of(true);
        assert!(!terminal.is_due(at(90), None) && terminal.is_due(at(100), None));
    }
}
