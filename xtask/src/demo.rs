//! `cargo xtask demo`: real containers from real Debian packages, on this machine or in the
//! emulated host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cargo::{TESTS_PACKAGE, cargo, programs};
use crate::host::{Request, host};
use crate::progress::Progress;
use crate::{checkout, dist, packages, process};

/// The program that shows the steps.
const PROGRAM: &str = "demo";
/// Time that all steps may take.
const TIMEOUT: Duration = Duration::from_secs(900);
/// Boot limit of the agent: an emulated host is twenty times slower than a machine.
const BOOT_LIMIT_S: u32 = 60;
/// Raised when the images change.
const RECIPE: u32 = 1;
/// Debian release of the image.
const RELEASE: &str = "bookworm";

/// Images of the demo.
struct Images {
    busybox: PathBuf,
    debian: PathBuf,
    root: PathBuf,
}

/// Build what is missing and run the demo; returns its exit status.
pub fn demo() -> Result<u8> {
    packages::ensure(&[&packages::BUILD, &packages::TESTS, &packages::DEMO])?;
    dist::everything()?;
    let images = images()?;
    let built = programs(cargo("build").args(["-p", TESTS_PACKAGE, "--bin", PROGRAM]))?;
    let program = built.get(PROGRAM).with_context(|| format!("cargo built no {PROGRAM}"))?;
    let paths = [program, &images.busybox, &images.debian, &images.root];
    let mut command = vec![
        "env".to_owned(),
        format!("BULKHEAD={}", checkout::dist().join("bulkhead").display()),
        format!("BULKHEAD_LIBEXEC={}", checkout::dist().display()),
        format!("BULKHEAD_GUEST_DIR={}", checkout::guest().display()),
        format!("BULKHEAD_BOOT_TIMEOUT_S={BOOT_LIMIT_S}"),
    ];
    command.extend(paths.map(|path| path.display().to_string()));
    host(&Request { command, icount: false, timeout: Some(TIMEOUT) })
}

/// The images, from the cache or made.
fn images() -> Result<Images> {
    let cache = checkout::cache("demo")?;
    let _lock = checkout::lock(&cache)?;
    let dir = cache.join(format!("{RELEASE}-{RECIPE}"));
    let images = Images {
        busybox: dir.join("busybox.tar"),
        debian: dir.join("debian.tar"),
        root: dir.join("root.tar"),
    };
    if !dir.exists() {
        let partial = cache.join("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)
                .with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        fs::create_dir(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
        make(&partial)?;
        fs::rename(&partial, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(images)
}

fn make(dir: &Path) -> Result<()> {
    let progress = Progress::start("making a Debian root file system (mmdebstrap)");
    let root = dir.join("root.tar");
    let mut debootstrap = Command::new("mmdebstrap");
    debootstrap.args(["--quiet", "--variant=essential", "--include=python3-minimal"]);
    for unread in ["doc", "man", "locale", "info"] {
        debootstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{unread}/*"));
    }
    process::output(debootstrap.arg(RELEASE).arg(&root))?;
    progress.finish();
    let progress = Progress::start("making the images");
    let busybox = dir.join("busybox-root.tar");
    busybox_root(dir, &busybox)?;
    for (name, layer) in [("debian", &root), ("busybox", &busybox)] {
        image(dir, name, layer)?;
    }
    progress.finish();
    Ok(())
}

/// A root file system of busybox with its applets as links.
fn busybox_root(dir: &Path, tar: &Path) -> Result<()> {
    let root = dir.join("busybox");
    for name in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).with_context(|| format!("cannot make {name}"))?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).context("/bin/busybox")?;
    for applet in process::output(Command::new(&busybox).arg("--list"))?.lines() {
        if applet != "busybox" {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))
                .with_context(|| format!("cannot link {applet}"))?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").context("passwd")?;
    fs::write(root.join("etc/group"), "root:x:0:\n").context("group")?;
    let mut command = Command::new("tar");
    command.args(["--owner=0", "--group=0", "--numeric-owner", "-cf"]).arg(tar);
    process::output(command.arg("-C").arg(&root).arg(".")).map(drop)
}

/// Make the OCI archive `NAME.tar` with one layer.
fn image(dir: &Path, name: &str, layer: &Path) -> Result<()> {
    let layout = dir.join(format!("{name}.oci"));
    let tagged = format!("{}:{name}", layout.display());
    let umoci =
        |arguments: &[&str]| process::output(Command::new("umoci").args(arguments)).map(drop);
    umoci(&["init", "--layout", &layout.display().to_string()])?;
    umoci(&["new", "--image", &tagged])?;
    umoci(&["raw", "add-layer", "--image", &tagged, &layer.display().to_string()])?;
    umoci(&["config", "--image", &tagged, "--config.cmd", "/bin/sh"])?;
    let mut archive = Command::new("skopeo");
    archive.args(["copy", "--quiet", &format!("oci:{tagged}")]);
    archive.arg(format!("oci-archive:{}:{name}", dir.join(format!("{name}.tar")).display()));
    process::output(&mut archive).map(drop)
}
