//! Programs from crates.io that exercise file systems, built once for each version and kept
//! outside the checkout.
//!
//! Trusts crates.io for the pinned versions, with the lock files that come with them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::progress::Progress;
use crate::{checkout, process};

/// A program.
struct Tool {
    name: &'static str,
    version: &'static str,
    /// Variable that tells the tests where it is.
    variable: &'static str,
}

/// Conformance to POSIX, and a torture of one file with a model beside it.
const TOOLS: &[Tool] = &[
    Tool { name: "pjdfstest", version: "0.2.2", variable: "BULKHEAD_PJDFSTEST" },
    Tool { name: "fsx", version: "0.3.2", variable: "BULKHEAD_FSX" },
];

/// Build what the cache lacks; returns the variables that tell where each program is.
pub fn ensure() -> Result<Vec<(&'static str, PathBuf)>> {
    let cache = checkout::cache("tools")?;
    let _lock = checkout::lock(&cache)?;
    let mut variables = Vec::new();
    for tool in TOOLS {
        let built = cache.join(format!("{}-{}", tool.name, tool.version));
        if !built.exists() {
            build(tool, &cache, &built)?;
        }
        variables.push((tool.variable, built.join("bin").join(tool.name)));
    }
    Ok(variables)
}

/// Install `tool` below `built`, which appears only when it is whole.
fn build(tool: &Tool, cache: &Path, built: &Path) -> Result<()> {
    let partial = cache.join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    let Tool { name, version, .. } = tool;
    let progress = Progress::start(&format!("building {name} {version} from crates.io"));
    let mut install = cargo("install");
    install.arg(name).args(["--version", version, "--no-track", "--root"]).arg(&partial);
    process::output(&mut install).with_context(|| {
        format!("cannot build {name} {version}: the first build on a machine needs crates.io")
    })?;
    fs::rename(&partial, built).with_context(|| format!("cannot make {}", built.display()))?;
    progress.finish();
    Ok(())
}
