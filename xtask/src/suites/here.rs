//! Suites that run on this machine.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::count::Count;
use crate::cargo::{TESTS_PACKAGE, cargo};
use crate::process;

/// Unit and property tests of every package but the end-to-end tests.
pub fn unit() -> Result<Count> {
    let mut command = cargo("test");
    command.args(["--quiet", "--no-fail-fast"]);
    command.args(["--workspace", "--exclude", TESTS_PACKAGE]);
    counted(&mut command)
}

/// The test program `name` of the tests package.
pub fn program(name: &str) -> Result<Count> {
    counted(cargo("test").args(["--quiet", "-p", TESTS_PACKAGE, "--test", name]))
}

/// Run `command`, show its output, count its tests.
fn counted(command: &mut Command) -> Result<Count> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().with_context(|| format!("cannot start `{}`", process::line(command)))?;
    let errors = child.stderr.take().context("standard error is a pipe")?;
    let output = child.stdout.take().context("standard output is a pipe")?;
    let errors = std::thread::spawn(move || show(errors, |line| eprintln!("{line}")));
    let mut count = show(output, |line| println!("{line}"))?;
    match errors.join() {
        Ok(counted) => count.add(counted?),
        Err(_) => anyhow::bail!("the reader of standard error panicked"),
    }
    let status = child.wait().context("cannot wait for the tests")?;
    Ok(count.settle(status.success()))
}

/// Pass lines on and count.
pub fn show(pipe: impl Read, mut print: impl FnMut(&str)) -> Result<Count> {
    let mut count = Count::default();
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).context("cannot read the tests' output")? > 0 {
        let text = String::from_utf8_lossy(&line);
        count.line(&text);
        print(text.trim_end_matches(['\n', '\r']));
        line.clear();
    }
    Ok(count)
}
