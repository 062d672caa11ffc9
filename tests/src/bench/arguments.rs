//! The command line that all measuring programs share: `… ASSETS RESULT ROUNDS`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// What `cargo xtask bench` says to a measuring program.
#[derive(Debug)]
pub struct Arguments {
    /// Directory of what was built for the measurement.
    pub assets: PathBuf,
    /// Where the rows go.
    pub result: PathBuf,
    /// Rounds after the warm-up.
    pub rounds: usize,
}

impl Arguments {
    /// Takes them off `words`, from which the program has taken its own.
    pub fn take(mut words: impl Iterator<Item = OsString>) -> Result<Self> {
        let mut next = |name| words.next().with_context(|| format!("argument {name} is missing"));
        let (assets, result) = (next("ASSETS")?.into(), next("RESULT")?.into());
        let rounds = next("ROUNDS")?.to_string_lossy().parse().context("ROUNDS is a number")?;
        Ok(Self { assets, result, rounds })
    }
}
