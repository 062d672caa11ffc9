//! What the agent is told of the disks: mounts in order, and device nodes.

use std::path::{Path, PathBuf};

use bulkhead_protocol::agent::client::{BlockNode, GuestMount};
use bulkhead_protocol::guest::{ROOT_SHARE, SHARE_DIR};

use crate::plan::{DiskPlan, DiskUse, FileSystem, MOUNT_DIR, ROOT_TARGET};

/// Where its image is, below a writable layer.
const IMAGE_TARGET: &str = "/run/bulkhead/mnt/root-image";
/// Where that layer is.
const LAYER_TARGET: &str = "/run/bulkhead/mnt/root-layer";
/// Where the agent has a disk of this serial number.
const DISKS: &str = "/run/bulkhead/block";

/// Orders for the agent, as `CreateContainerRequest` has them.
#[derive(Debug, Clone, Default)]
pub struct GuestDisks {
    /// Mounts, in this order.
    pub mounts: Vec<GuestMount>,
    /// Nodes.
    pub nodes: Vec<BlockNode>,
}

impl GuestDisks {
    /// Adds what `disk` is for; `fstype` is what it holds, if it is mounted.
    pub(super) fn add(&mut self, disk: &DiskPlan, fstype: Option<FileSystem>) {
        let source = Path::new(DISKS).join(&disk.serial);
        match (&disk.usage, fstype) {
            (DiskUse::Root { overlay, layer, .. }, Some(fstype)) => {
                let size = overlay.flatten();
                match overlay.is_some() || *layer || !fstype.is_writable() {
                    true => self.layered_root(source, fstype, size, *layer),
                    false => {
                        let options = access(disk.read_only);
                        self.mount(source, &fstype.to_string(), options, ROOT_TARGET);
                    }
                }
            }
            (DiskUse::Mount { options, target, .. }, Some(fstype)) => {
                let read_only = disk.read_only || !fstype.is_writable();
                let options = access(read_only).into_iter().chain(options.iter().cloned());
                let target = target.to_string_lossy();
                self.mount(source, &fstype.to_string(), options.collect(), &target);
            }
            (DiskUse::Node { path, mode, uid, gid, access }, _) => {
                let mut node = BlockNode::new();
                node.serial.clone_from(&disk.serial);
                node.path = path.to_string_lossy().into_owned();
                node.mode = *mode;
                node.uid = *uid;
                node.gid = *gid;
                node.access.clone_from(access);
                self.nodes.push(node);
            }
            (DiskUse::Root { .. } | DiskUse::Mount { .. }, None) => {
                unreachable!("what is mounted was looked into")
            }
        }
    }

    /// The image, perhaps the root share over it, and memory of the guest on top.
    fn layered_root(
        &mut self,
        source: PathBuf,
        fstype: FileSystem,
        size: Option<u64>,
        layer: bool,
    ) {
        self.mount(source, &fstype.to_string(), access(true), IMAGE_TARGET);
        let bound = size.map_or("size=50%".to_owned(), |bytes| format!("size={bytes}"));
        self.mount("tmpfs".into(), "tmpfs", vec![bound, "mode=0700".into()], LAYER_TARGET);
        let lower = match layer {
            // A share is mounted when it is entered, which the last dot does; before that it is
            // nothing that overlayfs takes.
            true => format!("lowerdir={SHARE_DIR}/{ROOT_SHARE}/.:{IMAGE_TARGET}"),
            false => format!("lowerdir={IMAGE_TARGET}"),
        };
        let options = vec![
            lower,
            format!("upperdir={LAYER_TARGET}/upper"),
            format!("workdir={LAYER_TARGET}/work"),
        ];
        self.mount("overlay".into(), "overlay", options, ROOT_TARGET);
    }

    fn mount(&mut self, source: PathBuf, fstype: &str, options: Vec<String>, target: &str) {
        debug_assert!(target.starts_with(MOUNT_DIR), "the agent mounts below one directory");
        let mut mount = GuestMount::new();
        mount.source = source.to_string_lossy().into_owned();
        mount.fstype = fstype.to_owned();
        mount.options = options;
        mount.target = target.to_owned();
        self.mounts.push(mount);
    }
}

fn access(read_only: bool) -> Vec<String> {
    vec![if read_only { "ro".to_owned() } else { "rw".to_owned() }]
}
