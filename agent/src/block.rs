//! Disks of the guest for containers: found by their serial numbers, mounted, given as nodes.
//!
//! Orders come from the host, which the agent trusts; what is on a disk may be anybody's, which
//! is the guest kernel's to bear.
//!
//! Mounts are made in the agent's mount namespace before the container exists. Undoing one that
//! is on a disk first makes the file system read-only, which writes everything back and marks it
//! clean: the container's own copy of the mount may live on for a moment after its last process.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use bulkhead_protocol::agent::server::{BlockNode, GuestMount};
use rustix::{
    fs::{Gid, Mode, Uid, chmod, chown, stat},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount},
};
use serde_json::{Value, json};
use thiserror::Error;

/// Where a disk is found by its serial number.
const DISKS: &str = "/run/bulkhead/block";
/// Mounts are made below this directory only.
const MOUNTS: &str = "/run/bulkhead/mnt";
/// Block devices of the kernel.
const SYS_BLOCK: &str = "/sys/block";
/// Permission bits of a node unless the order says others.
const NODE_MODE: u32 = 0o660;

/// A step that failed.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The kernel's list of disks cannot be read.
    #[error("list the disks: {0}")]
    List(#[source] io::Error),
    /// The host speaks of a disk that is not there.
    #[error("there is no disk {0:?}")]
    Absent(String),
    /// A path that is not below [`MOUNTS`].
    #[error("mount target {0:?} is not below {MOUNTS}")]
    Target(String),
    /// A directory or link of the agent.
    #[error("make {path}: {source}")]
    Make {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refuses the mount; for a disk it says more on its console.
    #[error("mount {name} ({fstype}): {source}")]
    Mount {
        /// What, by the last part of its target.
        name: String,
        /// File system type.
        fstype: String,
        /// Why not.
        source: io::Error,
    },
    /// The specification has no place for a node.
    #[error("linux of the specification is not an object")]
    Spec,
}

/// What was mounted for one container, in order; undone when dropped.
#[derive(Debug, Default)]
pub struct Mounts(Vec<Mounted>);

#[derive(Debug)]
struct Mounted {
    target: PathBuf,
    /// The file system is on a disk and was mounted for writing.
    writable: bool,
}

impl Mounts {
    /// Mounts everything, or nothing.
    pub fn make(orders: &[GuestMount]) -> Result<Self, DiskError> {
        if orders.is_empty() {
            return Ok(Self::default());
        }
        link_disks()?;
        let mut mounts = Self::default();
        for order in orders {
            mounts.0.push(mount_one(order)?);
        }
        Ok(mounts)
    }

    /// Undoes everything, last first.
    pub fn undo(&mut self) {
        while let Some(Mounted { target, writable }) = self.0.pop() {
            if writable {
                // Busy only if a process has survived its cgroup's end; then the journal helps.
                let _ = mount_remount(&target, MountFlags::RDONLY, c"");
            }
            let _ = unmount(&target, UnmountFlags::DETACH);
            let _ = fs::remove_dir(&target);
        }
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        self.undo();
    }
}

fn mount_one(order: &GuestMount) -> Result<Mounted, DiskError> {
    let target = below(&order.target)?;
    make_dir(&target)?;
    let (flags, data) = split(&order.options);
    if order.fstype == "overlay" {
        prepare_overlay(&order.options)?;
    }
    let failed = |errno: Errno| DiskError::Mount {
        name: target.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        fstype: order.fstype.clone(),
        source: errno.into(),
    };
    let data = std::ffi::CString::new(data).map_err(|_| failed(Errno::INVAL))?;
    let on_disk = Path::new(&order.source).starts_with(DISKS);
    // The kernel shows the source as it was given; a device has one name.
    let source = match on_disk {
        true => fs::read_link(&order.source).unwrap_or_else(|_| order.source.clone().into()),
        false => order.source.clone().into(),
    };
    if let Err(errno) = mount(&source, &target, &order.fstype, flags, data.as_c_str()) {
        // Not empty if it is part of another mount, with which it goes.
        let _ = fs::remove_dir(&target);
        return Err(failed(errno));
    }
    Ok(Mounted { target, writable: on_disk && !flags.contains(MountFlags::RDONLY) })
}

/// Options as mount(8) takes them: flags of mount(2), and the rest, which is the file system's.
fn split(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        let (flag, on) = match option.as_str() {
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "noatime" => (MountFlags::NOATIME, true),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "bind" => (MountFlags::BIND, true),
            "rbind" => (MountFlags::BIND | MountFlags::REC, true),
            other => {
                data.push(other);
                continue;
            }
        };
        flags.set(flag, on);
    }
    (flags, data.join(","))
}

/// Makes the directories of an overlay's writable layer, which the file system below them was
/// just mounted for. The root of the whole looks like that of its uppermost layer.
fn prepare_overlay(options: &[String]) -> Result<(), DiskError> {
    let value = |key: &str| options.iter().find_map(|option| option.strip_prefix(key));
    for directory in [value("upperdir="), value("workdir=")].into_iter().flatten() {
        make_dir(&below(directory)?)?;
    }
    let lower = value("lowerdir=").and_then(|list| list.split(':').next());
    if let (Some(lower), Some(upper)) = (lower, value("upperdir=")) {
        let failed = |errno: Errno| DiskError::Make { path: upper.into(), source: errno.into() };
        let like = stat(lower).map_err(failed)?;
        chown(upper, Some(Uid::from_raw(like.st_uid)), Some(Gid::from_raw(like.st_gid)))
            .map_err(failed)?;
        chmod(upper, Mode::from_raw_mode(like.st_mode & 0o7777)).map_err(failed)?;
    }
    Ok(())
}

