//! `cargo xtask bench commands`: what clients ask of a running container.

use anyhow::Result;

use super::{Clock, directory, measure};
use crate::{dist, packages};

/// The measuring program.
const PROGRAM: &str = "bench-commands";

/// Measure; `rounds` after a warm-up. Returns the exit status.
pub fn commands(rounds: u32) -> Result<u8> {
    packages::ensure(&[&packages::HOST, &packages::TESTS])?;
    dist::everything()?;
    measure(PROGRAM, &[], &directory()?.join("commands.json"), rounds, Clock::Instructions)
}
