//! Runs every variation under both runtimes, collects what differs, and prints the sum.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_tests::{Bundle, Created, Leftovers, Outcome, bulkhead, unique_id};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::{Value, json};

use crate::case::{Case, Expect, Peer};
use crate::choice;
use crate::difference::Difference;
use crate::side::Side;
use crate::watch::watch;

/// Version of the specification that every peer knows.
const VERSION: &str = "1.0.2";
/// Open files that the callers of the runtimes may have.
const CALLERS_FILES: u64 = 4096;
/// MiB of the microVM that most variations share.
const SANDBOX_MIB: &str = "384";

/// What came of the variations.
#[derive(Default)]
struct Sum {
    passed: usize,
    explained: usize,
    failed: usize,
    /// Of the peers, and of bulkhead.
    took: [Duration; 2],
}

/// The sides, and the microVM that the variations of ours use.
struct Arena {
    ours: Side,
    runc: Side,
    crun: Side,
    sandbox: Created,
}

impl Arena {
    fn new() -> Self {
        // What runc hands on when nothing is set; a caller may well have what a guest has.
        let limit = Rlimit { current: Some(CALLERS_FILES), maximum: Some(CALLERS_FILES) };
        setrlimit(Resource::Nofile, limit).expect("RLIMIT_NOFILE");
        let mut bundle = Bundle::script("while :; do sleep 1; done");
        let text = fs::read(bundle.path().join("config.json")).expect("config.json");
        let mut base: Value = serde_json::from_slice(&text).expect("JSON");
        base["ociVersion"] = json!(VERSION);
        bundle.edit(|config| {
            config["annotations"] = json!({"io.bulkhead.memory-mib": SANDBOX_MIB});
        });
        let sandbox = Created::new(unique_id("differential"), bundle);
        sandbox.start();
        Self {
            ours: Side::new(bulkhead, base.clone()),
            runc: Side::new(|| Command::new("runc"), base.clone()),
            crun: Side::new(|| Command::new("crun"), base),
            sandbox,
        }
    }

    fn run(&self, case: &Case, sum: &mut Sum) {
        let peer = match case.peer {
            Peer::Runc => &self.runc,
            Peer::Crun => &self.crun,
        };
        let [theirs, ours] = [0, 1].map(|index| {
            let begun = Instant::now();
            let outcome = [peer, &self.ours][index].outcome(case, &self.sandbox.id);
            sum.took[index] += begun.elapsed();
            outcome
        });
        let difference = Difference::between(&ours, &theirs);
        match verdict(case, &ours, &theirs, &difference) {
            Ok(()) if case.explained.is_some() => sum.explained += 1,
            Ok(()) => sum.passed += 1,
            Err(problem) => {
                let difference = difference.described(&ours, &theirs);
                let Case { area, name, .. } = case;
                say(&format!("\n{area}: {name}: {problem}\n{difference}\n"));
                sum.failed += 1;
            }
        }
    }

    fn end(self) {
        [&self.ours, &self.runc, &self.crun].into_iter().for_each(Side::end);
        self.sandbox.delete().expect(0);
    }
}

fn verdict(
    case: &Case,
    ours: &Outcome,
    theirs: &Outcome,
    difference: &Difference,
) -> Result<(), &'static str> {
    let same = (ours.code, &ours.stdout) == (theirs.code, &theirs.stdout);
    let refused = theirs.code != 0 && theirs.stdout.is_empty();
    match (&case.expect, &case.explained) {
        (Expect::Refuses(_), _) if !refused => Err("the peer does not refuse"),
        (Expect::Refuses(says), _) if !ours.stderr.contains(says) => {
            Err("bulkhead does not say why")
        }
        (Expect::Runs, _) if theirs.stdout.is_empty() => Err("the peer runs nothing"),
        (Expect::Runs, _) if is_broken(theirs) => Err("the variation asks in a way that fails"),
        (_, None) if !same => Err("differs"),
        (_, Some(_)) if same => Err("is explained, but does not differ"),
        (_, Some(explained)) if !difference.is(explained) => {
            Err("differs in other ways than is explained")
        }
        _ => Ok(()),
    }
}

/// Whether the script is wrong, so that both print the same complaint.
fn is_broken(outcome: &Outcome) -> bool {
    let text = outcome.text();
    ["not found", "syntax error", "Usage: ", "invalid option", "unrecognized option"]
        .iter()
        .any(|complaint| text.contains(complaint))
}

#[test]
fn variations_look_the_same() {
    let before = Leftovers::now();
    let cases = choice::chosen();
    let (begins, names) = mpsc::channel();
    let watcher = thread::spawn(move || watch(&names));
    let arena = Arena::new();
    let mut sum = Sum::default();
    for area in cases.chunk_by(|one, other| one.area == other.area) {
        for case in area {
            begins.send(format!("{}: {}", case.area, case.name)).expect("the watcher listens");
            arena.run(case, &mut sum);
        }
        let [theirs, ours] = sum.took.map(|took| took.as_secs());
        let (name, count) = (area[0].area, area.len());
        say(&format!("{name}: {count} variations; {theirs} s of peers, {ours} s of bulkhead\n"));
    }
    arena.end();
    drop(begins);
    watcher.join().expect("the watcher ends");
    report(&sum);
    before.assert_none();
    assert_eq!(sum.failed, 0, "variations failed");
}

fn report(sum: &Sum) {
    let Sum { passed, failed, explained, .. } = sum;
    say(&format!("\ndifferential: {passed} passed, {failed} failed, {explained} explained\n"));
}

/// The test harness keeps what `println!` prints of tests that pass; this must be seen.
pub fn say(text: &str) {
    std::io::stdout().write_all(text.as_bytes()).expect("standard output");
}
