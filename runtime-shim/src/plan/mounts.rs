//! `mounts`: what a kernel makes by itself stays in the guest; a bind mount becomes a share of
//! the host, read-only on the host's side if it is read-only at all; an overlay of host
//! directories is mounted on the host and becomes a share too.

mod id_map;
mod options;
mod overlay;

use std::path::{Path, PathBuf};

use bulkhead_protocol::limits::SHARES_MAX;
use oci_spec::runtime::Mount;

use super::disks::{self, DiskPlan};
use super::{MountPoint, MountPointKind, Notes, PlanError, SharePlan, check_path, guest_path};

pub use id_map::{IdMap, IdRange};
pub use options::MOUNT_OPTIONS;
use options::{check_options, of};
pub(super) use options::{for_the_agent, is_read_only};

/// File systems that the guest kernel makes without anything of the host.
const GUEST_TYPES: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];
/// Devices without state that every guest has as well: as the source of a bind mount they mean
/// the guest's. `/dev/null` over a file is a way to hide it.
const GUEST_DEVICES: [&str; 5] =
    ["/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"];

/// The mounts, taken apart.
#[derive(Debug, Default)]
pub(super) struct MountPlan {
    /// What the agent mounts, in the same order.
    pub guest: Vec<Mount>,
    /// What the host serves for it.
    pub binds: Vec<SharePlan>,
    /// What is mounted from disks; its part in the container is in `guest`.
    pub disks: Vec<DiskPlan>,
    /// Every destination, in the same order.
    pub mount_points: Vec<MountPoint>,
}

/// How a mount is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The guest kernel makes it.
    Guest,
    /// It binds a device of the guest.
    Device,
    /// The host serves it.
    Bind,
    /// The host mounts it and serves it.
    Overlay,
    /// The guest mounts it from a disk.
    Disk,
}

/// Plans every mount. Relative sources start at `bundle`; `may_mount` says whether the container
/// can make mounts of its own.
pub(super) fn plan(
    bundle: &Path,
    mounts: &[Mount],
    may_mount: bool,
    notes: &mut Notes,
) -> Result<MountPlan, PlanError> {
    let mut plan = MountPlan::default();
    for (i, mount) in mounts.iter().enumerate() {
        let field = format!("mounts[{i}]");
        check_destination(&field, mount.destination())?;
        let kind = kind(&field, mount)?;
        check_options(&field, mount, kind, may_mount)?;
        let shared = of(mount).any(|option| option == "shared");
        notes.dropped(shared, "mounts[].options", "the container makes no mount to share");
        let nested = mounts[..i].iter().any(|m| {
            m.destination() != mount.destination()
                && mount.destination().starts_with(m.destination())
        });
        let path = mount.destination().clone();
        let point_kind = match kind {
            Kind::Guest | Kind::Disk => MountPointKind::Directory,
            Kind::Device => MountPointKind::File,
            Kind::Bind | Kind::Overlay => MountPointKind::Bind(plan.binds.len()),
        };
        plan.mount_points.push(MountPoint { path, kind: point_kind, nested });
        match kind {
            Kind::Guest | Kind::Device => plan.guest.push(in_the_guest(mount)),
            Kind::Disk => plan.add_disk(bundle, &field, mount)?,
            Kind::Bind | Kind::Overlay => plan_share(bundle, &field, mount, kind, &mut plan)?,
        }
    }
    Ok(plan)
}

fn kind(field: &str, mount: &Mount) -> Result<Kind, PlanError> {
    let is_device = |path: &PathBuf| GUEST_DEVICES.iter().any(|device| path == Path::new(device));
    match mount.typ().as_deref() {
        _ if is_bind(mount) => match mount.source().as_ref().is_some_and(is_device) {
            true => Ok(Kind::Device),
            false => Ok(Kind::Bind),
        },
        Some("overlay") => Ok(Kind::Overlay),
        _ if disks::is_disk(mount) => Ok(Kind::Disk),
        Some(kind) if GUEST_TYPES.contains(&kind) => Ok(Kind::Guest),
        Some(kind) => Err(PlanError::refused(
            format!("{field}.type ({kind})"),
            "the guest can mount proc, sysfs, tmpfs, devpts, mqueue, cgroup, bind and overlay",
        )),
        None => Err(PlanError::invalid(field, "no type", "a file system type is wanted")),
    }
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || of(mount).any(|o| o == "bind" || o == "rbind")
}

/// The mount with a source, which the kernel asks for and the specification does not.
fn in_the_guest(mount: &Mount) -> Mount {
    let mut mount = mount.clone();
    if mount.source().is_none() {
        mount.set_source(mount.typ().as_ref().map(PathBuf::from));
    }
    mount.set_options(mount.options().as_ref().map(|_| for_the_agent(of(&mount))));
    mount
}

fn plan_share(
    bundle: &Path,
    field: &str,
    mount: &Mount,
    kind: Kind,
    plan: &mut MountPlan,
) -> Result<(), PlanError> {
    // One share is the root's.
    if plan.binds.len() + 1 >= SHARES_MAX {
        return Err(PlanError::refused("mounts", "at most 239 bind mounts can be served"));
    }
    let name = format!("v{}", plan.binds.len());
    let id_map = id_map::plan(field, mount)?;
    let (source, overlay) = match kind {
        Kind::Overlay => overlay::plan(field, mount).map(|(top, data)| (top, Some(data)))?,
        _ => (mount.source().clone().unwrap_or_default(), None),
    };
    let field = format!("{field}.source");
    check_path(&field, &source)?;
    let read_only = is_read_only(mount);
    let mut inside = mount.clone();
    inside.set_typ(Some("bind".to_owned()));
    inside.set_source(Some(guest_path(&name)));
    inside.set_uid_mappings(None);
    inside.set_gid_mappings(None);
    let kept = of(mount).filter(|o| kind == Kind::Bind || MOUNT_OPTIONS.contains(o));
    inside.set_options(mount.options().as_ref().map(|_| for_the_agent(kept)));
    plan.guest.push(inside);
    plan.binds.push(SharePlan {
        name,
        source: bundle.join(source),
        read_only,
        recursive: of(mount).any(|o| o == "rbind"),
        id_map,
        overlay,
        field,
    });
    Ok(())
}

fn check_destination(field: &str, path: &Path) -> Result<(), PlanError> {
    let field = format!("{field}.destination");
    check_path(&field, path)?;
    let plain = path.is_absolute() && !path.components().any(|c| c.as_os_str() == "..");
    match plain {
        true if path != Path::new("/") => Ok(()),
        true => Err(PlanError::refused(field, "the root is given by root.path")),
        false => Err(PlanError::invalid(
            field,
            path.display(),
            "an absolute path without `..` is wanted",
        )),
    }
}
