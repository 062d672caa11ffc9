//! `cargo xtask test`: every suite, one summary.
//!
//! `unit` and `layout` run on this machine. The others boot guests: their programs are compiled
//! here and run where KVM is usable, each suite in a host of its own, and as many hosts side by side
//! as there are processors.

mod again;
mod count;
mod docker;
mod guests;
mod here;

use anyhow::{Result, bail};

use self::count::Count;
pub use self::guests::inside;
use crate::{debian, dist, packages, tools};

/// What to test.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only the suites of these names.
    pub only: Vec<String>,
    /// Long forms of the suites that have one.
    pub full: bool,
}

/// Where a suite runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Unit and property tests of all packages.
    Unit,
    /// One test program of the tests package, on this machine.
    Here,
    /// One test program of the tests package, where KVM is usable; how long it takes, in minutes of
    /// an emulated host, so that the longest begin first.
    Guests { weight: u32 },
}

/// A suite.
#[derive(Debug, Clone, Copy)]
struct Suite {
    name: &'static str,
    kind: Kind,
    about: &'static str,
}

/// The suite that exercises file systems with programs of others.
const VOLUMES: &str = "volumes";
/// The suite that boots distributions in containers.
const SYSTEM: &str = "system";
/// The suite with a systemd of its own.
const SYSTEMD: &str = "systemd";
/// The suite that drives Docker Compose.
const COMPOSE: &str = "compose";

const SUITES: &[Suite] = &[
    Suite { name: "unit", kind: Kind::Unit, about: "unit and property tests of every package" },
    Suite { name: "layout", kind: Kind::Here, about: "import graph, static binaries, sizes" },
    Suite {
        name: "lifecycle",
        kind: Kind::Guests { weight: 4 },
        about: "containers from create to delete, streams, exec",
    },
    Suite {
        name: "limits",
        kind: Kind::Guests { weight: 2 },
        about: "the sandbox's cgroup, pause, update, figures, out of memory",
    },
    Suite {
        name: SYSTEMD,
        kind: Kind::Guests { weight: 2 },
        about: "scopes of systemd: limits, updates, ends; --full: Podman's containers and pods",
    },
    Suite {
        name: "pods",
        kind: Kind::Guests { weight: 4 },
        about: "several containers in one microVM: what they share, limits, ends, failures",
    },
    Suite {
        name: "differential",
        kind: Kind::Guests { weight: 5 },
        about: "variations of config.json, under runc or crun and here",
    },
    Suite {
        name: "launch",
        kind: Kind::Guests { weight: 4 },
        about: "images in every form, the flags of docker run, the store",
    },
    Suite {
        name: "devices",
        kind: Kind::Guests { weight: 1 },
        about: "bulkhead-vmm alone: disks, entropy, pauses, how guests end",
    },
    Suite {
        name: "memory",
        kind: Kind::Guests { weight: 3 },
        about: "memory that goes back to the host, guests that grow and shrink, CPUs",
    },
    Suite {
        name: "interfaces",
        kind: Kind::Guests { weight: 1 },
        about: "bulkhead-vmm alone: packets both ways, queue pairs, slots, limits",
    },
    Suite {
        name: "block",
        kind: Kind::Guests { weight: 4 },
        about: "disks: roots and volumes from images, device nodes, failures of images",
    },
    Suite {
        name: VOLUMES,
        kind: Kind::Guests { weight: 7 },
        about: "mounts, and files of a share beside the same files on the host",
    },
    Suite {
        name: "net",
        kind: Kind::Guests { weight: 2 },
        about: "network namespaces as engines make them, changes while guests run",
    },
    Suite {
        name: "engines",
        kind: Kind::Guests { weight: 5 },
        about: "networks that CNI plugins and Docker's steps make; --full: a GiB each way",
    },
    Suite {
        name: "uplink",
        kind: Kind::Guests { weight: 4 },
        about: "the network that launch makes, from inside guests",
    },
    Suite {
        name: "docker",
        kind: Kind::Guests { weight: 5 },
        about: "a Docker daemon with bulkhead as its runtime",
    },
    Suite {
        name: COMPOSE,
        kind: Kind::Guests { weight: 4 },
        about: "an application of three tiers that Docker Compose runs, a microVM each",
    },
    Suite {
        name: SYSTEM,
        kind: Kind::Guests { weight: 2 },
        about: "containers whose first process is a distribution's init; --full: OpenRC, too",
    },
    Suite {
        name: "ctr",
        kind: Kind::Guests { weight: 2 },
        about: "containerd's ctr and the shim of runc with bulkhead as its runtime",
    },
    Suite {
        name: "buildah",
        kind: Kind::Guests { weight: 3 },
        about: "images that Buildah builds with each command in a microVM",
    },
    Suite {
        name: "nested",
        kind: Kind::Guests { weight: 3 },
        about: "containers of Podman inside a container",
    },
    Suite {
        name: "podman",
        kind: Kind::Guests { weight: 4 },
        about: "Podman's commands on containers, and its pods; --full: its builds",
    },
    Suite {
        name: "failures",
        kind: Kind::Guests { weight: 3 },
        about: "every failure: one line, the right code, nothing left",
    },
    Suite {
        name: "kill",
        kind: Kind::Guests { weight: 2 },
        about: "random processes killed at random moments; --full: a thousand times",
    },
];

