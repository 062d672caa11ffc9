//! What a helper tells the agent: one JSON object per line on a pipe.
//!
//! Writers are the helper and the processes it clones, until they run the container's program (the
//! pipe is closed on exec); lines are shorter than `PIPE_BUF`, so they never mix.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// Longest text in one report; with its JSON frame it stays below `PIPE_BUF` (4096).
const TEXT_MAX: usize = 1500;

/// Why a container or a process could not be made, as the caller must tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The program does not exist (exit code 127).
    ProgramMissing,
    /// The program exists but cannot be executed (exit code 126).
    ProgramDenied,
    /// The specification cannot be applied.
    InvalidSpec,
    /// A step in the guest failed.
    Step,
}

/// One line of a helper.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// An error that libcontainer logged; the innermost cause comes first.
    Cause(String),
    /// The process exists; for a container it waits to be started.
    Created {
        /// PID in the guest.
        pid: u32,
    },
    /// It is tried once more: what was said until now does not count.
    Again,
    /// Nothing was created. The first one counts.
    Failed {
        /// What sort of failure.
        kind: FailureKind,
        /// One line for the user.
        message: String,
    },
}

/// The writing end.
#[derive(Debug)]
pub struct Reporter(OwnedFd);

impl Reporter {
    /// Takes the pipe that the agent passed down.
    pub fn new(pipe: OwnedFd) -> Self {
        Self(pipe)
    }

    /// Writes one line. A lost report cannot be reported; the agent then sees a helper that ended
    /// without a word, which is an error too.
    pub fn send(&self, report: &Report) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            let _ = rustix::io::write(&self.0, &line);
        }
    }

    /// Reports a failure.
    pub fn fail(&self, kind: FailureKind, message: &str) {
        let message = shorten(message);
        self.send(&Report::Failed { kind, message });
    }
}

/// One line of at most [`TEXT_MAX`] bytes, control characters (which JSON escapes to six bytes)
/// removed.
pub fn shorten(text: &str) -> String {
    let mut kept = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if kept.len() + c.len_utf8() > TEXT_MAX {
            break;
        }
        kept.push(c);
    }
    kept
}

/// What all lines together say.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The process exists.
    Created(u32),
    /// It does not.
    Failed(FailureKind, String),
}

/// Reads the lines gathered until the helper ended.
pub fn outcome(lines: &[u8]) -> Outcome {
    let mut causes = Vec::new();
    let mut failure = None;
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Report::Created { pid }) => return Outcome::Created(pid),
            Ok(Report::Cause(text)) => causes.push(text),
            Ok(Report::Again) => {
                causes.clear();
                failure = None;
            }
            Ok(Report::Failed { kind, message }) if failure.is_none() => {
                failure = Some((kind, message));
            }
            _ => {}
        }
    }
    match failure {
        Some((FailureKind::Step, message)) => {
            Outcome::Failed(FailureKind::Step, explain(message, &causes))
        }
        Some((kind, message)) => Outcome::Failed(kind, message),
        None => {
            let message = "the container helper ended without a report".to_owned();
            Outcome::Failed(FailureKind::Step, explain(message, &causes))
        }
    }
}

/// libcontainer's errors often hide their cause; the first thing it logged is the innermost one.
/// Of the executor's own errors it logs the words that were reported, in quotes.
fn explain(message: String, causes: &[String]) -> String {
    let quoted = format!("{message:?}");
    let new = |cause: &&String| !message.contains(cause.as_str()) && !cause.contains(&quoted);
    match causes.first().filter(new) {
        Some(cause) => format!("{message}: {cause}"),
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(report: &Report) -> Vec<u8> {
        let mut line = serde_json::to_vec(report).unwrap();
        line.push(b'\n');
        line
    }

    fn failed(kind: FailureKind, message: &str) -> Report {
        let message = message.to_owned();
        Report::Failed { kind, message }
    }

    #[test]
    fn outcome_of_two_failures_is_the_first() {
        let mut lines = line(&failed(FailureKind::ProgramMissing, "exec: x"));
        lines.extend(line(&Report::Cause("noise".into())));
        lines.extend(line(&failed(FailureKind::Step, "failed to create container")));
        assert_eq!(outcome(&lines), Outcome::Failed(FailureKind::ProgramMissing, "exec: x".into()));
    }

    #[test]
    fn outcome_of_failed_step_names_innermost_cause() {
        let mut lines = line(&Report::Cause("mount /x: EBUSY".into()));
        lines.extend(line(&Report::Cause("failed to prepare rootfs".into())));
        lines.extend(line(&failed(FailureKind::Step, "failed to create container")));
        let Outcome::Failed(FailureKind::Step, message) = outcome(&lines) else {
            panic!("a failure");
        };
        assert_eq!(message, "failed to create container: mount /x: EBUSY");
    }

    #[test]
    fn outcome_of_failed_step_says_its_words_once() {
        let words = "exec /x: exec format error";
        let mut lines = line(&failed(FailureKind::Step, words));
        let cause = format!("failed to execute payload (err: Other({words:?}))");
        lines.extend(line(&Report::Cause(cause)));
        assert_eq!(outcome(&lines), Outcome::Failed(FailureKind::Step, words.into()));
    }

    #[test]
    fn outcome_of_second_try_says_nothing_of_the_first() {
        let mut lines = line(&Report::Cause("cgroup.procs: EBUSY".into()));
        lines.extend(line(&failed(FailureKind::InvalidSpec, "first")));
        lines.extend(line(&Report::Again));
        let silent = outcome(&lines);
        assert!(
            matches!(silent, Outcome::Failed(FailureKind::Step, text) if !text.contains("EBUSY"))
        );
        lines.extend(line(&failed(FailureKind::Step, "second")));
        assert_eq!(outcome(&lines), Outcome::Failed(FailureKind::Step, "second".into()));
    }

    #[test]
    fn outcome_of_silence_and_garbage_is_a_failure() {
        for lines in [&b""[..], b"{}\n", b"\xff\xfe\n{\"Created\":", b"\n\n"] {
            assert!(matches!(outcome(lines), Outcome::Failed(FailureKind::Step, _)));
        }
    }

    #[test]
    fn report_with_long_text_fits_one_pipe_write() {
        let text = shorten(&"\u{1}\"\\é".repeat(5000));
        assert!(line(&failed(FailureKind::Step, &text)).len() < 4096);
    }
}
