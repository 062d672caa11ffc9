//! The differences between a share and the host's file system that `docs/volumes.md` explains:
//! each that is found must stand there, and each that stands there must be found.

use std::collections::{BTreeMap, BTreeSet};

const TEXT: &str = include_str!("../../../docs/volumes.md");
/// The section with the table: program, tests, reason.
const SECTION: &str = "## Differences";

/// Names of tests of `program` whose difference is explained.
fn explained(program: &str) -> BTreeSet<&'static str> {
    let section = TEXT.split_once(SECTION).expect("docs/volumes.md has its section").1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let mut names = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").collect();
        let [of, tests, reason] = cells[..] else { panic!("not three cells: {row}") };
        if of.trim().trim_matches('`') == program {
            assert!(reason.len() > 20, "no reason: {row}");
            let tests = tests.split(',').map(|test| test.trim().trim_matches('`'));
            tests.for_each(|test| assert!(names.insert(test), "{test} stands there twice"));
        }
    }
    names
}

/// Fails unless exactly the explained tests end otherwise in the guest than on the host.
pub fn assert_explained(
    program: &str,
    host: &BTreeMap<String, String>,
    guest: &BTreeMap<String, String>,
) {
    let missing = String::from("(not run)");
    let names: BTreeSet<&String> = host.keys().chain(guest.keys()).collect();
    let pairs = names.into_iter().map(|name| {
        (name, host.get(name).unwrap_or(&missing), guest.get(name).unwrap_or(&missing))
    });
    let differ: Vec<_> = pairs.filter(|(_, host, guest)| host != guest).collect();
    let explained = explained(program);
    let unexplained: Vec<String> = differ
        .iter()
        .filter(|(name, ..)| !explained.contains(name.as_str()))
        .map(|(name, host, guest)| format!("{name}: host: {host}; guest: {guest}"))
        .collect();
    let stale: Vec<_> = explained
        .iter()
        .filter(|name| !differ.iter().any(|(found, ..)| found.as_str() == **name))
        .collect();
    assert!(
        unexplained.is_empty() && stale.is_empty(),
        "{program}: docs/volumes.md, {SECTION:?}, must tell exactly what differs\n\
         not explained:\n{}\nexplained, but no difference: {stale:?}",
        unexplained.join("\n")
    );
    println!("{program}: {} the same, {} explained", host.len() - differ.len(), differ.len());
}
