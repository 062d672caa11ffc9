//! Disks of a container: those that the flags name, and the image of the root file system.
//!
//! ```text
//! --device HOST[:GUEST[:rwm]]                            a block device or an image file as a node
//! --mount type=image,source=FILE,target=DIR[,readonly]   the file system in an image file
//! --mount type=bind,source=SRC,target=DST[,readonly]     as -v
//! ```

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, Spec,
};
use thiserror::Error;

use super::settings::{SettingError, Settings, Volume, clean};
use crate::failure::{EXIT_LAUNCH, Explain};

/// Annotation of the root's image.
const ROOT: &str = "io.bulkhead.root";

/// One `--device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Block device or image file of the host.
    pub source: PathBuf,
    /// Node in the container.
    pub node: String,
    /// Of `rwm`.
    pub access: String,
}

/// One `--mount type=image`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMount {
    /// Image file or block device of the host.
    pub source: PathBuf,
    /// Directory in the container.
    pub target: String,
    /// It cannot be written to.
    pub read_only: bool,
}

/// What one `--mount` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountFlag {
    /// A directory or file of the host.
    Bind(Volume),
    /// A file system in an image.
    Image(ImageMount),
}

/// Why disks cannot be had.
#[derive(Debug, Error)]
pub enum DiskFlagError {
    /// The host has nothing there.
    #[error("--device {0}")]
    Device(PathBuf, #[source] io::Error),
    /// A character device, a directory or such.
    #[error("--device {0} is neither a block device nor an image file")]
    Kind(PathBuf),
    /// Annotations have commas between their parts.
    #[error("{0:?} has a comma in it")]
    Comma(PathBuf),
    /// A part that the builder refuses.
    #[error("building the specification")]
    Build(#[from] OciSpecError),
}

impl Explain for DiskFlagError {
    fn phase(&self) -> &'static str {
        "planning the container"
    }

    fn fix(&self) -> String {
        match self {
            Self::Device(..) => "give a path that exists",
            Self::Kind(_) => "other devices of the host cannot be given to a microVM",
            Self::Comma(_) => "rename it, or reach it by a link",
            Self::Build(_) => "",
        }
        .to_owned()
    }

    fn code(&self) -> u8 {
        EXIT_LAUNCH
    }
}

/// `--device`; a relative HOST is taken from `directory`.
pub fn device(text: &str, directory: &Path) -> Result<Device, SettingError> {
    let bad = || SettingError::Device(text.to_owned());
    let mut parts = text.splitn(3, ':');
    let source = parts.next().filter(|source| !source.is_empty()).ok_or_else(bad)?;
    let source = directory.join(source);
    let (node, access) = match (parts.next(), parts.next()) {
        // Docker takes what looks like an access for one.
        (Some(access), None) if is_access(access) => (None, access),
        (node, access) => (node, access.unwrap_or("rwm")),
    };
    let node = match node {
        Some(node) => node.to_owned(),
        None => source.to_str().ok_or_else(bad)?.to_owned(),
    };
    let node = clean(&node).filter(|node| node != "/").ok_or_else(bad)?;
    if !is_access(access) {
        return Err(bad());
    }
    Ok(Device { source, node, access: access.to_owned() })
}

fn is_access(text: &str) -> bool {
    !text.is_empty() && text.len() <= 3 && text.chars().all(|letter| "rwm".contains(letter))
}

/// `--mount`; a relative source is taken from `directory`.
pub fn mount(text: &str, directory: &Path) -> Result<MountFlag, SettingError> {
    let bad = || SettingError::Mount(text.to_owned());
    let (mut kind, mut source, mut target, mut read_only) = (None, None, None, false);
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match (key, value) {
            ("type", value) => kind = Some(value),
            ("source" | "src", value) => source = Some(value),
            ("target" | "destination" | "dst", value) => target = Some(value),
            ("readonly" | "ro", "" | "true" | "1") => read_only = true,
            ("readonly" | "ro", "false" | "0") => read_only = false,
            _ => return Err(bad()),
        }
    }
    let source = source.filter(|source| !source.is_empty()).ok_or_else(bad)?;
    let source = directory.join(source);
    let target = target.and_then(clean).filter(|target| target != "/").ok_or_else(bad)?;
    match kind {
        Some("image") => Ok(MountFlag::Image(ImageMount { source, target, read_only })),
        Some("bind") => {
            let (source, destination) = (Some(source), target);
            Ok(MountFlag::Bind(Volume { source, destination, read_only }))
        }
        _ => Err(bad()),
    }
}

/// Puts the disks of the flags into the specification.
pub fn apply(spec: &mut Spec, settings: &Settings) -> Result<(), DiskFlagError> {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    let mut disks: Vec<String> = Vec::new();
    for mount in &settings.images {
        let access = if mount.read_only { ":ro" } else { "" };
        let (source, target) = (plain(&mount.source)?, plain(Path::new(&mount.target))?);
        disks.push(format!("{source}{access},mount={target}"));
    }
    for device in &settings.devices {
        let failed = |error| DiskFlagError::Device(device.source.clone(), error);
        let meta = std::fs::metadata(&device.source).map_err(failed)?;
        if meta.file_type().is_block_device() {
            add_device(spec, device, meta.rdev())?;
        } else if meta.is_file() {
            let access = if device.access.contains('w') { "" } else { ":ro" };
            let (source, node) = (plain(&device.source)?, plain(Path::new(&device.node))?);
            disks.push(format!("{source}{access},node={node}"));
        } else {
            return Err(DiskFlagError::Kind(device.source.clone()));
        }
    }
    for (index, text) in disks.into_iter().enumerate() {
        annotations.insert(format!("io.bulkhead.block.disk-{index}"), text);
    }
    spec.set_annotations(Some(annotations));
    Ok(())
}

