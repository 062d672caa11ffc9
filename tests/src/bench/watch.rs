//! Time from starting a program to its first output.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};

/// The clock in nanoseconds.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Start `command`, wait for a line with `word`, end it. Returns nanoseconds.
pub fn first_output(command: &mut Command, word: &str) -> Result<u64> {
    timed(command, word, true)
}

/// The same, but wait for the program's own successful end.
pub fn to_the_end(command: &mut Command, word: &str) -> Result<u64> {
    timed(command, word, false)
}

fn timed(command: &mut Command, word: &str, kill: bool) -> Result<u64> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let errors = writer.try_clone().context("cannot share a pipe")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    let start = now();
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    // The writing ends that this process holds would keep the pipe open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut output = File::from(OwnedFd::from(reader));
    let seen = wait_for(&mut output, word);
    let end = now();
    if kill || seen.is_err() {
        child.kill().context("cannot end it")?;
    }
    let status = child.wait().context("cannot wait for it")?;
    seen?;
    ensure!(kill || status.success(), "{command:?}: {status}");
    Ok(end - start)
}

/// Read until `word` has come.
pub fn wait_for(output: &mut File, word: &str) -> Result<()> {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = output.read(&mut buffer).context("cannot read the output")?;
        ensure!(count > 0, "it ended with: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
        if seen.windows(word.len()).any(|window| window == word.as_bytes()) {
            return Ok(());
        }
    }
}
