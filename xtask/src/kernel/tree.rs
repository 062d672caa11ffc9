//! The build tree: configure, check that every option came out as asked, compile with progress.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use super::fragments::{self, Setting};
use super::source::Source;
use crate::process;
use crate::progress::Progress;

/// Lines that a build prints, counted once; only the percentage on the screen depends on it.
const STEPS: usize = 1850;

/// Build `vmlinux` and return its path in the build tree.
pub fn build(source: &Source, settings: &[Setting], cache: &Path) -> Result<PathBuf> {
    let tree = source.unpack(cache)?;
    let objects = cache.join("tree").join("objects");
    fs::create_dir_all(&objects).with_context(|| format!("cannot make {}", objects.display()))?;
    configure(&tree, &objects, settings)?;
    compile(&tree, &objects)?;
    Ok(objects.join("vmlinux"))
}

/// Remove the unpacked source and the objects.
pub fn remove(cache: &Path) -> Result<()> {
    let tree = cache.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    Ok(())
}

fn make(tree: &Path, objects: &Path) -> Command {
    let mut output = std::ffi::OsString::from("O=");
    output.push(objects);
    let mut command = Command::new("make");
    command.arg("-C").arg(tree).arg(output);
    // Equal inputs give an equal kernel: nothing of this machine or moment goes into it.
    command.env("KBUILD_BUILD_TIMESTAMP", "2026-01-01").env("KBUILD_BUILD_VERSION", "1");
    command.env("KBUILD_BUILD_USER", "bulkhead").env("KBUILD_BUILD_HOST", "bulkhead");
    command.env("LC_ALL", "C").env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    command
}

fn configure(tree: &Path, objects: &Path, settings: &[Setting]) -> Result<()> {
    let wanted = objects.join("wanted.config");
    let lines: String =
        settings.iter().map(|setting| format!("{}={}\n", setting.name, setting.value)).collect();
    fs::write(&wanted, lines).with_context(|| format!("cannot write {}", wanted.display()))?;
    process::output(make(tree, objects).env("KCONFIG_ALLCONFIG", &wanted).arg("allnoconfig"))?;
    process::output(make(tree, objects).arg("olddefconfig"))?;
    let config = fs::read_to_string(objects.join(".config")).context("cannot read .config")?;
    let unmet = fragments::unmet(settings, &config);
    if !unmet.is_empty() {
        let names: Vec<String> =
            unmet.iter().map(|setting| format!("{}={}", setting.name, setting.value)).collect();
        bail!(
            "Kconfig did not take {}: an option it depends on is missing, or the name is wrong",
            names.join(", ")
        );
    }
    Ok(())
}

/// Compile; one line of `make`'s output is one step.
fn compile(tree: &Path, objects: &Path) -> Result<()> {
    let log_path = objects.join("build.log");
    let log =
        File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let jobs = thread::available_parallelism().map_or(2, usize::from);
    let mut progress = Progress::start("building the guest kernel");
    let mut child = process::tie(
        make(tree, objects)
            .arg(format!("-j{jobs}"))
            .arg("vmlinux")
            .stdout(Stdio::piped())
            .stderr(log),
    )
    .spawn()
    .context("cannot start make")?;
    let output = child.stdout.take().context("make's output is a pipe")?;
    let mut steps = 0;
    for line in BufReader::new(output).lines() {
        line.context("cannot read make's output")?;
        steps += 1;
        progress.update(steps, STEPS.max(steps));
    }
    let status = child.wait().context("cannot wait for make")?;
    if !status.success() {
        let log = fs::read_to_string(&log_path).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        bail!("the kernel build failed: {status}\n{tail}");
    }
    progress.finish();
    Ok(())
}
