//! Opening what the sandbox is given, before any process of it exists: descriptors only, no
//! path goes further.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use bulkhead_jail::apart::{ApartError, set_apart};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use super::{SandboxError, detach, mount_points};
use crate::plan::{MountPointKind, SandboxPlan, SharePlan};
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

/// Opens the root and every bind mount, in this order.
pub(super) fn open_shares(
    plan: &SandboxPlan,
    root: RootSource,
) -> Result<Vec<OpenShare>, SandboxError> {
    let root_fd = match root {
        RootSource::Bundle if plan.root_is_served => {
            Some(open_path(&plan.root, OFlags::PATH | OFlags::DIRECTORY)?)
        }
        RootSource::Fd(fd) if plan.root_is_served => Some(fd),
        RootSource::Bundle | RootSource::Fd(_) => None,
    };
    let root = |fd| OpenShare { name: plan.root.name.clone(), read_only: plan.root.read_only, fd };
    let mut shares: Vec<_> = root_fd.into_iter().map(root).collect();
    let mut files = vec![];
    for bind in &plan.binds {
        let (fd, kind) = open_bind(bind)?;
        files.push(kind == FileType::RegularFile);
        shares.push(OpenShare { name: bind.name.clone(), read_only: bind.read_only, fd });
    }
    for point in &plan.mount_points {
        let file = match point.kind {
            MountPointKind::Directory => false,
            MountPointKind::File => true,
            MountPointKind::Bind(bind) => files[bind],
        };
        mount_points::make(&shares[0].fd, &point.path, file)?;
    }
    Ok(shares)
}

/// As [`open_shares`], for a file server that is confined already and cannot set anything apart:
/// each share is a mount of its own, with which the server reaches nothing else.
///
/// The attack: as with the first shares of a sandbox ([`bulkhead_jail::apart`]).
pub(crate) fn open_apart(
    plan: &SandboxPlan,
    root: RootSource,
) -> Result<Vec<OpenShare>, SandboxError> {
    let apart = |share: OpenShare| {
        let OpenShare { name, read_only, fd } = share;
        let fd = set_apart(fd, read_only).map_err(|ApartError { step, source }| {
            let is_it = |plan: &&SharePlan| plan.name == name;
            let found = std::iter::once(&plan.root).chain(&plan.binds).find(is_it);
            let (field, path) =
                found.map(|p| (p.field.clone(), p.source.clone())).unwrap_or_default();
            SandboxError::Detach { field, path, step, source }
        })?;
        Ok(OpenShare { name, read_only, fd })
    };
    open_shares(plan, root)?.into_iter().map(apart).collect()
}

/// What `bind` binds: a directory or file of the host, or a mount made of it.
fn open_bind(bind: &SharePlan) -> Result<(OwnedFd, FileType), SandboxError> {
    let failed = |step, source| {
        let (field, path) = (bind.field.clone(), bind.source.clone());
        SandboxError::Detach { field, path, step, source }
    };
    if let Some(data) = &bind.overlay {
        let mounted = detach::overlay(&bind.source, data);
        return Ok((mounted.map_err(|e| failed("mounting overlayfs", e))?, FileType::Directory));
    }
    let mut fd = open_path(bind, OFlags::PATH)?;
    let kind = check_kind(bind, &fd)?;
    // Nothing can be mounted below a file, and the file server copies with what is below.
    if (!bind.recursive && kind == FileType::Directory) || bind.id_map.is_some() {
        fd = detach::copy(&fd, bind.recursive).map_err(|e| failed("copying the mount", e))?;
    }
    if let Some(map) = &bind.id_map {
        detach::set_id_map(&fd, map).map_err(|e| failed("mapping its owners", e))?;
    }
    Ok((fd, kind))
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
