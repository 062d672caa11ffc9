//! `bench-boot ASSETS RESULT ROUNDS`: what it costs to start a container, a bare virtual machine
//! and a container of other runtimes, in instructions.
//!
//! Runs inside the emulated host with the instruction clock (`cargo xtask bench boot`), where a
//! nanosecond of `CLOCK_MONOTONIC` is an instruction. Waiting for a device moves that clock, so
//! everything that is measured, and every file that it opens, lies in memory. Peers take turns
//! within one boot.

mod guests;
mod monitor;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use bulkhead_tests::bench::arguments::Arguments;
use bulkhead_tests::bench::room::{self, Furniture};
use bulkhead_tests::bench::rows::Rows;
use bulkhead_tests::bench::watch::{first_output, to_the_end};
use bulkhead_tests::memory::{Cost, cost};
use bulkhead_tests::{Bundle, bulkhead, unique_id};
use serde_json::json;

/// The guest of a few instructions, in the room.
const TINY: &str = "/bench/tiny";
/// Bare initial RAM file system, in the room.
const INITRD: &str = "/bench/init.img";
/// Programs of the machine that are measured or used.
const PROGRAMS: &[&str] =
    &["/usr/bin/qemu-system-x86_64", "/usr/sbin/runc", "/usr/bin/crun", "/bin/busybox"];
/// What every container and guest prints.
const WORD: &str = "bench";

fn main() -> Result<()> {
    let Arguments { assets, result, rounds } = Arguments::take(std::env::args_os().skip(1))?;
    let furniture = Furniture {
        binaries: &["bulkhead", "bulkhead-vmm", "bulkhead-fsd"],
        programs: PROGRAMS,
        agent: true,
        from: &assets,
        assets: &["tiny", "init.img"],
    };
    let rows = room::in_memory(&furniture, || measure(rounds))?;
    rows.print(peer);
    rows.write(&result)
}

/// Guest memory of every machine.
const MEMORY_MIB: u32 = 128;

/// The row that a row is compared with.
fn peer(name: &str) -> Option<String> {
    Some(if name == "vmm-tiny" { "qemu-microvm-tiny" } else { "qemu-microvm-boot" }.to_owned())
}

/// A named measurement: one run, in instructions.
type Contender<'a> = (&'static str, Box<dyn Fn() -> Result<u64> + 'a>);

fn measure(rounds: usize) -> Result<Rows> {
    let mut bundle = Bundle::new(&["/bin/busybox", "echo", WORD]);
    bundle.edit(|config| {
        // The newest version that Debian's crun knows.
        config["ociVersion"] = json!("1.0.2");
        // As much as the peers' machines have.
        config["annotations"] = json!({"io.bulkhead.memory-mib": MEMORY_MIB.to_string()});
    });
    let bundle = bundle;
    let contenders: Vec<Contender<'_>> = vec![
        ("vmm-tiny", Box::new(|| monitor::tiny(Path::new(TINY)))),
        ("qemu-microvm-tiny", Box::new(|| first_output(&mut guests::qemu_tiny(), WORD))),
        ("bulkhead-run", Box::new(|| container(bulkhead(), &bundle))),
        ("qemu-microvm-boot", Box::new(|| first_output(&mut guests::qemu_kernel(), WORD))),
        ("runc-run", Box::new(|| container(Command::new("runc"), &bundle))),
        ("crun-run", Box::new(|| container(Command::new("crun"), &bundle))),
    ];
    let mut rows = Rows::default();
    for round in 0..=rounds {
        for (name, run) in &contenders {
            let instructions = run().with_context(|| format!("measuring {name}"))?;
            eprintln!("round {round}: {name} {:.1}", millions(instructions));
            // The first round fills caches.
            if round > 0 {
                rows.add(name, "Minstr", millions(instructions));
            }
        }
    }
    for _ in 0..rounds {
        let cost = memory()?;
        rows.add("bulkhead-private-kib", "KiB", cost.monitor_kib as f64);
        rows.add("sandbox-private-kib", "KiB", cost.sandbox_kib as f64);
    }
    Ok(rows)
}

fn millions(instructions: u64) -> f64 {
    instructions as f64 / 1e6
}

/// `run` of a bundle until its first output; it is let run to its end.
fn container(mut runtime: Command, bundle: &Bundle) -> Result<u64> {
    runtime.args(["run", "--bundle"]).arg(bundle.path()).arg(unique_id("bench"));
    to_the_end(&mut runtime, WORD)
}

/// Private memory of a sandbox whose container sleeps.
fn memory() -> Result<Cost> {
    let bundle = Bundle::new(&["/bin/busybox", "sleep", "1000"]);
    let id = unique_id("bench");
    let mut create = bulkhead();
    // Nobody reads its streams: the supervisor keeps them for as long as it lives.
    create.args(["create", "--bundle"]).arg(bundle.path()).arg(&id);
    succeed(create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()))?;
    succeed(bulkhead().args(["start", &id]))?;
    let cost = cost(&id);
    succeed(bulkhead().args(["delete", "--force", &id]))?;
    cost
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
