//! What the guest says on its console: where each case begins and ends, and what it cost.

use std::io::{BufRead, BufReader, Read};

use anyhow::{Context, Result, bail};
use bulkhead_tests::bench::idle::Idle;
use bulkhead_tests::bench::processor::Processor;

/// What a line of the guest begins with, behind the time that its kernel puts there.
const PREFIX: &str = "bench: ";
/// Lines kept for the error of a guest that ends early.
const LINES_KEPT: usize = 40;

/// A measured case.
pub struct Case {
    /// Name.
    pub name: String,
    /// Nanoseconds of the whole host, without idle ones.
    pub busy: u64,
    /// Nanoseconds for which the host waited.
    pub idle: u64,
    /// Where they were spent.
    pub processor: Processor,
    /// Operations, requests or MiB.
    pub count: u64,
}

/// Follows the guest to its end.
pub fn follow(console: impl Read, idle: &Idle) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut began = (idle.nanoseconds(), Processor::now()?);
    let mut kept = Vec::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = line.context("cannot read the console")?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let Some((_, said)) = line.split_once(PREFIX) else {
            kept.push(line);
            let surplus = kept.len().saturating_sub(LINES_KEPT);
            kept.drain(..surplus);
            continue;
        };
        let words: Vec<&str> = said.split_whitespace().collect();
        match words[..] {
            ["begin", _] => began = (idle.nanoseconds(), Processor::now()?),
            ["end", name, elapsed, count] => {
                let idle = idle.nanoseconds() - began.0;
                let processor = Processor::now()?.since(began.1);
                let elapsed: u64 = elapsed.parse().context("the cost is a number")?;
                let busy = elapsed.saturating_sub(idle);
                let count = count.parse().context("the count is a number")?;
                let name = name.to_owned();
                cases.push(Case { name, busy, idle, processor, count });
            }
            ["done"] => return Ok(cases),
            _ => bail!("the guest says {said:?}"),
        }
    }
    bail!("the guest ended early:\n{}", kept.join("\n"))
}
