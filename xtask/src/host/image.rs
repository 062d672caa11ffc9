//! What the emulated host boots: Debian's cloud kernel, its modules, and our initial RAM file
//! system. Fetched and made once, kept in the cache outside the checkout.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::archive::Archive;
use crate::progress::Progress;
use crate::{checkout, packages, process};

/// The meta package that depends on the newest cloud kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// First steps of the host.
const INIT: &str = include_str!("init.sh");
/// Modules of the first steps in load order: the transport and the ports, the machine's root,
/// KVM. All others are loaded by the kernel when they are first needed.
const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_console",
    "fuse",
    "virtiofs",
    "overlay",
    "irqbypass",
    "kvm",
    "kvm-amd",
];
/// Directories of the initial RAM file system.
const DIRECTORIES: &[&str] = &["bin", "mod", "proc", "sys", "dev", "lower", "layer", "root"];

/// Files of a host.
pub struct Image {
    /// Compressed kernel.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: PathBuf,
    /// Directory to show as `/lib/modules`.
    pub modules: PathBuf,
}

/// The cached image; made if it is not there.
pub fn ensure() -> Result<Image> {
    let cache = checkout::cache("host")?;
    let _lock = checkout::lock(&cache)?;
    let dir = cache.join(key());
    let image = Image {
        kernel: dir.join("vmlinuz"),
        initrd: dir.join("initrd.img"),
        modules: dir.join("modules"),
    };
    if !dir.exists() {
        let progress = Progress::start("fetching the kernel of the emulated host");
        let partial = cache.join("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)
                .with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        make(&partial)?;
        fs::rename(&partial, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
        progress.finish();
    }
    Ok(image)
}

fn key() -> String {
    let mut hash = Sha256::new();
    hash.update(INIT);
    hash.update(MODULES.join(",") + &DIRECTORIES.join(","));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn make(dir: &Path) -> Result<()> {
    let depends = process::output(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .with_context(|| format!("{META_PACKAGE} depends on no kernel package"))?;
    let files = dir.join("package");
    fs::create_dir_all(&files).with_context(|| format!("cannot make {}", files.display()))?;
    packages::unpack(&format!("linux-image-{package}"), &files)?;
    process::output(Command::new("depmod").arg("-b").arg(&files).arg(package))?;
    fs::rename(files.join(format!("boot/vmlinuz-{package}")), dir.join("vmlinuz"))
        .context("the kernel package has no kernel")?;
    fs::rename(files.join("lib/modules"), dir.join("modules"))
        .context("the kernel package has no modules")?;
    fs::remove_dir_all(&files).with_context(|| format!("cannot remove {}", files.display()))?;
    let initrd = initrd(&dir.join("modules").join(package))?;
    fs::write(dir.join("initrd.img"), initrd).context("cannot write the host's initrd.img")
}

fn initrd(modules: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for name in DIRECTORIES {
        archive.directory(name, 0o755)?;
    }
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("bin/busybox", 0o755, &fs::read("/bin/busybox").context("/bin/busybox")?)?;
    // Some modules are built into some kernels: what modules.dep does not list is not loaded.
    let listed = fs::read_to_string(modules.join("modules.dep")).context("modules.dep")?;
    let mut order = String::new();
    for name in MODULES {
        let file = format!("{name}.ko");
        let path = listed.lines().filter_map(|line| line.split_once(':')).find_map(|(path, _)| {
            (Path::new(path).file_name() == Some(file.as_ref())).then(|| modules.join(path))
        });
        if let Some(path) = path {
            let contents =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            archive.file(&format!("mod/{file}"), 0o644, &contents)?;
            order += &format!("{file}\n");
        }
    }
    archive.file("mod/order", 0o644, order.as_bytes())?;
    archive.finish()
}
