//! What tests wait for that lies with others.

use std::time::{Duration, Instant};

/// Longest wait; what takes longer never comes.
const LIMIT: Duration = Duration::from_secs(120);

/// Tries until there is something.
///
/// A child that another test forks meanwhile has a copy of every descriptor of this process, and
/// so of every lock, until it has become its program: what this process lets go of is not free
/// at once.
#[track_caller]
pub fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "it has not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}
