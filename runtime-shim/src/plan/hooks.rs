//! `hooks`: checked for what execve(2) can take; each runs on the host, but startContainer, which
//! the agent runs in the container.

use std::time::Duration;

use oci_spec::runtime::{Hook as RawHook, Hooks as RawHooks};

use super::PlanError;
use super::process::check_environment;
use crate::hooks::{Hook, Hooks, Moment};

/// Checks the hooks of a specification.
pub(super) fn plan(hooks: Option<&RawHooks>) -> Result<Hooks, PlanError> {
    let Some(hooks) = hooks else { return Ok(Hooks::default()) };
    // The accessor of a deprecated field is the only way to see what is in it.
    #[allow(deprecated)]
    let prestart = hooks.prestart().as_deref();
    Ok(Hooks {
        prestart: list(Moment::Prestart, prestart)?,
        create_runtime: list(Moment::CreateRuntime, hooks.create_runtime().as_deref())?,
        create_container: list(Moment::CreateContainer, hooks.create_container().as_deref())?,
        poststart: list(Moment::Poststart, hooks.poststart().as_deref())?,
        poststop: list(Moment::Poststop, hooks.poststop().as_deref())?,
    })
}

/// What the guest gets: the hooks that run in the container, checked as the others.
pub(super) fn of_guest(hooks: Option<&RawHooks>) -> Result<Option<RawHooks>, PlanError> {
    let list = hooks.and_then(|hooks| hooks.start_container().clone()).unwrap_or_default();
    if list.is_empty() {
        return Ok(None);
    }
    for (at, hook) in list.iter().enumerate() {
        self::hook(&format!("hooks.startContainer[{at}]"), hook)?;
    }
    let mut kept = RawHooks::default();
    kept.set_start_container(Some(list));
    Ok(Some(kept))
}

fn list(moment: Moment, hooks: Option<&[RawHook]>) -> Result<Vec<Hook>, PlanError> {
    let hooks = hooks.unwrap_or_default().iter().enumerate();
    hooks.map(|(at, hook)| self::hook(&format!("hooks.{moment}[{at}]"), hook)).collect()
}

fn hook(field: &str, hook: &RawHook) -> Result<Hook, PlanError> {
    let path = hook.path();
    super::check_path(&format!("{field}.path"), path)?;
    if !path.is_absolute() {
        let field = format!("{field}.path");
        return Err(PlanError::invalid(field, path.display(), "an absolute path is wanted"));
    }
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds) => Some(u64::try_from(seconds).ok().filter(|s| *s > 0).ok_or_else(|| {
            let reason = "a number of seconds above 0 is wanted";
            PlanError::invalid(format!("{field}.timeout"), seconds, reason)
        })?),
    };
    let args = hook.args().clone().filter(|args| !args.is_empty());
    let args = args.unwrap_or_else(|| vec![path.display().to_string()]);
    for (i, arg) in args.iter().enumerate() {
        super::process::check_text(|| format!("{field}.args[{i}]"), arg)?;
    }
    let env = hook.env().clone().unwrap_or_default();
    check_environment(&format!("{field}.env"), &env)?;
    Ok(Hook { path: path.clone(), args, env, timeout: timeout.map(Duration::from_secs) })
}
