//! `cargo xtask bench net`, `block` and `fs`: devices beside those of QEMU's microvm machine.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Clock, directory, measure};
use crate::archive::Archive;
use crate::{debian, dist, packages};

/// The measuring program.
const PROGRAM: &str = "bench-device";
/// First process of its guests.
const GUEST: &str = "bench-guest";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// A network interface.
    Net,
    /// A disk.
    Block,
    /// A share.
    Fs,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Block => "block",
            Self::Fs => "fs",
        }
    }
}

/// Measure; `rounds` after a warm-up. Returns the exit status.
pub fn device(suite: Suite, rounds: u32) -> Result<u8> {
    packages::ensure(&[&packages::HOST, &packages::TESTS])?;
    crate::kernel::kernel(false)?;
    dist::monitor()?;
    let dir = directory()?;
    let guest = dist::static_program(super::TESTS_PACKAGE, GUEST)?;
    let guest = fs::read(&guest).with_context(|| format!("cannot read {}", guest.display()))?;
    match suite {
        Suite::Net | Suite::Block => initrd(&guest, None, &dir.join("bench-guest.img"))?,
        Suite::Fs => initrd(&guest, Some(&debian::SMALL.archive()?), &dir.join("bench-fs.img"))?,
    }
    let name = suite.name();
    let clock = if suite == Suite::Fs { Clock::Time } else { Clock::Instructions };
    measure(PROGRAM, &[name], &dir.join(format!("{name}.json")), rounds, clock)
}

/// The guest's initial RAM file system: its first process and perhaps what that unpacks.
fn initrd(guest: &[u8], root: Option<&Path>, image: &Path) -> Result<()> {
    let mut archive = Archive::new();
    for name in ["dev", "proc"] {
        archive.directory(name, 0o755)?;
    }
    archive.character_device("dev/kmsg", 0o600, 1, 11)?;
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.character_device("dev/null", 0o666, 1, 3)?;
    archive.file("init", 0o755, guest)?;
    if let Some(root) = root {
        let bytes = fs::read(root).with_context(|| format!("cannot read {}", root.display()))?;
        archive.file("root.tar", 0o644, &bytes)?;
    }
    fs::write(image, archive.finish()?).with_context(|| format!("cannot write {}", image.display()))
}
