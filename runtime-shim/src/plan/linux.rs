//! What of `linux` is neither a resource, a namespace nor a device: dropped, refused or the guest's
//! (runtime-spec, config-linux.md).

use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::{Linux, LinuxSeccomp, LinuxSeccompAction};

use super::{Notes, PlanError};

/// What is left of `linux` once resources, namespaces and devices are planned.
pub(super) fn plan(
    linux: &mut Linux,
    id: &ContainerId,
    notes: &mut Notes,
) -> Result<(), PlanError> {
    refuse_linux(linux)?;
    // The host's is made by the supervisor; the guest has its own.
    // Absolute: libcontainer asks for that where no systemd is.
    linux.set_cgroups_path(Some(PathBuf::from(format!("/bulkhead/{id}"))));
    let labelled = linux.mount_label().as_ref().is_some_and(|l| !l.is_empty());
    notes.dropped(labelled, "linux.mountLabel", "the guest kernel has no SELinux");
    linux.set_mount_label(None);
    if linux.rootfs_propagation().is_some() {
        check_root_propagation(linux.rootfs_propagation().as_deref())?;
        notes.note("linux.rootfsPropagation", "no mount of the host can reach the guest");
        linux.set_rootfs_propagation(None);
    }
    Ok(())
}

fn check_root_propagation(value: Option<&str>) -> Result<(), PlanError> {
    match value {
        None | Some("" | "private" | "rprivate" | "slave" | "rslave") => Ok(()),
        Some("unbindable" | "runbindable") => Ok(()),
        Some("shared" | "rshared") => Err(PlanError::refused(
            "linux.rootfsPropagation",
            "mounts of the guest cannot appear on the host",
        )),
        Some(other) => Err(PlanError::invalid(
            "linux.rootfsPropagation",
            other,
            "a mount propagation type is wanted",
        )),
    }
}

fn refuse_linux(linux: &Linux) -> Result<(), PlanError> {
    let refused = |there: bool, field: &str, reason| match there {
        true => Err(PlanError::refused(field, reason)),
        false => Ok(()),
    };
    let mapped = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let user = "user namespaces are not made by this version; the microVM separates users";
    refused(mapped(linux.uid_mappings()), "linux.uidMappings", user)?;
    refused(mapped(linux.gid_mappings()), "linux.gidMappings", user)?;
    refused(linux.intel_rdt().is_some(), "linux.intelRdt", "the guest has no resctrl")?;
    refused(
        linux.memory_policy().is_some(),
        "linux.memoryPolicy",
        "the guest has one memory node",
    )?;
    refused(
        linux.net_devices().as_ref().is_some_and(|m| !m.is_empty()),
        "linux.netDevices",
        "devices of the host cannot be moved into the guest",
    )?;
    refused(
        linux.time_offsets().as_ref().is_some_and(|m| !m.is_empty()),
        "linux.timeOffsets",
        "the guest kernel has no time namespaces",
    )?;
    let flags = linux.personality().as_ref().and_then(|p| p.flags().as_ref());
    refused(
        flags.is_some_and(|list| !list.is_empty()),
        "linux.personality.flags",
        "no flag is defined by the specification",
    )?;
    linux.seccomp().as_ref().map_or(Ok(()), refuse_listener)
}

/// A listener is a process of the host, which gets a descriptor of the container's kernel.
fn refuse_listener(seccomp: &LinuxSeccomp) -> Result<(), PlanError> {
    let reason = "a descriptor of the guest cannot be sent to the host";
    if seccomp.listener_path().is_some() {
        return Err(PlanError::refused("linux.seccomp.listenerPath", reason));
    }
    if seccomp.listener_metadata().as_ref().is_some_and(|text| !text.is_empty()) {
        return Err(PlanError::refused("linux.seccomp.listenerMetadata", "no listener is told"));
    }
    let notify = |action| action == LinuxSeccompAction::ScmpActNotify;
    if notify(seccomp.default_action()) {
        let field = "linux.seccomp.defaultAction (SCMP_ACT_NOTIFY)";
        return Err(PlanError::refused(field, reason));
    }
    let mut rules = seccomp.syscalls().iter().flatten();
    match rules.position(|rule| notify(rule.action())) {
        Some(i) => {
            let field = format!("linux.seccomp.syscalls[{i}].action (SCMP_ACT_NOTIFY)");
            Err(PlanError::refused(field, reason))
        }
        None => Ok(()),
    }
}
