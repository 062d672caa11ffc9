//! Debian packages that the commands of this program need, installed when they are missing.
//!
//! Each is named once, with the reason. Nothing else installs software.

use std::collections::HashSet;
use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::Progress;
use crate::{checkout, process};

/// Seconds to wait for another user of apt: unattended upgrades, an installation by hand.
const WAIT_S: u32 = 900;

/// A group of packages that one command needs.
pub struct Group {
    /// What they are needed for, as the progress line says it.
    purpose: &'static str,
    packages: &'static [&'static str],
}

/// Building the guest kernel: compiler, Kconfig's parsers, objtool's ELF library, `bc` for
/// timeconst.h, `cpio` for the empty built-in initramfs, the decompressor of the source, and
/// `patch` for our changes of it.
pub const KERNEL: Group = Group {
    purpose: "the kernel build",
    packages: &[
        "gcc",
        "make",
        "flex",
        "bison",
        "bc",
        "cpio",
        "libelf-dev",
        "libc6-dev",
        "xz-utils",
        "patch",
    ],
};

/// Building the binaries that ship: static libseccomp for the agent's container filters.
pub const BUILD: Group =
    Group { purpose: "the static binaries", packages: &["gcc", "libc6-dev", "libseccomp-dev"] };

/// The emulated host: QEMU, its virtiofsd, the shell of the first steps, and `modprobe` inside.
pub const HOST: Group = Group {
    purpose: "the emulated KVM host",
    packages: &["qemu-system-x86", "qemu-system-common", "busybox-static", "kmod", "iproute2"],
};

/// Reference runtimes and image builders of the end-to-end tests, the benchmark and the demo, the
/// back ends of `launch`'s networks, and engines with their network plugins.
pub const TESTS: Group = Group {
    purpose: "tests and benchmarks",
    packages: &[
        "iproute2",
        "busybox-static",
        "cpio",
        "runc",
        "crun",
        "e2fsprogs",
        "mount",
        "erofs-utils",
        "squashfs-tools",
        "dmsetup",
        "attr",
        "nftables",
        "passt",
        "containernetworking-plugins",
        "podman",
        "buildah",
    ],
};

/// Exercising file systems: fio, and the library that pjdfstest links.
pub const VOLUMES: Group =
    Group { purpose: "the file tests", packages: &["fio", "libacl1-dev", "gcc", "libc6-dev"] };

/// A manager of units for tests: the program alone, which becomes nobody's first process here.
pub const MANAGER: Group = Group { purpose: "tests with systemd", packages: &["systemd"] };

/// Docker Compose, which without what it recommends is a client alone.
pub const COMPOSE: Group = Group { purpose: "tests with Compose", packages: &["docker-compose"] };

/// Building a Debian root file system.
pub const ROOT: Group = Group { purpose: "a Debian root file system", packages: &["mmdebstrap"] };

/// Building a Debian root file system and an OCI image of it.
pub const DEMO: Group =
    Group { purpose: "the demo's image", packages: &["mmdebstrap", "umoci", "skopeo"] };

/// Install what is missing of `groups`.
pub fn ensure(groups: &[&Group]) -> Result<()> {
    let wanted: Vec<&str> = groups.iter().flat_map(|group| group.packages).copied().collect();
    if missing_of(&wanted)?.is_empty() {
        return Ok(());
    }
    let _lock = lock()?;
    // Another process may have installed them meanwhile.
    let missing = missing_of(&wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let purposes: Vec<&str> = groups.iter().map(|group| group.purpose).collect();
    let what = format!("installing {} for {}", missing.join(" "), purposes.join(" and "));
    let progress = Progress::start(&what);
    if install(&missing).is_err() {
        // The package lists may be absent or older than the archive.
        process::output(apt().arg("update")).context("cannot refresh the package lists")?;
        install(&missing).with_context(|| {
            format!("cannot install {}: run as root with a Debian archive", missing.join(" "))
        })?;
    }
    progress.finish();
    Ok(())
}

/// Unpack the files of `package` (`NAME` or `NAME=VERSION`) below `into`, without installing it.
pub fn unpack(package: &str, into: &std::path::Path) -> Result<()> {
    let scratch = into.with_extension("deb.d");
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("cannot make {}", scratch.display()))?;
    let outcome =
        lock().and_then(|_lock| download(package, &scratch)).and_then(|()| extract(&scratch, into));
    std::fs::remove_dir_all(&scratch)
        .with_context(|| format!("cannot remove {}", scratch.display()))?;
    outcome.with_context(|| format!("cannot fetch the Debian package {package}"))
}

fn download(package: &str, scratch: &std::path::Path) -> Result<()> {
    let fetch = || process::output(apt().current_dir(scratch).args(["download", package]));
    if fetch().is_err() {
        process::output(apt().arg("update")).context("cannot refresh the package lists")?;
        fetch()?;
    }
    Ok(())
}

fn extract(scratch: &std::path::Path, into: &std::path::Path) -> Result<()> {
    let mut entries = std::fs::read_dir(scratch)?.collect::<Result<Vec<_>, _>>()?;
    let Some(deb) = entries.pop() else { bail!("apt-get downloaded no file") };
    process::output(Command::new("dpkg").arg("-x").arg(deb.path()).arg(into))?;
    Ok(())
}

fn missing_of(wanted: &[&str]) -> Result<Vec<String>> {
    let format = "-f=${Package} ${db:Status-Status}\\n";
    let listed = process::output(Command::new("dpkg-query").args(["-W", format]))
        .context("this program needs a Debian machine (dpkg-query)")?;
    let installed: HashSet<&str> =
        listed.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    let mut missing: Vec<String> = wanted
        .iter()
        .filter(|name| !installed.contains(**name))
        .map(|name| (*name).to_owned())
        .collect();
    missing.sort_unstable();
    missing.dedup();
    Ok(missing)
}

fn install(names: &[String]) -> Result<()> {
    process::output(apt().args(["install", "--yes", "--no-install-recommends"]).args(names))
        .map(drop)
}

/// Lets one process of this program at a time use apt, which refuses a second one.
fn lock() -> Result<File> {
    checkout::lock(&checkout::cache("packages")?)
}

/// `apt-get` that waits for others who use it.
fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["-q", "-o", "Dpkg::Use-Pty=0", "-o", &format!("DPkg::Lock::Timeout={WAIT_S}")]);
    command
}
