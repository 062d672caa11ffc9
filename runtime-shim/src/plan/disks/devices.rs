//! Block devices of the host in `linux.devices`: each becomes a disk, and a node for it.

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{DiskPlan, DiskSource, DiskUse, OWN};
use crate::plan::{PlanError, check_path};

/// Block devices of the host become disks; rules with their numbers of the host go.
pub(super) fn plan(linux: &mut Linux, disks: &mut Vec<DiskPlan>) -> Result<(), PlanError> {
    let rules = linux.resources().as_ref().and_then(|r| r.devices().clone()).unwrap_or_default();
    let (blocks, others): (Vec<_>, Vec<_>) = linux
        .devices()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .partition(|(_, device)| device.typ() == LinuxDeviceType::B);
    if blocks.is_empty() {
        return Ok(());
    }
    for (index, device) in blocks {
        disks.push(device_disk(index, &device, &rules)?);
    }
    linux.set_devices(Some(others.into_iter().map(|(_, device)| device).collect()));
    if let Some(mut resources) = linux.resources().clone() {
        let of_the_host = |rule: &LinuxDeviceCgroup| {
            rule.typ() == Some(LinuxDeviceType::B) && rule.major().is_some_and(|major| major >= 0)
        };
        let rest = rules.into_iter().filter(|rule| !of_the_host(rule)).collect();
        resources.set_devices(Some(rest));
        linux.set_resources(Some(resources));
    }
    Ok(())
}

fn device_disk(
    index: usize,
    device: &LinuxDevice,
    rules: &[LinuxDeviceCgroup],
) -> Result<DiskPlan, PlanError> {
    let field = format!("linux.devices[{index}] ({})", device.path().display());
    check_path(&field, device.path())?;
    if !device.path().is_absolute() {
        let path = device.path().display();
        return Err(PlanError::invalid(field, path, "an absolute path is wanted"));
    }
    let number = |n: i64| {
        u32::try_from(n).map_err(|_| PlanError::invalid(&field, n, "a device number is wanted"))
    };
    let access: String = "rwm"
        .chars()
        .filter(|letter| allowed(rules, device.major(), device.minor(), *letter))
        .collect();
    Ok(DiskPlan {
        serial: format!("{OWN}device-{index}"),
        source: DiskSource::Number {
            path: device.path().clone(),
            major: number(device.major())?,
            minor: number(device.minor())?,
        },
        read_only: !access.contains('w'),
        queues: None,
        rate: None,
        field,
        usage: DiskUse::Node {
            path: device.path().clone(),
            mode: device.file_mode().unwrap_or(0) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            access,
        },
    })
}

/// Whether the cgroup rules of the host's kernel would allow the access: the last rule about it
/// decides, and without one it is denied.
fn allowed(rules: &[LinuxDeviceCgroup], major: i64, minor: i64, letter: char) -> bool {
    let covers = |wanted: Option<i64>, number: i64| {
        wanted.is_none_or(|wanted| wanted == -1 || wanted == number)
    };
    let about = |rule: &&LinuxDeviceCgroup| {
        matches!(rule.typ(), None | Some(LinuxDeviceType::A | LinuxDeviceType::B))
            && covers(rule.major(), major)
            && covers(rule.minor(), minor)
            && rule.access().as_deref().unwrap_or("rwm").contains(letter)
    };
    rules.iter().rev().find(about).is_some_and(LinuxDeviceCgroup::allow)
}
