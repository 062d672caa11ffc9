//! The hooks behind the end of a container, each run at most once: a hook is crossed off before
//! it runs, so that a deletion which is killed half-way is continued by the next, not repeated.

use super::{Container, Hook, HookError, Moment, Runner};

/// Runs `hooks` in order, after `cross_off` has recorded how many are left behind each. A failure
/// stops neither the others nor the deletion (`runtime.md`, "Lifecycle", step 13): each is told
/// on standard error.
pub fn run_poststop<E>(
    runner: Option<&Runner>,
    hooks: &[Hook],
    container: &Container<'_>,
    mut cross_off: impl FnMut(&[Hook]) -> Result<(), E>,
) -> Result<(), E> {
    for (at, hook) in hooks.iter().enumerate() {
        cross_off(&hooks[at + 1..])?;
        if let Err(error) = run(runner, at, hook, container) {
            eprintln!("bulkhead: warning: {}", crate::failure::Failure::from(error));
        }
    }
    Ok(())
}

fn run(
    runner: Option<&Runner>,
    at: usize,
    hook: &Hook,
    container: &Container<'_>,
) -> Result<(), HookError> {
    match runner {
        Some(runner) => runner.run(Moment::Poststop, at, hook, container, None),
        None => Runner::open()?.run(Moment::Poststop, at, hook, container, None),
    }
}