/// Links every disk that has a serial number below [`DISKS`].
fn link_disks() -> Result<(), DiskError> {
    make_dir(Path::new(DISKS))?;
    for (serial, name) in disks()? {
        let link = Path::new(DISKS).join(serial);
        match symlink(Path::new("/dev").join(name), &link) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(DiskError::Make { path: link, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Serial numbers and names of the disks that have one.
fn disks() -> Result<Vec<(String, String)>, DiskError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(SYS_BLOCK).map_err(DiskError::List)? {
        let entry = entry.map_err(DiskError::List)?;
        let Ok(serial) = fs::read_to_string(entry.path().join("serial")) else { continue };
        let (serial, name) = (serial.trim_end(), entry.file_name());
        // One name of a file; anything else is no serial number of bulkhead's.
        if !serial.is_empty() && !serial.contains('/') && !serial.starts_with('.') {
            found.push((serial.to_owned(), name.to_string_lossy().into_owned()));
        }
    }
    Ok(found)
}

/// A path below [`MOUNTS`] without `..`.
fn below(path: &str) -> Result<PathBuf, DiskError> {
    let good = Path::new(path).starts_with(MOUNTS)
        && path.len() > MOUNTS.len() + 1
        && !path.split('/').any(|part| part == "..");
    if good { Ok(path.into()) } else { Err(DiskError::Target(path.to_owned())) }
}

fn make_dir(path: &Path) -> Result<(), DiskError> {
    fs::create_dir_all(path).map_err(|source| DiskError::Make { path: path.to_owned(), source })
}

/// Puts the nodes into `linux.devices`, and what may be done with them into
/// `linux.resources.devices`.
pub fn add_nodes(spec: &mut Value, nodes: &[BlockNode]) -> Result<(), DiskError> {
    if nodes.is_empty() {
        return Ok(());
    }
    let disks = disks()?;
    for node in nodes {
        let absent = || DiskError::Absent(node.serial.clone());
        let (_, name) =
            disks.iter().find(|(serial, _)| *serial == node.serial).ok_or_else(absent)?;
        let number = fs::read_to_string(Path::new(SYS_BLOCK).join(name).join("dev"));
        let number = number.map_err(DiskError::List)?;
        let (major, minor) = numbers(&number).ok_or_else(absent)?;
        add_node(spec, node, major, minor).ok_or(DiskError::Spec)?;
    }
    Ok(())
}

/// `MAJOR:MINOR` as a `dev` attribute has it.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim_end().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn add_node(spec: &mut Value, node: &BlockNode, major: u32, minor: u32) -> Option<()> {
    let linux = spec.get_mut("linux")?.as_object_mut()?;
    let mode = if node.mode == 0 { NODE_MODE } else { node.mode };
    list(linux, "devices")?.push(json!({
        "type": "b", "path": node.path, "major": major, "minor": minor,
        "fileMode": mode, "uid": node.uid, "gid": node.gid,
    }));
    if !node.access.is_empty() {
        let resources = linux.entry("resources").or_insert_with(|| json!({}));
        list(resources.as_object_mut()?, "devices")?.push(json!({
            "allow": true, "type": "b", "major": major, "minor": minor, "access": node.access,
        }));
    }
    Some(())
}

/// The list `key`, made if it is absent or null.
fn list<'a>(
    object: &'a mut serde_json::Map<String, Value>,
    key: &str,
) -> Option<&'a mut Vec<Value>> {
    let list = object.entry(key).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_the_file_systems() {
        let options = |list: &[&str]| list.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
        let (flags, data) = split(&options(&["ro", "nosuid", "data=ordered", "errors=remount-ro"]));
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(data, "data=ordered,errors=remount-ro");
        assert_eq!(split(&options(&["ro", "rw"])).0, MountFlags::empty());
    }

    #[test]
    fn target_outside_of_the_agents_directory_is_refused() {
        assert!(below("/run/bulkhead/mnt/root").is_ok());
        for path in ["", "/", "/run/bulkhead/mnt", "/run/bulkhead/mnt/", "/run/bulkhead/mnt/../x"] {
            assert!(matches!(below(path), Err(DiskError::Target(_))), "{path}");
        }
    }

    #[test]
    fn node_goes_into_devices_and_their_rules() {
        let mut spec = json!({"linux": {"devices": null}});
        let node = BlockNode {
            serial: "s".into(),
            path: "/dev/x".into(),
            access: "rm".into(),
            gid: 6,
            ..BlockNode::default()
        };
        add_node(&mut spec, &node, 254, 16).unwrap();
        let device = &spec["linux"]["devices"][0];
        assert_eq!((&device["path"], &device["fileMode"]), (&json!("/dev/x"), &json!(0o660)));
        let rule = &spec["linux"]["resources"]["devices"][0];
        assert_eq!((&rule["minor"], &rule["access"]), (&json!(16), &json!("rm")));
        assert!(add_node(&mut json!({}), &node, 254, 16).is_none());
        assert_eq!(numbers("254:16\n"), Some((254, 16)));
        assert_eq!(numbers("254"), None);
    }
}
