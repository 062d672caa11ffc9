//! `process`: applied by the agent as it is, once it is known that the kernel can take it.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use oci_spec::runtime::{Capability, LinuxCapabilities, Process};

use super::{Notes, PlanError};

/// Largest terminal that the kernel can hold in a `winsize`.
const CONSOLE_MAX: u64 = u16::MAX as u64;

/// What the kernel takes as `oom_score_adj`.
const OOM_SCORES: RangeInclusive<i32> = -1000..=1000;

/// Checks a process, of a container or of `exec`.
pub(super) fn check_process(process: &Process) -> Result<(), PlanError> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() || args[0].is_empty() {
        return Err(PlanError::Missing("process.args"));
    }
    for (i, arg) in args.iter().enumerate() {
        check_text(|| format!("process.args[{i}]"), arg)?;
    }
    check_environment("process.env", process.env().as_deref().unwrap_or_default())?;
    check_cwd(process.cwd())?;
    if let Some(capabilities) = process.capabilities() {
        check_capabilities(capabilities)?;
    }
    if let Some(umask) = process.user().umask().filter(|umask| *umask > 0o777) {
        let reason = "permission bits up to 511 (0777) are wanted";
        return Err(PlanError::invalid("process.user.umask", umask, reason));
    }
    if let Some(score) = process.oom_score_adj().filter(|score| !OOM_SCORES.contains(score)) {
        let reason = "-1000 to 1000 is wanted";
        return Err(PlanError::invalid("process.oomScoreAdj", score, reason));
    }
    if process.command_line().is_some() {
        return Err(PlanError::refused("process.commandLine", "a field of Windows"));
    }
    if process.exec_cpu_affinity().is_some() {
        return Err(PlanError::refused(
            "process.execCPUAffinity",
            "CPUs of the host are not those of the guest",
        ));
    }
    Ok(())
}

/// What is effective must be permitted (capabilities(7)): the kernel would say so once the container
/// is started, and not for which capability.
fn check_capabilities(sets: &LinuxCapabilities) -> Result<(), PlanError> {
    let permitted = sets.permitted().as_ref();
    let effective = sets.effective().iter().flatten();
    let missing = effective.filter(|one| permitted.is_none_or(|all| !all.contains(one)));
    match missing.map(ToString::to_string).min() {
        None => Ok(()),
        Some(name) => {
            let (field, value) = ("process.capabilities.effective", format!("CAP_{name}"));
            Err(PlanError::invalid(field, value, "it must be in permitted as well"))
        }
    }
}

/// Checks the environment in `field`.
pub(super) fn check_environment(field: &str, variables: &[String]) -> Result<(), PlanError> {
    for (i, var) in variables.iter().enumerate() {
        check_text(|| format!("{field}[{i}]"), var)?;
        if !var.contains('=') || var.starts_with('=') {
            let field = format!("{field}[{i}]");
            return Err(PlanError::invalid(field, var, "NAME=value is wanted"));
        }
    }
    Ok(())
}

pub(super) fn check_text(field: impl Fn() -> String, text: &str) -> Result<(), PlanError> {
    match text.contains('\0') {
        true => Err(PlanError::invalid(field(), text, "no NUL byte can be passed")),
        false => Ok(()),
    }
}

fn check_cwd(cwd: &Path) -> Result<(), PlanError> {
    super::check_path("process.cwd", cwd)?;
    match cwd.is_absolute() {
        true => Ok(()),
        false => {
            Err(PlanError::invalid("process.cwd", cwd.display(), "an absolute path is wanted"))
        }
    }
}

/// Plans a process that is added to a container, as that of a container is planned. What is
/// dropped from it was told when the container was created.
pub fn plan_process(mut process: Process) -> Result<Process, PlanError> {
    check_process(&process)?;
    terminal(&process)?;
    drop_meaningless(&mut process, &mut Notes::default());
    Ok(process)
}

/// Whether the process, or one that it starts, could mount something.
pub(super) fn may_mount(process: &Process) -> bool {
    let Some(capabilities) = process.capabilities() else { return true };
    let sets = [capabilities.bounding(), capabilities.permitted(), capabilities.effective()];
    sets.into_iter().flatten().any(|set| set.contains(&Capability::SysAdmin))
}

/// Takes out what the guest kernel has no notion of, and groups that are named before: the kernel
/// would keep both, and runc gives each once.
pub(super) fn drop_meaningless(process: &mut Process, notes: &mut Notes) {
    let filled = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    notes.dropped(
        filled(process.apparmor_profile()),
        "process.apparmorProfile",
        "the guest kernel has no AppArmor; the microVM is the wall",
    );
    process.set_apparmor_profile(None);
    notes.dropped(
        filled(process.selinux_label()),
        "process.selinuxLabel",
        "the guest kernel has no SELinux; the microVM is the wall",
    );
    process.set_selinux_label(None);
    let username = filled(process.user().username());
    notes.dropped(username, "process.user.username", "a field of Windows");
    process.user_mut().set_username(None);
    if let Some(groups) = process.user_mut().additional_gids_mut() {
        let mut seen = BTreeSet::new();
        groups.retain(|group| seen.insert(*group));
    }
}

/// Whether there is a terminal, and its rows and columns.
pub(super) fn terminal(process: &Process) -> Result<(bool, Option<(u32, u32)>), PlanError> {
    let terminal = process.terminal().unwrap_or(false);
    let Some(size) = process.console_size().filter(|_| terminal) else {
        return Ok((terminal, None));
    };
    let (rows, columns) = (size.height(), size.width());
    if rows > CONSOLE_MAX || columns > CONSOLE_MAX {
        let value = format!("{columns}x{rows}");
        return Err(PlanError::invalid("process.consoleSize", value, "at most 65535 each"));
    }
    let known = rows > 0 && columns > 0;
    Ok((terminal, known.then_some((rows as u32, columns as u32))))
}