/// Print the names.
pub fn list() {
    for suite in SUITES {
        println!("{:<14} {}", suite.name, suite.about);
    }
}

/// Run the selected suites; returns 0 when every test passed.
pub fn test(selection: &Selection) -> Result<u8> {
    let suites = select(&selection.only)?;
    packages::ensure(&[&packages::BUILD, &packages::TESTS])?;
    let guests: Vec<Suite> =
        suites.iter().filter(|suite| matches!(suite.kind, Kind::Guests { .. })).copied().collect();
    let mut variables = Vec::new();
    if suites.iter().any(|suite| suite.name == VOLUMES) {
        packages::ensure(&[&packages::VOLUMES])?;
        variables = tools::ensure()?;
    }
    if suites.iter().any(|suite| suite.name == SYSTEMD) {
        packages::ensure(&[&packages::MANAGER])?;
    }
    if suites.iter().any(|suite| suite.name == COMPOSE) {
        packages::ensure(&[&packages::COMPOSE])?;
        variables.push(("BULKHEAD_COMPOSE_ROOT", debian::COMPOSE.archive()?));
    }
    if suites.iter().any(|suite| suite.name == SYSTEM) {
        variables.push(("BULKHEAD_SYSTEM_ROOT", debian::SYSTEM.archive()?));
        if selection.full {
            variables.push(("BULKHEAD_OPENRC_ROOT", debian::OPENRC.archive()?));
        }
    }
    if suites.iter().any(|suite| suite.kind != Kind::Unit) {
        dist::everything()?;
    }
    let mut total = Count::default();
    for suite in &suites {
        match suite.kind {
            Kind::Unit => total.add(here::unit()?),
            Kind::Here => total.add(here::program(suite.name)?),
            Kind::Guests { .. } => {}
        }
    }
    if !guests.is_empty() {
        total.add(guests::run(&guests, selection.full, &variables)?);
    }
    println!("tests: {} passed, {} failed", total.passed, total.failed);
    Ok(u8::from(total.failed > 0))
}

fn select(only: &[String]) -> Result<Vec<Suite>> {
    if only.is_empty() {
        return Ok(SUITES.to_vec());
    }
    let mut selected = Vec::new();
    for name in only {
        match SUITES.iter().find(|suite| suite.name == name) {
            Some(suite) => selected.push(*suite),
            None => bail!("there is no suite {name}: see `cargo xtask test --list`"),
        }
    }
    Ok(selected)
}
