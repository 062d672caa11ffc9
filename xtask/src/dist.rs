//! `cargo xtask build`: the static binaries that ship, and the guest's initial RAM file system.
//!
//! Each package is built by itself, so that the features that one needs do not end up in another.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::archive::Archive;
use crate::cargo::cargo;
use crate::{checkout, packages, process};

/// The only target: there is no musl here, so static binaries come from glibc.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Largest agent, in bytes: it is memory of every guest.
const AGENT_MAX: u64 = 6_000_000;

/// A binary that ships.
struct Shipped {
    package: &'static str,
    binary: &'static str,
}

/// What lands in `target/dist/`.
const HOST_BINARIES: &[Shipped] = &[
    Shipped { package: "bulkhead-runtime", binary: "bulkhead" },
    Shipped { package: "bulkhead-vmm", binary: "bulkhead-vmm" },
    Shipped { package: "bulkhead-fsd", binary: "bulkhead-fsd" },
];
/// Those that do work for a guest while it runs.
const MONITOR_BINARIES: &[Shipped] = &[
    Shipped { package: "bulkhead-vmm", binary: "bulkhead-vmm" },
    Shipped { package: "bulkhead-fsd", binary: "bulkhead-fsd" },
];
/// What lands in the guest.
const AGENT: Shipped = Shipped { package: "bulkhead-agent", binary: "bulkhead-agent" };
/// Directories that the agent mounts on.
const GUEST_DIRECTORIES: &[&str] = &["dev", "proc", "sys", "run", "tmp", "etc"];

/// Build all of it.
pub fn build() -> Result<()> {
    host_binaries(HOST_BINARIES)?;
    let agent = compile(&AGENT)?;
    report(&agent)?;
    let size = fs::metadata(&agent).context("cannot examine the agent")?.len();
    if size > AGENT_MAX {
        bail!("the agent has {size} bytes, more than the {AGENT_MAX} it may have");
    }
    let image = checkout::guest().join("initrd.img");
    fs::create_dir_all(checkout::guest()).context("cannot make target/guest")?;
    let contents = initrd(&fs::read(&agent).context("cannot read the agent")?)?;
    fs::write(&image, contents).with_context(|| format!("cannot write {}", image.display()))?;
    report(&image)
}

/// Make everything that a sandbox needs: kernel, binaries, agent.
pub fn everything() -> Result<()> {
    crate::kernel::kernel(false)?;
    build()
}

/// Build only `bulkhead-vmm` and `bulkhead-fsd`.
pub fn monitor() -> Result<()> {
    host_binaries(MONITOR_BINARIES)
}

/// Build a program that does not ship in the way of those that do.
pub fn static_program(package: &'static str, binary: &'static str) -> Result<PathBuf> {
    compile(&Shipped { package, binary })
}

fn host_binaries(binaries: &[Shipped]) -> Result<()> {
    packages::ensure(&[&packages::BUILD])?;
    let dist = checkout::dist();
    fs::create_dir_all(&dist).with_context(|| format!("cannot make {}", dist.display()))?;
    for shipped in binaries {
        let built = compile(shipped)?;
        let placed = dist.join(shipped.binary);
        place(&built, &placed)?;
        report(&placed)?;
    }
    Ok(())
}

fn compile(shipped: &Shipped) -> Result<PathBuf> {
    let out = checkout::target().join("dist-ship");
    let mut cargo = cargo("build");
    cargo.args(["--profile", "dist", "--target", TARGET]);
    cargo.args(["-p", shipped.package, "--bin", shipped.binary]);
    cargo.env("CARGO_TARGET_DIR", &out).env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo.env("LIBSECCOMP_LINK_TYPE", "static");
    cargo.env("LIBSECCOMP_LIB_PATH", "/usr/lib/x86_64-linux-gnu");
    process::run(&mut cargo).with_context(|| format!("cannot build {}", shipped.binary))?;
    Ok(out.join(TARGET).join("dist").join(shipped.binary))
}

fn place(built: &Path, placed: &Path) -> Result<()> {
    let partial = placed.with_extension("partial");
    fs::copy(built, &partial).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::rename(&partial, placed).with_context(|| format!("cannot make {}", placed.display()))
}

fn report(path: &Path) -> Result<()> {
    let size = fs::metadata(path).with_context(|| format!("no {}", path.display()))?.len();
    println!("{:>8} KiB  {}", size.div_ceil(1024), path.display());
    Ok(())
}

fn initrd(agent: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for name in GUEST_DIRECTORIES {
        archive.directory(name, 0o755)?;
    }
    // The kernel opens it before the agent can mount a device file system.
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.character_device("dev/null", 0o666, 1, 3)?;
    archive.file("init", 0o755, agent)?;
    archive.finish()
}
