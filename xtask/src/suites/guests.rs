//! Suites that boot guests: compile, spread over hosts, run inside, count.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::count::Count;
use super::here::show;
use super::{Kind, Suite, again, docker};
use crate::cargo::{TESTS_PACKAGE, cargo, programs};
use crate::host::kvm::{self, Place};
use crate::{checkout, process};

/// Seconds that one host may take for its suites.
const TIMEOUT_S: u32 = 3600;
/// The same for the long forms.
const TIMEOUT_FULL_S: u32 = 6 * 3600;
/// Boot limit of the agent in an emulated host, which is twenty times slower than a machine, and
/// slower still while others use the processor.
const EMULATED_BOOT_LIMIT_S: &str = "120";
/// Cycles of the long form of the `kill` suite.
const KILL_CYCLES_FULL: &str = "1000";

/// MiB of a large stream of the long form of the `engines` suite.
const NET_MIB_FULL: &str = "1024";

/// A host and what it runs.
struct Group {
    programs: Vec<(&'static str, PathBuf)>,
    weight: u32,
}

/// Variables of the environment of test programs.
type Variables = [(&'static str, PathBuf)];

/// Run `suites`, each in some host, with `variables`.
pub fn run(suites: &[Suite], full: bool, variables: &Variables) -> Result<Count> {
    let mut programs = compile(suites)?;
    let place = kvm::place()?;
    // Each emulated host keeps one processor busy; this machine's own KVM needs no second host.
    let hosts = match place {
        Place::Native => 1,
        Place::Emulated(_) => {
            // Here, where it is seen, and once.
            crate::host::prepare()?;
            std::thread::available_parallelism().map_or(1, usize::from)
        }
    };
    let mut groups: Vec<Group> = Vec::new();
    let mut ordered = suites.to_vec();
    ordered.sort_by_key(|suite| std::cmp::Reverse(weight(suite)));
    for suite in &ordered {
        let program = programs
            .remove(suite.name)
            .with_context(|| format!("cargo built no test program {}", suite.name))?;
        if groups.len() < hosts {
            groups.push(Group { programs: vec![(suite.name, program)], weight: weight(suite) });
        } else if let Some(group) = groups.iter_mut().min_by_key(|group| group.weight) {
            group.programs.push((suite.name, program));
            group.weight += weight(suite);
        }
    }
    run_groups(&groups, full, variables)
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

/// Run every group in a host of its own. Output is shown as it comes when there is one group,
/// else host by host.
fn run_groups(groups: &[Group], full: bool, variables: &Variables) -> Result<Count> {
    let dir = checkout::target().join("test");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut running: Vec<(Child, PathBuf)> = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let log = dir.join(format!("host-{index}.log"));
        let names: Vec<&str> = group.programs.iter().map(|(name, _)| *name).collect();
        eprintln!("host {index}: {} (output in {})", names.join(" "), log.display());
        running.push((start(group, full, variables, &log)?, log));
    }
    let mut total = Count::default();
    for (mut child, log) in running {
        let status = child.wait().context("cannot wait for a host")?;
        let output = File::open(&log).with_context(|| format!("no {}", log.display()))?;
        let count = show(output, |line| println!("{line}"))?;
        total.add(count.settle(status.success()));
    }
    Ok(total)
}

fn start(group: &Group, full: bool, variables: &Variables, log: &std::path::Path) -> Result<Child> {
    let program = checkout::this_program()?;
    let timeout = if full { TIMEOUT_FULL_S } else { TIMEOUT_S };
    let mut command = Command::new(&program);
    command.arg("host").arg(format!("--timeout={timeout}")).arg("--");
    command.arg(&program).arg("suites-inside").arg("--");
    for (name, path) in &group.programs {
        command.arg(format!("{name}={}", path.display()));
    }
    command.env("BULKHEAD", checkout::dist().join("bulkhead"));
    command.env("BULKHEAD_LIBEXEC", checkout::dist());
    command.env("BULKHEAD_GUEST_DIR", checkout::guest());
    command.envs(variables.iter().map(|(name, path)| (name, path)));
    if kvm::place()? != Place::Native {
        command.env(again::EMULATED, "1");
        if std::env::var_os("BULKHEAD_BOOT_TIMEOUT_S").is_none() {
            command.env("BULKHEAD_BOOT_TIMEOUT_S", EMULATED_BOOT_LIMIT_S);
        }
    }
    if full && std::env::var_os("BULKHEAD_KILL_CYCLES").is_none() {
        command.env("BULKHEAD_KILL_CYCLES", KILL_CYCLES_FULL);
    }
    if group.programs.iter().any(|(name, _)| docker::SUITES.contains(name)) {
        let (dir, path) = (docker::ensure()?, std::env::var("PATH").unwrap_or_default());
        let [programs, servers] = ["usr/bin", "usr/sbin"].map(|name| dir.join(name));
        // Before those of the machine, which may be of another version.
        let path = format!("{}:{}:{path}", programs.display(), servers.display());
        command.env("PATH", path);
    }
    if full {
        command.env("BULKHEAD_DIFFERENTIAL_FULL", "1");
        command.env("BULKHEAD_TESTS_FULL", "1");
    }
    if full && std::env::var_os("BULKHEAD_NET_MIB").is_none() {
        command.env("BULKHEAD_NET_MIB", NET_MIB_FULL);
    }
    let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let errors = output.try_clone().context("cannot share a log")?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    process::tie(&mut command).spawn().context("cannot start a host")
}

/// `xtask suites-inside`: run test programs (`NAME=PATH`), one after the other.
pub fn inside(programs: &[String]) -> Result<u8> {
    let mut failed = 0;
    for program in programs {
        let (name, path) = program.split_once('=').context("a program is NAME=PATH")?;
        println!("== suite {name}");
        if !again::run(path)? {
            println!("== suite {name}: failed");
            failed = 1;
        }
    }
    Ok(failed)
}
