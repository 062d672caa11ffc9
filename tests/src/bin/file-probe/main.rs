//! `file-probe`: what programs do with files, as cases that each end in `ok` or in the first
//! thing that was not as on a local file system of Linux. The suite `volumes` runs it on a share
//! in a guest and on the host's file system beside, and compares.
//!
//! ```text
//! file-probe check DIR           every case, each in a directory of its own in DIR
//! file-probe case NAME DIR       one of them, in this directory
//! file-probe help NAME PATH      the second process of a case
//! file-probe walk TREE STABLE SECRET
//!                                see `walk`
//! ```

mod acl;
mod attributes;
mod between;
mod data;
mod mapped;
mod names;
mod owners;
mod walk;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long a case may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Between two looks whether it has ended.
const STEP: Duration = Duration::from_millis(5);

/// A name, and what is to be checked in an empty directory.
type Case = (&'static str, fn(&Path) -> Result<()>);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["check", dir] => check(Path::new(dir)),
        ["case", name, dir] => case(name, Path::new(dir)),
        ["help", name, path] => between::second(name, Path::new(path)),
        ["walk", tree, stable, secret] => walk::walk(Path::new(tree), Path::new(stable), secret),
        _ => Err(anyhow::anyhow!("not a command: {words:?}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("file-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn cases() -> impl Iterator<Item = &'static Case> {
    let all = [names::CASES, data::CASES, mapped::CASES, attributes::CASES, acl::CASES];
    all.into_iter().flatten().chain(owners::CASES).chain(between::CASES)
}

/// Each case is a process, so that one that hangs can be ended.
fn check(dir: &Path) -> Result<()> {
    for (name, _) in cases() {
        let own = dir.join(name);
        fs::create_dir(&own).with_context(|| format!("cannot make {}", own.display()))?;
        let mut child = Command::new("/proc/self/exe")
            .args(["case", name])
            .arg(&own)
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let begun = Instant::now();
        while child.try_wait().context("cannot wait")?.is_none() {
            if begun.elapsed() > LIMIT {
                println!("{name} hangs");
                let group = Pid::from_child(&child);
                kill_process_group(group, Signal::KILL).context("cannot end it")?;
                child.wait().context("cannot wait")?;
                break;
            }
            std::thread::sleep(STEP);
        }
        fs::remove_dir_all(&own).with_context(|| format!("cannot remove {}", own.display()))?;
    }
    Ok(())
}

/// Prints how the case `name` ends in `dir`.
fn case(name: &str, dir: &Path) -> Result<()> {
    let (_, case) = cases().find(|(found, _)| *found == name).context("no such case")?;
    match case(dir) {
        Ok(()) => println!("{name} ok"),
        Err(error) => println!("{name} {error:#}"),
    }
    Ok(())
}

/// This program as the second process of a case.
fn helper(name: &str, path: &Path) -> Result<Command> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["help", name]).arg(path);
    Ok(command)
}

/// Runs the second process to its end.
fn help(name: &str, path: &Path) -> Result<()> {
    finish(helper(name, path)?.spawn()?)
}

fn finish(mut child: Child) -> Result<()> {
    let status = child.wait()?;
    ensure!(status.success(), "the other process: {status}");
    Ok(())
}

/// A file of the case's directory with this content.
fn file(dir: &Path, name: &str, content: &[u8]) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, content).with_context(|| format!("writing {name}"))?;
    Ok(path)
}

/// Fails unless the call ended with this error.
#[track_caller]
fn refused<T>(result: rustix::io::Result<T>, errno: rustix::io::Errno, what: &str) -> Result<()> {
    match result {
        Err(found) if found == errno => Ok(()),
        Err(found) => bail!("{what}: {found:?} in place of {errno:?}"),
        Ok(_) => bail!("{what}: done in place of {errno:?}"),
    }
}

/// Fails unless both are equal.
fn same<T: PartialEq + std::fmt::Debug>(found: T, wanted: T, what: &str) -> Result<()> {
    ensure!(found == wanted, "{what}: {found:?} in place of {wanted:?}");
    Ok(())
}