/// Makes `image` the root file system: what the container's own directory holds lies over it.
pub fn set_root(spec: &mut Spec, image: &Path) -> Result<(), DiskFlagError> {
    let text = format!("{}:ro,type=erofs,overlay,layer", plain(image)?);
    spec.annotations_mut().get_or_insert_default().insert(ROOT.to_owned(), text);
    Ok(())
}

fn plain(path: &Path) -> Result<&str, DiskFlagError> {
    let text = path.to_str().filter(|text| !text.contains(','));
    text.ok_or_else(|| DiskFlagError::Comma(path.to_owned()))
}

/// As `docker run --device` has it: the node, and a rule for the cgroup.
fn add_device(spec: &mut Spec, device: &Device, number: u64) -> Result<(), DiskFlagError> {
    let major = i64::from(rustix::fs::major(number));
    let minor = i64::from(rustix::fs::minor(number));
    let linux = spec.linux_mut().get_or_insert_default();
    let node: LinuxDevice = LinuxDeviceBuilder::default()
        .path(&device.node)
        .typ(LinuxDeviceType::B)
        .major(major)
        .minor(minor)
        .file_mode(0o660_u32)
        .uid(0_u32)
        .gid(0_u32)
        .build()?;
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.push(node);
    linux.set_devices(Some(devices));
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(
        LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::B)
            .major(major)
            .minor(minor)
            .access(&device.access)
            .build()?,
    );
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_docker_does() {
        let device = |text: &str| device(text, Path::new("/here"));
        for (text, source, node, access) in [
            ("/dev/sda", "/dev/sda", "/dev/sda", "rwm"),
            ("/dev/sda:/dev/xvda", "/dev/sda", "/dev/xvda", "rwm"),
            ("/dev/sda:/dev/xvda:r", "/dev/sda", "/dev/xvda", "r"),
            ("/dev/sda:r", "/dev/sda", "/dev/sda", "r"),
            ("disk.img:/dev/x:rw", "/here/disk.img", "/dev/x", "rw"),
        ] {
            let expected =
                Device { source: source.into(), node: node.into(), access: access.into() };
            assert_eq!(device(text), Ok(expected), "{text}");
        }
        for text in ["", ":/dev/x", "/dev/sda:x", "/dev/sda:/dev/x:q", "/dev/sda:/", "a:/b:"] {
            assert_eq!(device(text), Err(SettingError::Device(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn mounts_are_read_as_docker_does() {
        let mount = |text: &str| mount(text, Path::new("/here"));
        let image = |source: &str, read_only| {
            let (source, target) = (source.into(), "/x".to_owned());
            Ok(MountFlag::Image(ImageMount { source, target, read_only }))
        };
        assert_eq!(mount("type=image,source=/a.img,target=/x"), image("/a.img", false));
        assert_eq!(mount("type=image,src=a,dst=/x/,readonly"), image("/here/a", true));
        assert_eq!(mount("type=image,src=a,dst=/x,ro=false"), image("/here/a", false));
        assert!(matches!(mount("type=bind,src=/a,dst=/b"), Ok(MountFlag::Bind(_))));
        for text in [
            "",
            "type=image",
            "type=image,source=/a",
            "type=tmpfs,source=a,target=/x",
            "type=image,source=/a,target=x",
            "type=image,source=/a,target=/",
            "source=/a,target=/x",
            "type=image,source=/a,target=/x,size=1",
        ] {
            assert_eq!(mount(text), Err(SettingError::Mount(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn disks_become_annotations_and_devices() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let settings = Settings {
            images: vec![ImageMount {
                source: "/a.img".into(),
                target: "/data".into(),
                read_only: true,
            }],
            devices: vec![Device {
                source: file.path().into(),
                node: "/dev/x".into(),
                access: "r".into(),
            }],
            ..Settings::default()
        };
        let mut spec = Spec::default();
        apply(&mut spec, &settings).unwrap();
        set_root(&mut spec, Path::new("/store/images/k")).unwrap();
        let annotations = spec.annotations().clone().unwrap();
        assert_eq!(annotations[ROOT], "/store/images/k:ro,type=erofs,overlay,layer");
        assert_eq!(annotations["io.bulkhead.block.disk-0"], "/a.img:ro,mount=/data");
        let node = format!("{}:ro,node=/dev/x", file.path().display());
        assert_eq!(annotations["io.bulkhead.block.disk-1"], node);
        let null = Device { source: "/dev/null".into(), node: "/n".into(), access: "r".into() };
        let settings = Settings { devices: vec![null], ..Settings::default() };
        let refused = apply(&mut spec, &settings).unwrap_err();
        assert!(matches!(refused, DiskFlagError::Kind(_)));
        let refused = set_root(&mut spec, Path::new("/a,b"));
        assert!(matches!(refused, Err(DiskFlagError::Comma(_))));
    }
}
