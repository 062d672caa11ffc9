//! Test programs in a host, and a second attempt for a test that has failed on an emulated one.
//!
//! Now and then a guest on an emulated processor boots and then never answers. Under the instruction
//! clock that is QEMU delivering an interrupt twice (`tests/src/bin/bench-device/fs.rs`); without it
//! the reason is not known. A test that has failed is therefore run once more there, by itself, and
//! what happened is printed. More than [`AT_MOST`] of one program are no accident, and on a machine
//! with KVM nothing is.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::count::Count;

/// Failures of one program that may be the emulation's.
const AT_MOST: usize = 2;
/// Set for hosts whose processor is emulated.
pub const EMULATED: &str = "BULKHEAD_TESTS_EMULATED";

/// Run the test program at `path`; whether all of its tests passed in the end. What is printed
/// counts each test once.
pub fn run(path: &str) -> Result<bool> {
    let mut first = Outcome::default();
    if attempt(path, &[], |line| first.line(line))? {
        return Ok(true);
    }
    let again = std::env::var_os(EMULATED).is_some() && first.can_be_accidents();
    if !again {
        println!("{}", first.result);
        return Ok(false);
    }
    println!("test result: {} passed; 0 failed at the first attempt", first.count.passed);
    let mut all = true;
    for name in &first.failed {
        println!("== once more, since the processor is emulated: {name}");
        all &= attempt(path, &["--exact", name], |line| println!("{line}"))?;
    }
    Ok(all)
}

/// One run of the program, whose lines go to `print`.
fn attempt(path: &str, arguments: &[&str], mut print: impl FnMut(&str)) -> Result<bool> {
    // One processor, and sandboxes of one test must not disturb the time of another.
    let mut command = Command::new(path);
    command.arg("--test-threads=1").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {path}"))?;
    let output = child.stdout.take().context("standard output is a pipe")?;
    lines(output, &mut print)?;
    let status = child.wait().with_context(|| format!("cannot wait for {path}"))?;
    Ok(status.success())
}

fn lines(output: impl Read, print: &mut impl FnMut(&str)) -> Result<()> {
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the tests' output")?;
        print(&String::from_utf8_lossy(&line));
    }
    Ok(())
}

/// What the first attempt printed.
#[derive(Debug, Default)]
struct Outcome {
    failed: Vec<String>,
    count: Count,
    /// Its last line, which counts.
    result: String,
}

impl Outcome {
    /// Takes a line and prints it, unless it is a result that is not good.
    fn line(&mut self, line: &str) {
        if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failed.push(name.to_owned());
        }
        self.count.line(line);
        if line.starts_with("test result: FAILED") {
            line.clone_into(&mut self.result);
        } else {
            println!("{line}");
        }
    }

    /// Whether every failure has a name, and they are few.
    fn can_be_accidents(&self) -> bool {
        let named = u64::try_from(self.failed.len()).is_ok_and(|named| named == self.count.failed);
        named && (1..=AT_MOST).contains(&self.failed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        lines.iter().for_each(|line| outcome.line(line));
        outcome
    }

    #[test]
    fn few_failures_with_names_can_be_accidents() {
        let result =
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        let one = outcome(&["test a ... ok", "test m::b ... FAILED", result]);
        assert_eq!(
            (one.failed.as_slice(), one.result.as_str()),
            (&["m::b".to_owned()][..], result)
        );
        assert!(one.can_be_accidents());
    }

    #[test]
    fn many_failures_and_a_program_that_has_died_are_none() {
        let result =
            "test result: FAILED. 0 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        let many = ["test a ... FAILED", "test b ... FAILED", "test c ... FAILED", result];
        assert!(!outcome(&many).can_be_accidents());
        assert!(!outcome(&many[2..]).can_be_accidents());
        assert!(!outcome(&["test a ... "]).can_be_accidents());
    }
}
