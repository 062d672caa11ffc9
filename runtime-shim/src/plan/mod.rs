//! From an OCI runtime configuration to a [`SandboxPlan`]: what the microVM is, what it is
//! given, and what the agent is told. Pure data and pure functions; the specification is
//! hostile and nothing downstream checks it again.
//!
//! Each field of the specification is one of four: applied in the guest (it stays in
//! [`SandboxPlan::guest_spec`]), applied on the host (it becomes a share, memory, vCPUs),
//! without meaning for a container alone in a virtual machine (dropped, with a [`Note`]), or
//! refused by name with the reason. A field is never ignored silently.

#![forbid(unsafe_code)]

mod annotations;
mod devices;
mod disks;
#[cfg(test)]
mod document;
mod error;
#[cfg(test)]
mod fields;
mod hooks;
mod linux;
mod membership;
mod mounts;
mod namespaces;
mod net_limits;
mod policy;
mod process;
mod rates;
mod resources;
mod root_image;
#[cfg(test)]
mod tests;
mod tuned;
mod unit_properties;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_protocol::guest::{ROOT_SHARE, SHARE_DIR};
use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::{LinuxResources, Spec};

use self::tuned::Tuned;
use crate::hooks::Hooks;

pub use annotations::annotations;
pub use disks::{DiskPlan, DiskSource, DiskUse, FileSystem, MOUNT_DIR, ROOT_TARGET};
pub use error::PlanError;
pub use membership::{Membership, SandboxName, Shared, plan_member, sandbox_name};
pub use mounts::{IdMap, IdRange, MOUNT_OPTIONS};
pub use namespaces::NetworkPlan;
pub use net_limits::{NetLimit, NetLimits};
pub use policy::{POLICY_FILE, Policy, PolicyError, RawPolicy};
pub use process::plan_process;
pub use resources::{ResourcePlan, dropped, plan_resources};
pub use root_image::{RootObstacle, root_obstacle};
pub use unit_properties::unit_properties;

/// Everything that is needed to boot one sandbox.
#[derive(Debug, Clone)]
pub struct SandboxPlan {
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub mem_mib: u32,
    /// Most guest memory in MiB that an update may ask for, if an annotation says so.
    pub mem_max_mib: Option<u32>,
    /// Most vCPUs that an update may ask for, if an annotation says so.
    pub vcpus_max: Option<u32>,
    /// The most that the operator lets any microVM have.
    pub ceiling: Ceiling,
    /// Words for the guest kernel's command line.
    pub kernel_parameters: Vec<String>,
    /// Let the guest kernel talk, and show its console when the sandbox fails.
    pub debug_console: bool,
    /// Which of both an annotation has set: an update of the resources does not change it.
    pub fixed: Fixed,
    /// The resources as the specification has them, which an update starts from.
    pub resources: LinuxResources,
    /// What the sandbox's cgroup on the host enforces.
    pub host_resources: LinuxResources,
    /// How long a silent guest may take to start, if an annotation says so.
    pub boot_limit: Option<Duration>,
    /// Directory of the container's root file system on the host.
    pub root: SharePlan,
    /// Whether that directory is served: it is not if the root comes from a disk alone.
    pub root_is_served: bool,
    /// Disks, the root's first.
    pub disks: Vec<DiskPlan>,
    /// Directories and files that are bind-mounted into the container, in order of mounting.
    pub binds: Vec<SharePlan>,
    /// Where something is mounted, in order of mounting.
    pub mount_points: Vec<MountPoint>,
    /// Whether those in the root file system itself must be made before that is served.
    pub makes_mount_points: bool,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// First rows and columns of the terminal, if the specification names them.
    pub console_size: Option<(u32, u32)>,
    /// Network namespace on the host that the container's interfaces live in.
    pub network: NetworkPlan,
    /// Limits of its interfaces.
    pub net_limits: NetLimits,
    /// Programs of the host to run at their moments.
    pub hooks: Hooks,
    /// The specification that the agent gets; every path in it is one of the guest.
    pub guest_spec: Spec,
    /// What was dropped because it means nothing here.
    pub notes: Vec<Note>,
}

impl SandboxPlan {
    /// Whether the root directory of the specification is what the container sees: not if that
    /// comes from a disk, alone or under what is served.
    pub fn shows_root(&self) -> bool {
        self.root_is_served && !self.disks.iter().any(|disk| disk.root_layer().is_some())
    }
}

/// The operator's limits of a microVM's size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ceiling {
    /// vCPUs.
    pub vcpus: Option<u32>,
    /// Guest memory in MiB.
    pub mem_mib: Option<u32>,
}

