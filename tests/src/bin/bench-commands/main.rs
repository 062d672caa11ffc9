//! `bench-commands ASSETS RESULT ROUNDS`: what the commands cost that clients send to a running
//! container, in instructions of the whole host, beside runc and crun.
//!
//! Runs inside the emulated host with the instruction clock (`cargo xtask bench commands`).
//! Every runtime has one container that sleeps; runtimes take turns within one boot. Everything
//! lies in memory, and idle time does not count: what a command costs is what the host executes
//! from its start to its end, whoever executes it, the guest too.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use bulkhead_tests::bench::arguments::Arguments;
use bulkhead_tests::bench::idle::Idle;
use bulkhead_tests::bench::room::{self, Furniture};
use bulkhead_tests::bench::rows::Rows;
use bulkhead_tests::bench::watch::now;
use bulkhead_tests::{Bundle, bulkhead, unique_id};
use serde_json::json;

/// Programs of the machine that are measured or used.
const PROGRAMS: &[&str] = &["/usr/sbin/runc", "/usr/bin/crun", "/bin/busybox"];
/// Runtimes, in the order in which they take turns.
const RUNTIMES: &[&str] = &["bulkhead", "runc", "crun"];
/// What the others are compared with.
const PEER: &str = "runc";
/// Times that a command is run in a row for one sample.
const REPEATS: u32 = 5;

fn main() -> Result<()> {
    let Arguments { assets, result, rounds } = Arguments::take(std::env::args_os().skip(1))?;
    let furniture = Furniture {
        binaries: &["bulkhead", "bulkhead-vmm", "bulkhead-fsd"],
        programs: PROGRAMS,
        agent: true,
        from: &assets,
        assets: &[],
    };
    let rows = room::in_memory(&furniture, || measure(rounds))?;
    rows.print(peer);
    rows.write(&result)
}

/// The row that a row is compared with: the same command of [`PEER`].
fn peer(name: &str) -> Option<String> {
    let (runtime, command) = name.split_once('-')?;
    (runtime != PEER).then(|| format!("{PEER}-{command}"))
}

fn measure(rounds: usize) -> Result<Rows> {
    let mut bundle = Bundle::new(&["/bin/busybox", "sleep", "100000"]);
    // The newest version that Debian's crun knows.
    bundle.edit(|config| config["ociVersion"] = json!("1.0.2"));
    let containers: Vec<Container> =
        RUNTIMES.iter().map(|name| Container::start(name, &bundle)).collect::<Result<_>>()?;
    let idle = Idle::fill()?;
    let mut rows = Rows::default();
    for round in 0..=rounds {
        for (command, arguments) in [
            ("state", &["state", "ID"][..]),
            ("list", &["list"]),
            ("exec", &["exec", "ID", "/bin/busybox", "true"]),
        ] {
            for container in &containers {
                let name = format!("{}-{command}", container.runtime);
                let cost = container.cost(arguments, &idle);
                let cost = cost.with_context(|| format!("measuring {name}"))?;
                eprintln!("round {round}: {name} {cost:.2}");
                // The first round fills caches.
                if round > 0 {
                    rows.add(&name, "Minstr", cost);
                }
            }
        }
    }
    Ok(rows)
}

/// A running container of one runtime, deleted when dropped.
struct Container {
    runtime: &'static str,
    id: String,
}

impl Container {
    fn start(runtime: &'static str, bundle: &Bundle) -> Result<Self> {
        let container = Self { runtime, id: unique_id("bench") };
        let mut create = container.runtime();
        create.args(["create", "--bundle"]).arg(bundle.path()).arg(&container.id);
        succeed(&mut create)?;
        succeed(container.runtime().args(["start", &container.id]))?;
        Ok(container)
    }

    fn runtime(&self) -> Command {
        match self.runtime {
            "bulkhead" => bulkhead(),
            other => Command::new(other),
        }
    }

    /// Million instructions of one run of the command, in which `ID` stands for the container.
    fn cost(&self, arguments: &[&str], idle: &Idle) -> Result<f64> {
        let begin = (now(), idle.nanoseconds());
        for _ in 0..REPEATS {
            let mut command = self.runtime();
            let id = |argument| if argument == "ID" { self.id.as_str() } else { argument };
            succeed(command.args(arguments.iter().copied().map(id)))?;
        }
        let waited = idle.nanoseconds() - begin.1;
        let elapsed = (now() - begin.0).saturating_sub(waited);
        Ok(elapsed as f64 / 1e6 / f64::from(REPEATS))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The host ends soon; what is left of a failed container ends with it.
        let _ = succeed(self.runtime().args(["delete", "--force", &self.id]));
    }
}

/// Runs `command`, whose output nobody reads.
fn succeed(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
