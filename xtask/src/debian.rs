//! Small Debian root file systems as tar archives, made once for each machine.
//!
//! Trusts the Debian archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::progress::Progress;
use crate::{checkout, packages, process};

/// Debian release of the roots.
const RELEASE: &str = "bookworm";

/// A root file system.
#[derive(Debug)]
pub struct Root {
    name: &'static str,
    /// Raised when the contents change.
    recipe: u32,
    /// Packages besides the essential ones, separated by commas.
    packages: &'static str,
}

/// Some two thousand files of fifty MB together, of every size that such a system has.
pub const SMALL: Root = Root { name: "small", recipe: 1, packages: "" };
/// One that systemd boots.
pub const SYSTEM: Root = Root { name: "system", recipe: 1, packages: "systemd-sysv,dbus" };
/// One that OpenRC boots.
pub const OPENRC: Root = Root { name: "openrc", recipe: 1, packages: "openrc" };
/// One with the servers of an application of three tiers.
pub const COMPOSE: Root =
    Root { name: "compose", recipe: 1, packages: "nginx-light,python3,redis-server" };

/// Documentation, which a container image leaves out.
const UNREAD: &[&str] = &["doc", "man", "locale", "info", "zoneinfo"];
/// What is large and of no more kinds than the rest; device nodes.
const LEFT_OUT: &[&str] = &[
    "./dev/*",
    "./usr/lib/x86_64-linux-gnu/perl",
    "./usr/lib/x86_64-linux-gnu/gconv",
    "./usr/share/perl",
    "./var/cache/*",
    "./var/lib/apt/lists/*",
];

impl Root {
    /// The archive, from the cache or made.
    pub fn archive(&self) -> Result<PathBuf> {
        let cache = checkout::cache("debian")?;
        let _lock = checkout::lock(&cache)?;
        let archive = cache.join(format!("{RELEASE}-{}-{}.tar", self.name, self.recipe));
        if !archive.exists() {
            packages::ensure(&[&packages::ROOT])?;
            let partial = cache.join("partial");
            if partial.exists() {
                remove(&partial)?;
            }
            fs::create_dir(&partial)
                .with_context(|| format!("cannot make {}", partial.display()))?;
            self.make(&partial, &archive)?;
            remove(&partial)?;
        }
        Ok(archive)
    }

    /// In GNU's format, whose headers are simple, and in the order of names.
    fn make(&self, dir: &Path, archive: &Path) -> Result<()> {
        let progress = Progress::start("making a Debian root file system (mmdebstrap)");
        let whole = dir.join("whole.tar");
        let mut debootstrap = Command::new("mmdebstrap");
        debootstrap.args(["--quiet", "--variant=essential"]);
        if !self.packages.is_empty() {
            debootstrap.arg(format!("--include={}", self.packages));
        }
        for unread in UNREAD {
            debootstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{unread}/*"));
        }
        process::output(debootstrap.arg(RELEASE).arg(&whole))?;
        let tree = dir.join("tree");
        fs::create_dir(&tree).with_context(|| format!("cannot make {}", tree.display()))?;
        let mut unpack = Command::new("tar");
        unpack.arg("-C").arg(&tree).arg("-xf").arg(&whole);
        unpack.args(LEFT_OUT.iter().map(|path| format!("--exclude={path}")));
        process::output(&mut unpack)?;
        let small = dir.join("small.tar");
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(&tree).args(["--sort=name", "--numeric-owner", "--format=gnu", "-cf"]);
        process::output(pack.arg(&small).arg("."))?;
        fs::rename(&small, archive)
            .with_context(|| format!("cannot make {}", archive.display()))?;
        progress.finish();
        Ok(())
    }
}

fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}
