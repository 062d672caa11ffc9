//! Mounts of file systems on disks: the guest mounts the disk, and binds that into the container.

use std::path::Path;

use oci_spec::runtime::Mount;

use super::{DiskPlan, DiskSource, DiskUse, FileSystem, MOUNT_DIR, OWN};
use crate::plan::mounts::{MountPlan, for_the_agent, is_read_only};
use crate::plan::{MOUNT_OPTIONS, MountPoint, MountPointKind, PlanError, check_path};

/// Whether a mount is of a file system on a disk.
pub(in crate::plan) fn is_disk(mount: &Mount) -> bool {
    mount.typ().as_deref().is_some_and(FileSystem::is_named)
}

impl MountPlan {
    /// Takes a mount whose type is a file system on a disk.
    pub(in crate::plan) fn add_disk(
        &mut self,
        bundle: &Path,
        field: &str,
        mount: &Mount,
    ) -> Result<(), PlanError> {
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        let source_field = format!("{field}.source");
        check_path(&source_field, source)?;
        let name = mount.typ().as_deref().unwrap_or_default();
        let fstype = FileSystem::parse(name).ok_or_else(|| {
            PlanError::refused(
                format!("{field}.type ({name})"),
                "the guest kernel can mount erofs, ext4 and squashfs",
            )
        })?;
        let all: Vec<&str> = mount.options().iter().flatten().map(String::as_str).collect();
        // `loop` makes a disk of a file, which the microVM does anyway.
        let of_the_disk = |option: &&&str| {
            !MOUNT_OPTIONS.contains(option) && **option != "loop" && !option.is_empty()
        };
        let options = all.iter().filter(of_the_disk).map(|o| (*o).to_owned()).collect();
        let serial = format!("{OWN}mount-{}", self.disks.len());
        let target = Path::new(MOUNT_DIR).join(&serial);
        let mut inside = mount.clone();
        let generic = all.iter().filter(|o| MOUNT_OPTIONS.contains(o) && **o != "bind");
        let generic = for_the_agent(["rbind"].iter().chain(generic).copied());
        inside.set_typ(Some("bind".to_owned()));
        inside.set_source(Some(target.clone()));
        inside.set_options(Some(generic));
        self.guest.push(inside);
        self.disks.push(DiskPlan {
            serial,
            source: DiskSource::Path(bundle.join(source)),
            read_only: is_read_only(mount) || !fstype.is_writable(),
            queues: None,
            rate: None,
            field: source_field,
            usage: DiskUse::Mount { fstype: Some(fstype), options, target },
        });
        Ok(())
    }

    /// Mounts the disk `name` at `destination` of the container.
    pub(super) fn add_disk_mount(
        &mut self,
        destination: &Path,
        name: &str,
        read_only: bool,
        fstype: Option<FileSystem>,
    ) -> DiskUse {
        let target = Path::new(MOUNT_DIR).join(format!("disk-{name}"));
        let access = if read_only { "ro" } else { "rw" };
        let mut mount = Mount::default();
        mount.set_destination(destination.to_owned());
        mount.set_typ(Some("bind".to_owned()));
        mount.set_source(Some(target.clone()));
        mount.set_options(Some(vec![
            "rbind".into(),
            "nosuid".into(),
            "nodev".into(),
            access.into(),
        ]));
        self.guest.push(mount);
        let kind = MountPointKind::Directory;
        self.mount_points.push(MountPoint { path: destination.to_owned(), kind, nested: false });
        DiskUse::Mount { fstype, options: vec![], target }
    }
}
