//! `bench-device SUITE ASSETS RESULT ROUNDS`: what network, disk and shares cost beside QEMU's
//! microvm machine: in instructions (`cargo xtask bench net`, `block`), in time (`bench fs`).
//!
//! Runs inside the emulated host; for instructions with the instruction clock, of which a
//! nanosecond is an instruction. Both monitors boot the same guest kernel with the same first
//! process (`bench-guest`), which does the work and tells its cost; only the device differs.
//! Everything lies in memory.

mod block;
mod fs;
mod machines;
mod marks;
mod net;

use std::path::Path;

use anyhow::{Context, Result, bail};
use bulkhead_tests::bench::arguments::Arguments;
use bulkhead_tests::bench::idle::Idle;
use bulkhead_tests::bench::room::{self, Furniture};
use bulkhead_tests::bench::rows::Rows;

use marks::Case;

/// Runs the guest once and gives what each case cost.
type Run = fn(&Idle) -> Result<Vec<Case>>;

/// What one command measures.
struct Suite {
    /// Initial RAM file system of the guest, in the room and among the assets.
    initrd: &'static str,
    /// Programs of the machine that it needs.
    programs: &'static [&'static str],
    /// Units by case.
    units: &'static [(&'static str, &'static str)],
    bulkhead: Run,
    qemu: Run,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let suite = arguments.next().context("argument SUITE is missing")?;
    let suite = match suite.to_string_lossy().as_ref() {
        "net" => &net::SUITE,
        "block" => &block::SUITE,
        "fs" => &fs::SUITE,
        other => bail!("there is no suite {other}"),
    };
    let Arguments { assets, result, rounds } = Arguments::take(arguments)?;
    measure_in_memory(suite, &assets, rounds, &result)
}

fn measure_in_memory(suite: &Suite, assets: &Path, rounds: usize, result: &Path) -> Result<()> {
    let furniture = Furniture {
        binaries: &["bulkhead-vmm", "bulkhead-fsd"],
        programs: suite.programs,
        agent: false,
        from: assets,
        assets: &[suite.initrd],
    };
    let rows = room::in_memory(&furniture, || measure(suite, rounds))?;
    rows.print(|name| name.strip_prefix("bulkhead-").map(|case| format!("qemu-{case}")));
    rows.write(result)
}

fn measure(suite: &Suite, rounds: usize) -> Result<Rows> {
    let idle = Idle::fill()?;
    let mut rows = Rows::default();
    for round in 0..=rounds {
        for (monitor, run) in [("bulkhead", suite.bulkhead), ("qemu", suite.qemu)] {
            for case in run(&idle).with_context(|| format!("measuring {monitor}"))? {
                let unit = suite.units.iter().find(|(name, _)| *name == case.name);
                let (_, unit) = unit.with_context(|| format!("no case {}", case.name))?;
                let cost = case.busy as f64 / case.count as f64;
                eprintln!(
                    "round {round}: {monitor}-{} {cost:.0} {unit}, {:.0} M ({}), idle {:.0} M",
                    case.name,
                    case.busy as f64 / 1e6,
                    case.processor,
                    case.idle as f64 / 1e6,
                );
                // The first round fills caches.
                if round > 0 {
                    rows.add(&format!("{monitor}-{}", case.name), unit, cost);
                }
            }
        }
    }
    Ok(rows)
}
