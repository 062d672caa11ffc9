//! `cargo xtask kernel`: the guest kernel, built once for each hash of source, patches, fragments
//! and compiler, and kept outside the checkout.
//!
//! Trusts the Debian archive (apt checks its signatures) and, beyond that, only a source archive
//! with the pinned checksum.

mod fragments;
mod patches;
mod source;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use self::fragments::Setting;
use self::source::Source;
use crate::{checkout, packages, process};

/// Raised when the way of building changes the result for equal inputs.
const RECIPE: u32 = 1;

/// Build the guest kernel if the cache has none for these inputs, and put it in `target/guest/`.
/// `keep_tree` leaves the unpacked source and the objects in the cache for the next build.
pub fn kernel(keep_tree: bool) -> Result<PathBuf> {
    packages::ensure(&[&packages::KERNEL])?;
    let config_dir = checkout::root().join("kernel-config");
    let source = Source::read(&config_dir)?;
    let settings = read_fragments(&config_dir)?;
    let compiler = process::output(Command::new("gcc").arg("--version"))?
        + &process::output(Command::new("ld").arg("--version"))?;
    let key = key(&source, &settings, &compiler);
    let cache = checkout::cache("kernel")?;
    let _lock = checkout::lock(&cache)?;
    let built = cache.join(&key).join("vmlinux");
    if !built.exists() {
        let vmlinux = tree::build(&source, &settings, &cache)?;
        store(&vmlinux, &built)?;
        if !keep_tree {
            tree::remove(&cache)?;
        }
    }
    let placed = checkout::guest().join("vmlinux");
    place(&built, &placed)?;
    println!("kernel: {} ({} KiB, {key})", placed.display(), fs::metadata(&placed)?.len() / 1024);
    Ok(placed)
}

fn read_fragments(dir: &Path) -> Result<Vec<Setting>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "config") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            files.push((name.clone(), fragments::parse(&name, &text)?));
        }
    }
    if files.is_empty() {
        bail!("{} holds no kernel fragment (*.config)", dir.display());
    }
    files.sort();
    fragments::join(&files)
}

/// Name of the cache entry: everything that decides what the kernel is. Comments do not.
fn key(source: &Source, settings: &[Setting], compiler: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{RECIPE}\n{}\n{compiler}\n", source.digest()));
    for setting in settings {
        hash.update(format!("{}={}\n", setting.name, setting.value));
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Strip `vmlinux` into the cache, under its final name only when it is whole.
fn store(vmlinux: &Path, built: &Path) -> Result<()> {
    let dir = built.parent().context("a cache entry has a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let partial = built.with_extension("partial");
    process::run(Command::new("strip").arg("-o").arg(&partial).arg(vmlinux))?;
    fs::rename(&partial, built).with_context(|| format!("cannot make {}", built.display()))
}

/// Put a copy of `built` at `placed`: hard-linked where both lie on one file system.
fn place(built: &Path, placed: &Path) -> Result<()> {
    let dir = placed.parent().context("the guest directory has a parent")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let partial = placed.with_extension("partial");
    if partial.exists() {
        fs::remove_file(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    if fs::hard_link(built, &partial).is_err() {
        fs::copy(built, &partial).with_context(|| format!("cannot copy {}", built.display()))?;
    }
    fs::rename(&partial, placed).with_context(|| format!("cannot make {}", placed.display()))
}
