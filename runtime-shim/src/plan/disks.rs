//! What becomes a virtio block device: mounts of image files and block devices, the annotations
//! `io.bulkhead.root` and `io.bulkhead.block.NAME` (their form: `annotations`), and block devices in
//! `linux.devices`.

mod devices;
mod mounts;
mod options;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use bulkhead_protocol::limits::BLOCKS_MAX;
use bulkhead_protocol::vm::RawRateLimit;
use oci_spec::runtime::Linux;

use self::options::Options;
use super::mounts::MountPlan;
use super::{PlanError, annotations};

pub(super) use self::mounts::is_disk;

/// Annotation of the root file system's image.
pub(super) const ROOT: &str = "io.bulkhead.root";
/// Start of the annotations of other disks.
pub(super) const BLOCK: &str = "io.bulkhead.block.";
/// Start of the serial numbers that no annotation can choose.
const OWN: &str = "bulkhead-";
/// Longest serial number (virtio 1.2, section 5.2.6).
const SERIAL_MAX: usize = 20;
/// Where the agent mounts what is the container's, in the guest.
pub const MOUNT_DIR: &str = "/run/bulkhead/mnt";
/// Where a root file system from a disk is, in the guest.
pub const ROOT_TARGET: &str = "/run/bulkhead/mnt/root";

/// A file system that the guest kernel mounts from a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// EROFS, read-only.
    Erofs,
    /// ext4, and ext2 and ext3 through it.
    Ext4,
    /// squashfs, read-only.
    Squashfs,
}

impl FileSystem {
    /// By its name in mount(2).
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "erofs" => Some(Self::Erofs),
            "ext2" | "ext3" | "ext4" => Some(Self::Ext4),
            "squashfs" => Some(Self::Squashfs),
            _ => None,
        }
    }

    /// Whether `name` is that of a file system on a disk, known to the guest or not.
    pub fn is_named(name: &str) -> bool {
        Self::parse(name).is_some() || ["xfs", "btrfs", "f2fs", "vfat", "iso9660"].contains(&name)
    }

    /// Whether it can be changed at all.
    pub fn is_writable(self) -> bool {
        self == Self::Ext4
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        })
    }
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Serial number, unique in the sandbox, at most 20 bytes.
    pub serial: String,
    /// What it stands for.
    pub source: DiskSource,
    /// Refuse every change.
    pub read_only: bool,
    /// Request queues, if the specification names a number.
    pub queues: Option<u32>,
    /// Limit of reads and writes.
    pub rate: Option<RawRateLimit>,
    /// Field of the specification that asks for it, for messages.
    pub field: String,
    /// What the guest makes of it.
    pub usage: DiskUse,
}

impl DiskPlan {
    /// Of the root's disk, whether the directory `root.path` lies over it.
    pub(super) fn root_layer(&self) -> Option<bool> {
        match self.usage {
            DiskUse::Root { layer, .. } => Some(layer),
            DiskUse::Mount { .. } | DiskUse::Node { .. } => None,
        }
    }
}

/// What a disk stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// An image file or a block device by its path.
    Path(PathBuf),
    /// A block device by its numbers; the path is where the specification has it.
    Number {
        /// Path in the container, perhaps that on the host, too.
        path: PathBuf,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// What the guest makes of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskUse {
    /// The root file system.
    Root {
        /// Its type, or what its superblock says.
        fstype: Option<FileSystem>,
        /// Changes go to memory of the guest, at most so many bytes; else to the image, if it can
        /// be written to.
        overlay: Option<Option<u64>>,
        /// The directory `root.path` lies over the image.
        layer: bool,
    },
    /// Mounted at `target`, below [`MOUNT_DIR`].
    Mount {
        /// Its type, or what its superblock says.
        fstype: Option<FileSystem>,
        /// Options as mount(8) takes them.
        options: Vec<String>,
        /// Where the agent mounts it.
        target: PathBuf,
    },
    /// A device node of the container.
    Node {
        /// Path of the node.
        path: PathBuf,
        /// Permission bits; 0: the default.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Of `rwm`.
        access: String,
    },
}

