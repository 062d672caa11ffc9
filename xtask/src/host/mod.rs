//! `cargo xtask host`: run a command where KVM is usable, this machine or an emulated host.
//!
//! The command sees the checkout at its own path, is root, has cgroup version 2 alone, taps and
//! overlays; what it writes outside `target/` is gone when it ends.

mod image;
mod inside;
mod job;
pub mod kvm;
mod machine;
mod native;
mod session;
mod signals;
mod terminal;

use std::path::Path;
use std::time::Duration;
use std::{env, fs, io};

use anyhow::{Context, Result};

use self::image::Image;
use self::job::Job;
use self::kvm::Place;
use self::session::{Ended, Limits};
use self::signals::Signals;
pub use self::{inside::inside, native::inside as native_inside};
use crate::{checkout, packages};

/// What to run and how.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Program and arguments.
    pub command: Vec<String>,
    /// The clock counts instructions: always emulated.
    pub icount: bool,
    /// Time that the command may take.
    pub timeout: Option<Duration>,
}

/// Run the request; returns the command's exit status as a shell gives it.
pub fn host(request: &Request) -> Result<u8> {
    let place = if request.icount {
        Place::Emulated("the instruction clock is emulated".to_owned())
    } else {
        kvm::place()?
    };
    eprintln!("xtask host: {place}");
    match place {
        Place::Native => native::run(request),
        Place::Emulated(_) => emulated(request),
    }
}

/// Install and fetch what an emulated host needs.
pub fn prepare() -> Result<()> {
    image().map(drop)
}

fn image() -> Result<Image> {
    packages::ensure(&[&packages::HOST])?;
    image::ensure()
}

fn emulated(request: &Request) -> Result<u8> {
    let image = image()?;
    place_program()?;
    let mut signals = Signals::watch()?;
    let job = job(request)?;
    let limits = Limits { icount: request.icount, timeout: request.timeout };
    match session::run(&image, &job, &limits, &mut signals)? {
        Ended::Status(status) => return Ok(status),
        Ended::Hung { input_read: true } => {
            anyhow::bail!("the emulated host gave no sign of life and was ended; its input is gone")
        }
        Ended::Hung { input_read: false } => {
            eprintln!(
                "xtask host: the emulated host gave no sign of life and was ended; once more"
            );
        }
    }
    match session::run(&image, &job, &limits, &mut signals)? {
        Ended::Status(status) => Ok(status),
        Ended::Hung { .. } => anyhow::bail!("the emulated host gave no sign of life again"),
    }
}

/// The job as this process would run the command itself.
fn job(request: &Request) -> Result<Job> {
    let text = |path: std::path::PathBuf| {
        path.into_os_string()
            .into_string()
            .map_err(|path| anyhow::anyhow!("the path {} is not text", path.to_string_lossy()))
    };
    Ok(Job {
        command: request.command.clone(),
        environment: env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        directory: text(env::current_dir().context("there is no working directory")?)?,
        target: text(checkout::target())?,
        terminal: terminal::Caller::size(),
    })
}

/// Put this program where the host's first steps find it.
fn place_program() -> Result<()> {
    let dir = checkout::target().join("host");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let program = checkout::this_program()?;
    let partial = dir.join(format!("xtask.{}", std::process::id()));
    // One that a process of this number left behind: a copy must not be written through its link.
    remove_if_there(&partial)?;
    if fs::hard_link(&program, &partial).is_err() {
        fs::copy(&program, &partial)
            .with_context(|| format!("cannot copy {}", program.display()))?;
    }
    fs::rename(&partial, dir.join("xtask")).context("cannot place xtask in target/host")?;
    // Between two links of one file rename(2) changes nothing and leaves both.
    remove_if_there(&partial)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
