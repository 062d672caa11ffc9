//! Suites that boot guests: compile, run each in a host of its own, count.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use super::count::Count;
use super::here::show;
use super::{Kind, Suite, again, docker};
use crate::cargo::{TESTS_PACKAGE, cargo, programs};
use crate::host::kvm::{self, Place};
use crate::{checkout, process};

/// Seconds that a suite may take.
const TIMEOUT_S: u32 = 2400;
/// The same for the long forms.
const TIMEOUT_FULL_S: u32 = 6 * 3600;
/// Boot limit of the agent in an emulated host, which is twenty times slower than a machine, and
/// slower still while others use the processor.
const EMULATED_BOOT_LIMIT_S: &str = "120";
/// Cycles of the long form of the `kill` suite.
const KILL_CYCLES_FULL: &str = "1000";

/// MiB of a large stream of the long form of the `engines` suite.
const NET_MIB_FULL: &str = "1024";

/// Variables of the environment of test programs.
type Variables = [(&'static str, PathBuf)];

/// What every suite is run with.
struct Run<'a> {
    programs: HashMap<String, PathBuf>,
    variables: &'a Variables,
    /// The search path of suites that drive Docker's programs.
    docker_path: Option<OsString>,
    emulated: bool,
    full: bool,
    /// Where the output of each suite goes.
    logs: PathBuf,
}

/// Run each of `suites` in a host of its own, longest first, with `variables`.
pub fn run(suites: &[Suite], full: bool, variables: &Variables) -> Result<Count> {
    let programs = compile(suites)?;
    let emulated = kvm::place()? != Place::Native;
    // Each emulated host keeps one processor busy; this machine's own KVM needs no second host.
    let mut hosts = 1;
    if emulated {
        // Here, where it is seen, and once.
        crate::host::prepare()?;
        hosts = thread::available_parallelism().map_or(1, usize::from);
    }
    let docker = suites.iter().any(|suite| docker::SUITES.contains(&suite.name));
    let docker_path = if docker { Some(docker::search_path()?) } else { None };
    let logs = checkout::target().join("test");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let run = Run { programs, variables, docker_path, emulated, full, logs };

    let mut ordered = suites.to_vec();
    ordered.sort_by_key(|suite| std::cmp::Reverse(weight(suite)));
    let (waiting, total) = (Mutex::new(ordered.into_iter()), Mutex::new(Count::default()));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || -> Result<()> {
        while let Some(suite) = next() {
            run.suite(suite.name, &total)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..hosts).map(|_| scope.spawn(work)).collect();
        let ends =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|p| resume_unwind(p)));
        ends.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
    })?;
    Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn weight(suite: &Suite) -> u32 {
    match suite.kind {
        Kind::Guests { weight } => weight,
        Kind::Unit | Kind::Here => 0,
    }
}

/// Compile the test programs; returns the path of each by its name.
fn compile(suites: &[Suite]) -> Result<HashMap<String, PathBuf>> {
    let mut command = cargo("test");
    command.args(["--no-run", "-p", TESTS_PACKAGE]);
    for suite in suites {
        command.args(["--test", suite.name]);
    }
    programs(&mut command)
}

impl Run<'_> {
    /// Runs one suite to its end, then shows its output, without that of another in between, and
    /// adds its count to `total`.
    fn suite(&self, name: &str, total: &Mutex<Count>) -> Result<()> {
        let log = self.logs.join(format!("{name}.log"));
        let started = Instant::now();
        eprintln!("suite {name}: starts (output in {})", log.display());
        let mut command = self.command(name, &log)?;
        // The child ends with the thread that starts it, which waits for it.
        let status = process::tie(&mut command).status().context("cannot start a host")?;
        let output = File::open(&log).with_context(|| format!("no {}", log.display()))?;
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        let count = show(output, |line| println!("{line}"))?.settle(status.success());
        let seconds = started.elapsed().as_secs();
        println!("suite {name}: {status} after {seconds} s");
        total.add(count);
        Ok(())
    }

    /// This program, as what runs the suite in a host.
    fn command(&self, name: &str, log: &Path) -> Result<Command> {
        let program = checkout::this_program()?;
        let tests = self.programs.get(name);
        let tests = tests.with_context(|| format!("cargo built no test program {name}"))?;
        let timeout = if self.full { TIMEOUT_FULL_S } else { TIMEOUT_S };
        let mut command = Command::new(&program);
        command.arg("host").arg(format!("--timeout={timeout}")).arg("--");
        command.arg(&program).args(["suite-inside", name]).arg(tests);
        command.env("BULKHEAD", checkout::dist().join("bulkhead"));
        command.env("BULKHEAD_LIBEXEC", checkout::dist());
        command.env("BULKHEAD_GUEST_DIR", checkout::guest());
        command.envs(self.variables.iter().map(|(name, path)| (name, path)));
        let unset = |name: &str| std::env::var_os(name).is_none();
        if self.emulated {
            command.env(again::EMULATED, "1");
            if unset("BULKHEAD_BOOT_TIMEOUT_S") {
                command.env("BULKHEAD_BOOT_TIMEOUT_S", EMULATED_BOOT_LIMIT_S);
            }
        }
        if let Some(path) = &self.docker_path
            && docker::SUITES.contains(&name)
        {
            command.env("PATH", path);
        }
        if self.full {
            command.env("BULKHEAD_DIFFERENTIAL_FULL", "1").env("BULKHEAD_TESTS_FULL", "1");
            if unset("BULKHEAD_KILL_CYCLES") {
                command.env("BULKHEAD_KILL_CYCLES", KILL_CYCLES_FULL);
            }
            if unset("BULKHEAD_NET_MIB") {
                command.env("BULKHEAD_NET_MIB", NET_MIB_FULL);
            }
        }
        let output =
            File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = output.try_clone().context("cannot share a log")?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        Ok(command)
    }
}

/// `xtask suite-inside`: run the test program at `path`, which is the suite `name`.
pub fn inside(name: &str, path: &str) -> Result<u8> {
    println!("== suite {name}");
    let passed = again::run(path)?;
    if !passed {
        println!("== suite {name}: failed");
    }
    Ok(u8::from(!passed))
}
