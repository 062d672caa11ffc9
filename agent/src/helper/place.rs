//! In which part of its container's cgroup an added process runs.
//!
//! An init like systemd's divides the cgroup while it starts; the kernel then refuses (EBUSY) a
//! process that was on its way into the whole. libcontainer tells that in words only, so what counts
//! is where a process would have to go after the failure.

/// How often a process is added at most. One that is refused by a cgroup that was divided goes to a
/// part of it next, where nothing is in its way; the others are for an init that moves once more.
const TRIES: usize = 4;

/// Adds a process to the place that `place` gives, by `add`. If that fails, and there is another
/// place by now, `again` is told, and it is added there.
pub fn add<P: PartialEq, T, E>(
    place: impl Fn() -> Result<P, E>,
    add: impl Fn(&P) -> Result<T, E>,
    again: impl Fn(),
) -> Result<T, E> {
    let mut here = place()?;
    for _ in 1..TRIES {
        let error = match add(&here) {
            Err(error) => error,
            added => return added,
        };
        match place() {
            Ok(other) if other != here => here = other,
            // Whatever a second look fails at, this came first.
            _ => return Err(error),
        }
        again();
    }
    add(&here)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Adds to the `places` in turn, of which the last stays; only `open` takes a process. What came
    /// of it, where it was tried, and how often that was told.
    fn run(places: &[u32], open: u32) -> (Result<u32, u32>, Vec<u32>, usize) {
        let (looks, again, tried) = (Cell::new(0), Cell::new(0), RefCell::new(vec![]));
        let place = || {
            let look = looks.replace(looks.get() + 1);
            Ok(places[look.min(places.len() - 1)])
        };
        let add_to = |place: &u32| {
            tried.borrow_mut().push(*place);
            if *place == open { Ok(*place) } else { Err(*place) }
        };
        let result = add(place, add_to, || again.set(again.get() + 1));
        (result, tried.into_inner(), again.get())
    }

    #[test]
    fn process_goes_where_it_must_by_then() {
        assert_eq!(run(&[1], 1), (Ok(1), vec![1], 0));
        assert_eq!(run(&[1, 2], 2), (Ok(2), vec![1, 2], 1));
        assert_eq!(run(&[1, 2, 3], 3), (Ok(3), vec![1, 2, 3], 2));
    }

    #[test]
    fn failure_that_has_nothing_to_do_with_the_place_is_not_tried_again() {
        assert_eq!(run(&[1], 9), (Err(1), vec![1], 0));
        assert_eq!(run(&[1, 2], 9), (Err(2), vec![1, 2], 1));
    }

    #[test]
    fn place_that_changes_without_end_is_given_up() {
        let places: Vec<u32> = (1..100).collect();
        assert_eq!(run(&places, 50), (Err(4), vec![1, 2, 3, 4], 3));
    }

    #[test]
    fn place_that_is_gone_at_the_second_look_leaves_the_first_failure() {
        let looks = Cell::new(0);
        let place = || if looks.replace(looks.get() + 1) == 0 { Ok(1) } else { Err("gone") };
        assert_eq!(add(place, |_| Err::<(), _>("first"), || {}), Err("first"));
    }
}
