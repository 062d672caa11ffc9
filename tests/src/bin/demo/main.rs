//! `demo BUSYBOX DEBIAN ROOT`: shows real containers, each in a microVM of its own.
//!
//! `BUSYBOX` and `DEBIAN` are OCI archives, `ROOT` is a tar of the Debian root file system.
//! Runs as root where KVM is usable (`cargo xtask demo`). Its last line is the summary.

mod pipe;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

/// What the steps work with.
pub struct Stage {
    /// OCI archive of busybox.
    pub busybox: PathBuf,
    /// OCI archive of a small Debian with Python.
    pub debian: PathBuf,
    /// Its root file system as a tar.
    pub root: PathBuf,
}

/// One thing that is shown. It returns what is worth saying.
type Step = fn(&Stage) -> Result<String>;

const STEPS: &[(&str, Step)] = &[
    ("hello from the microVM", steps::hello),
    ("a program of real Debian packages", steps::debian),
    ("the exit code passes through", steps::exit_code),
    ("a terminal", steps::terminal),
    ("a pipe of 100 MB through the container", pipe::hundred_megabytes),
    ("a write into the bundle, seen from the host", steps::bundle),
    ("exec", steps::exec),
    ("two containers at once cannot see each other", steps::isolation),
    ("what a sandbox costs in memory", steps::memory),
];

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let mut next = |name| arguments.next().with_context(|| format!("argument {name} is missing"));
    let stage = Stage { busybox: next("BUSYBOX")?, debian: next("DEBIAN")?, root: next("ROOT")? };
    let (mut passed, mut failed) = (0, 0);
    for (name, step) in STEPS {
        let start = Instant::now();
        let outcome = step(&stage);
        let seconds = start.elapsed().as_secs_f32();
        match outcome {
            Ok(shown) => {
                passed += 1;
                println!("ok    {name} ({seconds:.1} s): {shown}");
            }
            Err(error) => {
                failed += 1;
                println!("FAIL  {name} ({seconds:.1} s): {error:#}");
            }
        }
    }
    println!("demo: {passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
