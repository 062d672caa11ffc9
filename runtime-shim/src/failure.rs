//! What a user sees when something fails: phase, cause and fix in one line.
//!
//! Every module has its own error enum; [`Explain`] adds the phase and the fix, and the
//! conversion flattens the chain of sources into one text. A [`Failure`] also crosses the
//! supervisor's sockets, so it is plain data. Texts that come from the guest are made printable
//! and cut by [`printable`] before they get here.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Exit code of a command that failed before a workload ran (runc's).
pub const EXIT_FAILURE: u8 = 1;
/// Exit code where the workload ran, but its status was lost with its microVM; containerd's
/// number for an unknown status.
pub const EXIT_LOST: u8 = 255;
/// Exit code of `launch` for failures of its own (Docker's), so that they are not taken for the
/// workload's.
pub const EXIT_LAUNCH: u8 = 125;
/// Exit code of `exec` where the process did not run (runc's).
pub const EXIT_EXEC: u8 = 255;
/// Exit code of a program that exists but cannot be run.
pub const EXIT_CANNOT_RUN: u8 = 126;
/// Exit code of a program that does not exist.
pub const EXIT_NOT_FOUND: u8 = 127;
/// Longest text of the guest that is shown, in bytes.
const PRINTABLE_MAX: usize = 512;

/// Phase, cause and fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was being done.
    pub phase: String,
    /// Why it failed.
    pub cause: String,
    /// What to do about it; may be empty.
    pub fix: String,
    /// Exit code of the command.
    pub code: u8,
    /// The guest's console and what the sandbox's processes said; may be empty, many lines.
    #[serde(default)]
    pub details: String,
}

impl Failure {
    /// A failure from its parts, with [`EXIT_FAILURE`].
    pub fn new(phase: &str, cause: impl Into<String>, fix: &str) -> Self {
        Self {
            phase: phase.to_owned(),
            cause: cause.into(),
            fix: fix.to_owned(),
            code: EXIT_FAILURE,
            details: String::new(),
        }
    }

    /// The same with another exit code.
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The same with the sandbox's last words.
    pub fn with_details(self, details: String) -> Self {
        Self { details, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.phase.is_empty() {
            write!(f, "{}: ", self.phase)?;
        }
        f.write_str(&self.cause)?;
        if !self.fix.is_empty() {
            write!(f, " ({})", self.fix)?;
        }
        Ok(())
    }
}

impl Error for Failure {}

/// Gives an error enum its phase and fix.
pub trait Explain: Error {
    /// What was being done, as `booting the microVM`.
    fn phase(&self) -> &'static str;

    /// What the user can do; empty where the cause says it.
    fn fix(&self) -> String {
        String::new()
    }

    /// Exit code of the command.
    fn code(&self) -> u8 {
        EXIT_FAILURE
    }
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            phase: error.phase().to_owned(),
            cause: chain(&error),
            fix: error.fix(),
            code: error.code(),
            details: String::new(),
        }
    }
}

/// The error and its sources in one text.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// `text` from the guest, cut to 512 bytes and without control characters: a hostile guest
/// writes neither terminal sequences nor lines of its own into the host's log.
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if shown.len() + c.len_utf8() > PRINTABLE_MAX {
            shown.push_str("...");
            break;
        }
        shown.push(c);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_shown_as_phase_cause_and_fix() {
        let failure = Failure::new("reading the bundle", "no config.json", "run `spec` first");
        assert_eq!(failure.to_string(), "reading the bundle: no config.json (run `spec` first)");
        assert_eq!(Failure::new("", "x", "").to_string(), "x");
    }

    #[test]
    fn guest_text_with_control_bytes_is_made_printable() {
        assert_eq!(printable("a\x1b[2J\nb"), "a [2J b");
        let long = printable(&"é".repeat(4096));
        assert!(long.len() <= PRINTABLE_MAX + 3);
        assert!(long.ends_with("..."));
    }
}
