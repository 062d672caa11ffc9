//! One line on standard error that is updated in place while work is long.
//!
//! On a terminal the line is rewritten; in a log a new line appears every ten per cent.

use std::io::{IsTerminal, Write, stderr};
use std::time::Instant;

/// A running piece of work.
pub struct Progress {
    what: String,
    started: Instant,
    terminal: bool,
    logged_tenth: usize,
}

impl Progress {
    /// Announce `what`.
    pub fn start(what: &str) -> Self {
        let terminal = stderr().is_terminal();
        if terminal {
            eprint!("\r\x1b[K{what} ...");
        } else {
            eprintln!("{what} ...");
        }
        Self { what: what.to_owned(), started: Instant::now(), terminal, logged_tenth: 0 }
    }

    /// Show that `done` of `total` steps are behind us.
    pub fn update(&mut self, done: usize, total: usize) {
        let percent = (done * 100).checked_div(total).unwrap_or(0).min(99);
        let seconds = self.started.elapsed().as_secs();
        if self.terminal {
            eprint!("\r\x1b[K{} {percent} % ({done}/{total}, {seconds} s)", self.what);
        } else if percent / 10 > self.logged_tenth {
            self.logged_tenth = percent / 10;
            eprintln!("{} {percent} % ({seconds} s)", self.what);
        }
        // Progress is decoration: a closed standard error must not end the work.
        let _ = stderr().flush();
    }

    /// The work is done.
    pub fn finish(self) {
        let seconds = self.started.elapsed().as_secs_f32();
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{start}{} done in {seconds:.1} s", self.what);
    }
}
