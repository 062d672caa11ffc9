//! Which variations are run: all of them, or as many as every run of the suites has time for.

use std::collections::BTreeSet;
use std::env;

use crate::areas;
use crate::case::Case;
use crate::explained::EXPLANATIONS;

/// With this variable every variation is run.
const FULL: &str = "BULKHEAD_DIFFERENTIAL_FULL";
/// Only variations whose `area: name` contains this text, for work on one of them.
const ONLY: &str = "BULKHEAD_DIFFERENTIAL_ONLY";
/// One of so many is run without that, and all that are explained: those are what a change of the
/// guest makes untrue.
const QUICK_OF: usize = 10;
/// As many there must be: fewer would not cover what the specification has.
const VARIATIONS_MIN: usize = 500;

/// The variations to run.
pub fn chosen() -> Vec<Case> {
    let all = areas::all();
    assert_table(&all);
    if let Ok(only) = env::var(ONLY) {
        let named = |case: &Case| format!("{}: {}", case.area, case.name).contains(&only);
        return all.into_iter().filter(named).collect();
    }
    match env::var_os(FULL) {
        Some(_) => all,
        None => quick(all),
    }
}

/// A part of every area.
pub fn quick(all: Vec<Case>) -> Vec<Case> {
    let kept = |(number, case): &(usize, Case)| {
        number.is_multiple_of(QUICK_OF) || case.explained.is_some()
    };
    all.into_iter().enumerate().filter(kept).map(|(_, case)| case).collect()
}

/// Names are there once, so are explanations, and each is used.
fn assert_table(cases: &[Case]) {
    assert!(cases.len() >= VARIATIONS_MIN, "{} variations", cases.len());
    let mut names = BTreeSet::new();
    for case in cases {
        assert!(names.insert((case.area, &case.name)), "{}: {} twice", case.area, case.name);
    }
    let used: BTreeSet<_> =
        cases.iter().filter_map(|case| Some(case.explained.as_ref()?.id)).collect();
    let there: BTreeSet<_> = EXPLANATIONS.iter().map(|(id, _)| *id).collect();
    assert_eq!(used, there, "explanations that are used, and that there are");
}