/// What annotations have set of the microVM's size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fixed {
    /// vCPUs.
    pub vcpus: bool,
    /// Guest memory.
    pub memory: bool,
}

/// A host directory or file that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharePlan {
    /// Name of the share.
    pub name: String,
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Refuse every change on the host side.
    pub read_only: bool,
    /// Serve the mounts below it too (`rbind`), as they are now.
    pub recursive: bool,
    /// Show other owners than the file system has.
    pub id_map: Option<IdMap>,
    /// Options of an overlay that is to be mounted; `source` is then its uppermost directory.
    pub overlay: Option<String>,
    /// Field of the specification that asks for it, for messages.
    pub field: String,
}

/// Where something is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Absolute path in the container, without `..`.
    pub path: PathBuf,
    /// What must be there.
    pub kind: MountPointKind,
    /// Whether it lies in what another mount shows, not in the root file system itself.
    pub nested: bool,
}

/// What something can be mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountPointKind {
    /// A directory.
    Directory,
    /// Anything but a directory.
    File,
    /// A file for a file: what the bind mount of this index is.
    Bind(usize),
}

/// A field that was dropped, and why that is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Name of the field.
    pub field: String,
    /// Why it has no meaning.
    pub reason: &'static str,
}

/// Collects notes while fields are taken out of the specification.
#[derive(Default)]
struct Notes(Vec<Note>);

impl Notes {
    /// Notes that `field` is dropped, if it was there.
    fn dropped(&mut self, there: bool, field: &str, reason: &'static str) {
        if there {
            self.note(field, reason);
        }
    }

    fn note(&mut self, field: &str, reason: &'static str) {
        self.0.push(Note { field: field.to_owned(), reason });
    }
}

/// Checks `spec` and plans its sandbox, which has no more than `policy` allows. `bundle` is
/// absolute; relative paths start there.
pub fn plan(
    id: &ContainerId,
    bundle: &Path,
    spec: Spec,
    policy: &Policy,
) -> Result<SandboxPlan, PlanError> {
    plan_in(id, bundle, spec, policy, None)
}

/// Plans a sandbox, or a container in the sandbox of `membership`.
fn plan_in(
    id: &ContainerId,
    bundle: &Path,
    mut spec: Spec,
    policy: &Policy,
    membership: Option<&Membership>,
) -> Result<SandboxPlan, PlanError> {
    let mut notes = Notes::default();
    check_version(spec.version())?;
    refuse_platforms(&spec)?;
    let hooks = hooks::plan(spec.hooks().as_ref())?;
    let guest_hooks = hooks::of_guest(spec.hooks().as_ref())?;

    let mut linux = spec.linux().clone().ok_or(PlanError::Missing("linux"))?;
    let (resources, planned) = resources::plan(&mut linux, &mut notes)?;
    let annotations = policy.complete(spec.annotations().as_ref())?;
    let tuned = tuned::plan(&annotations, policy)?;
    let (vcpus, mem_mib) = size(&tuned, &planned, &resources, policy)?;
    let named = spec.hostname().is_some() || spec.domainname().is_some();
    let network = namespaces::plan(&mut linux, named, membership)?;
    let list = spec.mounts().as_deref().unwrap_or_default();
    let may_mount = spec.process().as_ref().is_some_and(process::may_mount);
    let mut mounts = mounts::plan(bundle, list, may_mount, &mut notes)?;
    let mut disks = disks::plan(bundle, &annotations, &mut linux, &mut mounts)?;
    policy.limit_disks(&mut disks)?;
    devices::check(linux.devices().as_deref().unwrap_or_default())?;
    linux::plan(&mut linux, id, &mut notes)?;

    let mut process = spec.process().clone().ok_or(PlanError::Missing("process"))?;
    process::check_process(&process)?;
    process::drop_meaningless(&mut process, &mut notes);

    let (mut root, mut makes_mount_points) = plan_root(bundle, &mut spec)?;
    let mut root_is_served = true;
    if let Some(layer) = disks.iter().find_map(DiskPlan::root_layer) {
        // What the guest writes goes to the disk or to its memory, and mount points with it.
        (root_is_served, root.read_only, makes_mount_points) = (layer, true, false);
        if let Some(root) = spec.root_mut() {
            root.set_path(ROOT_TARGET.into());
        }
    }
    let (terminal, console_size) = process::terminal(&process)?;

    spec.set_mounts(Some(mounts.guest));
    spec.set_linux(Some(linux));
    spec.set_process(Some(process));
    spec.set_annotations(None);
    spec.set_hooks(guest_hooks);
    Ok(SandboxPlan {
        mem_max_mib: tuned.mem_max_mib,
        vcpus_max: tuned.vcpus_max,
        vcpus,
        mem_mib,
        ceiling: Ceiling { vcpus: policy.vcpus(), mem_mib: policy.mem_mib() },
        kernel_parameters: tuned.kernel_parameters,
        debug_console: tuned.debug_console,
        fixed: Fixed { vcpus: tuned.vcpus.is_some(), memory: tuned.mem_mib.is_some() },
        resources,
        host_resources: planned.host,
        boot_limit: tuned.boot_limit,
        net_limits: tuned.net_limits,
        root,
        root_is_served,
        disks,
        binds: mounts.binds,
        mount_points: mounts.mount_points,
        makes_mount_points,
        terminal,
        console_size,
        network,
        hooks,
        guest_spec: spec,
        notes: notes.0,
    })
}

