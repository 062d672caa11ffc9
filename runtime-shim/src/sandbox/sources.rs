//! Opening what the sandbox is given, before any process of it exists: descriptors only, no
//! path goes further.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use bulkhead_jail::apart::{ApartError, set_apart};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use super::view::{Shown, View};
use super::{SandboxError, detach, mount_points};
use crate::plan::{MountPoint, MountPointKind, SandboxPlan, SharePlan};
use crate::request::RootSource;

/// Numbers of `/dev/kvm` (Documentation/admin-guide/devices.txt).
const KVM_MAJOR: u32 = 10;
const KVM_MINOR: u32 = 232;

/// A share, opened.
#[derive(Debug)]
pub(crate) struct OpenShare {
    pub name: String,
    pub read_only: bool,
    pub fd: OwnedFd,
}

/// What a bind mount binds, opened for the guest and once more for the view of the host.
struct OpenBind {
    fd: OwnedFd,
    view: OwnedFd,
    is_file: bool,
}

/// Opens the root and every bind mount, in this order, and what the host is to see of them.
pub(super) fn open_shares(
    plan: &SandboxPlan,
    root: RootSource,
) -> Result<(Vec<OpenShare>, View), SandboxError> {
    let view_of_root = match root {
        RootSource::Bundle if plan.shows_root() => Some(&plan.root),
        RootSource::Bundle | RootSource::Fd(_) => None,
    };
    let root_fd = match root {
        RootSource::Bundle if plan.root_is_served => {
            Some(open_path(&plan.root, OFlags::PATH | OFlags::DIRECTORY)?)
        }
        RootSource::Fd(fd) if plan.root_is_served => Some(fd),
        RootSource::Bundle | RootSource::Fd(_) => None,
    };
    let root = |fd| OpenShare { name: plan.root.name.clone(), read_only: plan.root.read_only, fd };
    let mut shares: Vec<_> = root_fd.into_iter().map(root).collect();
    let mut views = vec![];
    for bind in &plan.binds {
        let OpenBind { fd, view, is_file } = open_bind(bind)?;
        views.push((view, is_file));
        shares.push(OpenShare { name: bind.name.clone(), read_only: bind.read_only, fd });
    }
    let is_file = |point: &MountPoint| match point.kind {
        MountPointKind::Directory => false,
        MountPointKind::File => true,
        MountPointKind::Bind(bind) => views[bind].1,
    };
    let own = plan.mount_points.iter().filter(|point| plan.makes_mount_points && !point.nested);
    for point in own {
        mount_points::make(&shares[0].fd, &point.path, is_file(point))?;
    }
    let view = view_of_root.map(|root| view(plan, root, &shares[0].fd, views));
    Ok((shares, view.transpose()?.unwrap_or_default()))
}

/// What the host is to see: `root`, open as `fd`, and what is mounted into it.
fn view(
    plan: &SandboxPlan,
    root: &SharePlan,
    fd: &OwnedFd,
    binds: Vec<(OwnedFd, bool)>,
) -> Result<View, SandboxError> {
    let copy = fd.try_clone().map_err(|e| not_apart(root, "copying its descriptor", e))?;
    let mut view = View::of(apart(root, copy)?);
    let mut binds = binds.into_iter().zip(&plan.binds);
    for point in &plan.mount_points {
        let shown = match point.kind {
            MountPointKind::Directory => Shown::Directory,
            MountPointKind::File => Shown::File,
            // Both lists are in the order of mounting.
            MountPointKind::Bind(_) => match binds.next() {
                Some(((fd, is_file), bind)) => Shown::Share { fd: apart(bind, fd)?, is_file },
                None => continue,
            },
        };
        view.add(point.path.clone(), shown);
    }
    Ok(view)
}

/// As [`open_shares`], for a file server that is confined already and cannot set anything apart:
/// each share is a mount of its own, with which the server reaches nothing else.
///
/// The attack: as with the first shares of a sandbox ([`bulkhead_jail::apart`]).
pub(crate) fn open_apart(
    plan: &SandboxPlan,
    root: RootSource,
) -> Result<(Vec<OpenShare>, View), SandboxError> {
    let (shares, view) = open_shares(plan, root)?;
    let plans = plan.root_is_served.then_some(&plan.root).into_iter().chain(&plan.binds);
    let apart = |(share, plan): (OpenShare, _)| {
        let OpenShare { name, read_only, fd } = share;
        Ok(OpenShare { name, read_only, fd: apart(plan, fd)? })
    };
    let shares: Result<_, _> = shares.into_iter().zip(plans).map(apart).collect();
    Ok((shares?, view))
}

