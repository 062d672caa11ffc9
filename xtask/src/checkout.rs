//! Where things lie: the checkout, its `target/`, and the cache that all checkouts share.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Top directory of the checkout that this program was built from.
pub fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or(manifest.clone(), Path::to_path_buf)
}

/// `target/` of the checkout: the only directory that commands write to.
pub fn target() -> PathBuf {
    root().join("target")
}

/// Binaries that ship, as `cargo xtask build` leaves them.
pub fn dist() -> PathBuf {
    target().join("dist")
}

/// Guest kernel and initial RAM file system.
pub fn guest() -> PathBuf {
    target().join("guest")
}

/// Directory `name` of the cache outside the checkout, made if it is not there.
pub fn cache(name: &str) -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    let dir = base.join("bulkhead").join(name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make the cache {}", dir.display()))?;
    Ok(dir)
}

/// Wait until no other process works on the cache directory `dir`; others wait until the returned
/// file is dropped.
pub fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another process that works on {}", dir.display());
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Path of this program, to start it again in another place.
pub fn this_program() -> Result<PathBuf> {
    env::current_exe().context("cannot find the path of this program")
}