/// Takes every disk out of annotations, devices and `mounts`, which has those of mounts already;
/// what of them is the guest's goes to `mounts`. The root comes first.
pub(super) fn plan(
    bundle: &Path,
    annotations: &HashMap<String, String>,
    linux: &mut Linux,
    mounts: &mut MountPlan,
) -> Result<Vec<DiskPlan>, PlanError> {
    let mut disks = Vec::new();
    if let Some(text) = annotations.get(ROOT) {
        disks.push(root(bundle, text)?);
    }
    disks.append(&mut mounts.disks);
    volumes(bundle, annotations, &mut disks, mounts)?;
    devices::plan(linux, &mut disks)?;
    if disks.len() > BLOCKS_MAX {
        return Err(PlanError::refused("block devices", "a microVM has at most 16 disks"));
    }
    Ok(disks)
}

fn root(bundle: &Path, text: &str) -> Result<DiskPlan, PlanError> {
    let field = annotations::field(ROOT);
    let options = Options::parse(&field, text)?;
    if options.mount.is_some() || options.node.is_some() {
        return Err(PlanError::invalid(field, text, "the root has neither mount= nor node="));
    }
    Ok(DiskPlan {
        serial: format!("{OWN}root"),
        source: DiskSource::Path(bundle.join(&options.path)),
        read_only: options.read_only || options.overlay.is_some(),
        queues: options.queues,
        rate: options.limit(),
        field,
        usage: DiskUse::Root {
            fstype: options.fstype,
            overlay: options.overlay,
            layer: options.layer,
        },
    })
}

/// The disks of annotations, in the order of their names.
fn volumes(
    bundle: &Path,
    annotations: &HashMap<String, String>,
    disks: &mut Vec<DiskPlan>,
    mounts: &mut MountPlan,
) -> Result<(), PlanError> {
    let mut named: Vec<_> = annotations
        .iter()
        .filter_map(|(key, text)| Some((key.strip_prefix(BLOCK)?, text)))
        .collect();
    named.sort_unstable();
    for (name, text) in named {
        let field = annotations::field(&format!("{BLOCK}{name}"));
        check_serial(&field, name)?;
        let options = Options::parse(&field, text)?;
        let (read_only, fstype) = (options.read_only, options.fstype);
        let usage = match (&options.mount, &options.node) {
            (Some(destination), None) => {
                mounts.add_disk_mount(Path::new(destination), name, read_only, fstype)
            }
            (None, node) => DiskUse::Node {
                path: node.clone().unwrap_or_else(|| format!("/dev/{name}")).into(),
                mode: 0,
                uid: 0,
                gid: 0,
                access: if read_only { "rm".into() } else { "rwm".into() },
            },
            (Some(_), Some(_)) => {
                return Err(PlanError::invalid(field, text, "mount= and node= exclude each other"));
            }
        };
        if options.overlay.is_some() || options.layer {
            return Err(PlanError::invalid(field, text, "only the root has an overlay"));
        }
        if options.mount.is_none() && fstype.is_some() {
            return Err(PlanError::invalid(field, text, "only what is mounted has a type"));
        }
        disks.push(DiskPlan {
            serial: name.to_owned(),
            source: DiskSource::Path(bundle.join(&options.path)),
            read_only,
            queues: options.queues,
            rate: options.limit(),
            field,
            usage,
        });
    }
    Ok(())
}

fn check_serial(field: &str, name: &str) -> Result<(), PlanError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let good = (1..=SERIAL_MAX).contains(&name.len()) && name.bytes().all(plain);
    if !good || name.starts_with(OWN) || name.starts_with('.') {
        let reason = "a name has 1 to 20 letters, digits, `_`, `.`, `-`, and does not begin with \
                      `bulkhead-` or a dot";
        return Err(PlanError::invalid(field, name, reason));
    }
    Ok(())
}
