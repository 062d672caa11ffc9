//! Docker's programs, and containerd's, for the suites that drive them, unpacked into
//! `target/docker`: an installed package would start a daemon that changes the network of this
//! machine.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::progress::Progress;
use crate::{checkout, packages};

/// The suites that need the programs.
pub const SUITES: [&str; 3] = ["docker", "ctr", super::COMPOSE];

/// The packages of daemon, client and what they run; runc is installed for other suites.
const PACKAGES: [&str; 2] = ["docker.io", "containerd"];

/// The search path with the programs in front, before those of the machine, which may be of
/// another version.
pub fn search_path() -> Result<OsString> {
    let dir = ensure()?;
    let own = [dir.join("usr/bin"), dir.join("usr/sbin")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = own.into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(all).context("a directory with a colon in its name is on the search path")
}

/// The directory of the programs; made if it is not there.
fn ensure() -> Result<PathBuf> {
    let dir = checkout::target().join("docker");
    if !dir.exists() {
        let progress = Progress::start("fetching Docker and containerd");
        let partial = dir.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)
                .with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        for package in PACKAGES {
            packages::unpack(package, &partial)?;
        }
        fs::rename(&partial, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
        progress.finish();
    }
    Ok(dir)
}
