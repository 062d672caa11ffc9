//! The pinned kernel source: found on the machine or fetched, checked, unpacked, patched.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::fragments;
use super::patches::{self, Patch};
use crate::progress::Progress;
use crate::{packages, process};

/// What `kernel-config/source.conf` pins, and the patches beside it.
pub struct Source {
    package: String,
    /// Version of the Debian package.
    version: String,
    /// SHA-256 of the source archive, in hexadecimal.
    sha256: String,
    patches: Vec<Patch>,
}

impl Source {
    /// Read the pin and the patches in `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("source.conf");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let settings = fragments::parse("source.conf", &text)?;
        let value = |name: &str| {
            let found = settings.iter().find(|setting| setting.name == name);
            found
                .map(|setting| setting.value.clone())
                .with_context(|| format!("source.conf lacks {name}"))
        };
        Ok(Self {
            package: value("PACKAGE")?,
            version: value("VERSION")?,
            sha256: value("SHA256")?,
            patches: patches::read(dir)?,
        })
    }

    /// SHA-256 of all that decides what the unpacked source is. What patches say of themselves
    /// does not.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{}\n{}\n", self.version, self.sha256));
        for patch in &self.patches {
            hash.update(&patch.change);
        }
        hexadecimal(&hash.finalize())
    }

    /// Unpack and patch the source below `cache` unless it is there, and return its directory.
    pub fn unpack(&self, cache: &Path) -> Result<PathBuf> {
        let tree = cache.join("tree").join(&self.package);
        let mark = cache.join("tree").join("unpacked");
        if fs::read_to_string(&mark).is_ok_and(|unpacked| unpacked == self.digest()) {
            return Ok(tree);
        }
        super::tree::remove(cache)?;
        let parent = cache.join("tree");
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let archive = self.archive(&parent)?;
        let progress = Progress::start(&format!("unpacking {} {}", self.package, self.version));
        process::output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&parent))?;
        progress.finish();
        // Without the mark, one that fails half-way leaves a tree that the next build removes.
        self.patches.iter().try_for_each(|patch| patch.apply(&tree))?;
        fs::write(&mark, self.digest())
            .with_context(|| format!("cannot write {}", mark.display()))?;
        Ok(tree)
    }

    /// The source archive with the pinned checksum: the machine's own, or a fetched one.
    fn archive(&self, scratch: &Path) -> Result<PathBuf> {
        let below = Path::new("usr/src").join(format!("{}.tar.xz", self.package));
        let installed = Path::new("/").join(&below);
        if installed.exists() && sha256(&installed)? == self.sha256 {
            return Ok(installed);
        }
        let progress = Progress::start(&format!("fetching {} {}", self.package, self.version));
        let files = scratch.join("package");
        packages::unpack(&format!("{}={}", self.package, self.version), &files)?;
        progress.finish();
        let fetched = files.join(&below);
        let found = sha256(&fetched)?;
        if found != self.sha256 {
            bail!("{} has SHA-256 {found}, source.conf pins {}", fetched.display(), self.sha256);
        }
        Ok(fetched)
    }
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hexadecimal(&hash.finalize()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
