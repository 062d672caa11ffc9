//! `cargo xtask bench boot`: cold starts.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Clock, directory, measure};
use crate::archive::Archive;
use crate::{checkout, dist, packages, process};

/// The measuring program.
const PROGRAM: &str = "bench-boot";

/// Measure; `rounds` after a warm-up. Returns the exit status.
pub fn boot(rounds: u32) -> Result<u8> {
    packages::ensure(&[&packages::HOST, &packages::TESTS])?;
    dist::everything()?;
    let dir = directory()?;
    guests(&dir)?;
    measure(PROGRAM, &[], &dir.join("boot.json"), rounds, Clock::Instructions)
}

/// Assemble the bare guests into `dir`: `tiny`, and `init.img` for the guest kernel.
fn guests(dir: &Path) -> Result<()> {
    let sources = checkout::root().join("tests/guests");
    let object = dir.join("tiny.o");
    process::run(Command::new("gcc").arg("-c").arg(sources.join("tiny.S")).arg("-o").arg(&object))?;
    let mut link = Command::new("ld");
    link.arg("-T").arg(sources.join("tiny.ld")).arg(&object).arg("-o").arg(dir.join("tiny"));
    process::run(&mut link)?;
    let init = dir.join("init");
    let mut compile = Command::new("gcc");
    compile.args(["-nostdlib", "-static", "-s"]).arg(sources.join("init.S"));
    process::run(compile.arg("-o").arg(&init))?;
    let mut archive = Archive::new();
    archive.directory("dev", 0o755)?;
    archive.character_device("dev/kmsg", 0o600, 1, 11)?;
    archive.file("init", 0o755, &fs::read(&init).context("cannot read the bare init")?)?;
    fs::write(dir.join("init.img"), archive.finish()?).context("cannot write init.img")
}