/// vCPUs and memory in MiB. Annotations have been held against the policy; of what follows from the
/// resources, a limit of memory that it does not allow is refused, and CPUs are fewer: the quota
/// holds on the host all the same.
fn size(
    tuned: &Tuned,
    planned: &ResourcePlan,
    resources: &LinuxResources,
    policy: &Policy,
) -> Result<(u32, u32), PlanError> {
    let vcpus = planned.vcpus.min(policy.vcpus().unwrap_or(u32::MAX));
    let most = policy.mem_mib().unwrap_or(u32::MAX);
    let limit = resources.memory().and_then(|memory| memory.limit()).filter(|limit| *limit > 0);
    if let Some(limit) = limit.filter(|_| tuned.mem_mib.is_none() && planned.mem_mib > most) {
        let reason = format!("this host's operator allows a guest at most {most} MiB");
        return Err(PlanError::forbidden("linux.resources.memory.limit", limit, reason));
    }
    Ok((tuned.vcpus.unwrap_or(vcpus), tuned.mem_mib.unwrap_or(planned.mem_mib.min(most))))
}

/// Specification versions: every 1.x is accepted (`config.md`, "Specification version").
fn check_version(version: &str) -> Result<(), PlanError> {
    let major = version.split('.').next().unwrap_or_default();
    let valid = version.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    match (version.is_empty(), valid, major) {
        (true, ..) => Err(PlanError::Missing("ociVersion")),
        (_, true, "1") => Ok(()),
        _ => Err(PlanError::invalid("ociVersion", version, "versions 1.x are understood")),
    }
}

fn refuse_platforms(spec: &Spec) -> Result<(), PlanError> {
    let refused = |there: bool, field: &str| match there {
        true => Err(PlanError::refused(field, "only Linux containers are run")),
        false => Ok(()),
    };
    refused(spec.solaris().is_some(), "solaris")?;
    refused(spec.windows().is_some(), "windows")?;
    refused(spec.zos().is_some(), "zos")?;
    let mapped = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|l| !l.is_empty());
    for (there, field) in
        [(mapped(spec.uid_mappings()), "uidMappings"), (mapped(spec.gid_mappings()), "gidMappings")]
    {
        if there {
            return Err(PlanError::refused(field, "mappings belong to linux or to a mount"));
        }
    }
    match spec.vm() {
        Some(_) => {
            Err(PlanError::refused("vm", "the bundle does not choose the kernel or hypervisor"))
        }
        None => Ok(()),
    }
}

/// The root share, and whether mount points must be made before it is served.
fn plan_root(bundle: &Path, spec: &mut Spec) -> Result<(SharePlan, bool), PlanError> {
    let mut root = spec.root().clone().ok_or(PlanError::Missing("root"))?;
    check_path("root.path", root.path())?;
    let read_only = root.readonly().unwrap_or(false);
    let share = SharePlan {
        name: ROOT_SHARE.to_owned(),
        source: bundle.join(root.path()),
        read_only,
        recursive: true,
        id_map: None,
        overlay: None,
        field: "root.path".to_owned(),
    };
    root.set_path(guest_path(ROOT_SHARE));
    spec.set_root(Some(root));
    Ok((share, read_only))
}

/// Where the guest sees the share `name`.
fn guest_path(name: &str) -> PathBuf {
    Path::new(SHARE_DIR).join(name)
}

/// A path that can be given to the kernel: not empty, no NUL, not too long.
fn check_path(field: &str, path: &Path) -> Result<(), PlanError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let reason = match bytes.len() {
        0 => "a path is wanted",
        4096.. => "longer than the kernel allows",
        _ if bytes.contains(&0) => "a path has no NUL byte",
        _ => return Ok(()),
    };
    Err(PlanError::invalid(field, path.display(), reason))
}