/// What `fd`, a share as `plan` says, is in a mount of its own.
fn apart(plan: &SharePlan, fd: OwnedFd) -> Result<OwnedFd, SandboxError> {
    let apart = set_apart(fd, plan.read_only);
    apart.map_err(|ApartError { step, source }| not_apart(plan, step, source))
}

fn not_apart(plan: &SharePlan, step: &'static str, source: io::Error) -> SandboxError {
    let (field, path) = (plan.field.clone(), plan.source.clone());
    SandboxError::Detach { field, path, step, source }
}

/// Opens what `bind` binds: a directory or file of the host, or a mount made of it.
fn open_bind(bind: &SharePlan) -> Result<OpenBind, SandboxError> {
    if let Some(data) = &bind.overlay {
        let mounted = detach::overlay(&bind.source, data);
        let [fd, view] = mounted.map_err(|e| not_apart(bind, "mounting overlayfs", e))?;
        return Ok(OpenBind { fd, view, is_file: false });
    }
    let found = open_path(bind, OFlags::PATH)?;
    let is_file = check_kind(bind, &found)? == FileType::RegularFile;
    let copy = || {
        let copied = detach::copy(&found, bind.recursive);
        copied.map_err(|e| not_apart(bind, "copying the mount", e))
    };
    let view = copy()?;
    // Nothing can be mounted below a file, and the file server copies with what is below.
    let fd = match (bind.recursive || is_file) && bind.id_map.is_none() {
        true => found,
        false => copy()?,
    };
    if let Some(map) = &bind.id_map {
        let mapped = detach::set_id_map(&[&fd, &view], map);
        mapped.map_err(|e| not_apart(bind, "mapping its owners", e))?;
    }
    Ok(OpenBind { fd, view, is_file })
}

/// Opens as mount(2) would resolve the source: through symbolic links.
fn open_path(share: &SharePlan, flags: OFlags) -> Result<OwnedFd, SandboxError> {
    open(&share.source, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|e| SandboxError::Source {
        field: share.field.clone(),
        path: share.source.clone(),
        source: e.into(),
    })
}

fn check_kind(share: &SharePlan, fd: &OwnedFd) -> Result<FileType, SandboxError> {
    let failed = |source| SandboxError::Source {
        field: share.field.clone(),
        path: share.source.clone(),
        source,
    };
    let stat = fstat(fd).map_err(|e| failed(e.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        kind @ (FileType::Directory | FileType::RegularFile) => Ok(kind),
        kind => {
            let (field, path) = (share.field.clone(), share.source.clone());
            Err(SandboxError::SourceKind { field, path, reason: unreachable_kind(kind) })
        }
    }
}

/// Why the guest cannot have something of this kind.
fn unreachable_kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => {
            "a socket of the host; the guest has a kernel of its own, which reaches no process there"
        }
        FileType::Fifo => {
            "a FIFO of the host; the guest has a kernel of its own, and no data would come through"
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            "a device of the host; the guest has a kernel of its own, whose devices are others"
        }
        _ => "neither a directory nor a regular file",
    }
}

/// KVM, for reading and writing.
pub(super) fn open_kvm() -> Result<File, SandboxError> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm").map_err(SandboxError::Kvm)?;
    let device = kvm.metadata().map_err(SandboxError::Kvm)?.rdev();
    match rustix::fs::major(device) == KVM_MAJOR && rustix::fs::minor(device) == KVM_MINOR {
        true => Ok(kvm),
        false => Err(SandboxError::KvmDevice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(path: &std::path::Path) -> SharePlan {
        SharePlan {
            name: "v0".into(),
            source: path.to_owned(),
            read_only: false,
            recursive: true,
            id_map: None,
            overlay: None,
            field: "mounts[0].source".into(),
        }
    }

    #[test]
    fn bind_source_that_is_a_socket_or_absent_is_refused_by_field() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let absent = open_path(&share(&path), OFlags::PATH).unwrap_err();
        assert!(absent.to_string().starts_with("mounts[0].source: /"));
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let fd = open_path(&share(&path), OFlags::PATH).unwrap();
        let refused = check_kind(&share(&path), &fd).unwrap_err();
        assert!(refused.to_string().ends_with("which reaches no process there"), "{refused}");
    }
}
