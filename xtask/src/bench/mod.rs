//! `cargo xtask bench`: builds what is measured and runs the measuring programs in the host, most
//! of them with the instruction clock.

mod boot;
mod commands;
mod device;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, iter};

use anyhow::{Context, Result};

pub use self::boot::boot;
pub use self::commands::commands;
pub use self::device::{Suite, device};
use crate::cargo::{TESTS_PACKAGE, cargo, programs};
use crate::checkout;
use crate::host::{Request, host};

/// Time that all rounds may take.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// Where results and assets go.
fn directory() -> Result<PathBuf> {
    let dir = checkout::target().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// What a measuring program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    /// One that counts instructions.
    Instructions,
    /// That of the machine.
    Time,
}

/// Build `program` of the tests and run it in the host with `before`, the directory of assets,
/// the path of the result and the number of rounds as arguments. Returns the exit status.
fn measure(program: &str, before: &[&str], result: &Path, rounds: u32, clock: Clock) -> Result<u8> {
    let built = programs(cargo("build").args(["-p", TESTS_PACKAGE, "--bin", program]))?;
    let built = built.get(program).with_context(|| format!("cargo built no {program}"))?;
    let environment = [
        "env".to_owned(),
        format!("BULKHEAD={}", checkout::dist().join("bulkhead").display()),
        format!("BULKHEAD_LIBEXEC={}", checkout::dist().display()),
        format!("BULKHEAD_GUEST_DIR={}", checkout::guest().display()),
        // The clock runs ahead whenever the host waits: no limit of seconds fits it.
        "BULKHEAD_BOOT_TIMEOUT_S=3600".to_owned(),
    ];
    let command = environment
        .into_iter()
        .chain(iter::once(built.display().to_string()))
        .chain(before.iter().map(|argument| (*argument).to_owned()))
        .chain([
            directory()?.display().to_string(),
            result.display().to_string(),
            rounds.to_string(),
        ])
        .collect();
    let status =
        host(&Request { command, icount: clock == Clock::Instructions, timeout: Some(TIMEOUT) })?;
    if status == 0 {
        println!("written to {}", result.display());
    }
    Ok(status)
}
