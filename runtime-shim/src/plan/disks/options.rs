//! Options of the annotations of disks: `PATH[:ro][,NAME[=VALUE]...]`.

use std::path::{Path, PathBuf};

use bulkhead_protocol::limits::BLOCK_QUEUES_MAX;
use bulkhead_protocol::vm::RawRateLimit;

use super::FileSystem;
use crate::plan::rates::{bucket, size};
use crate::plan::{PlanError, check_path};

const RATE: &str = "iops= and bps= take a number above 0";

/// The options of an annotation.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub path: PathBuf,
    pub read_only: bool,
    pub fstype: Option<FileSystem>,
    pub queues: Option<u32>,
    rate: RawRateLimit,
    pub overlay: Option<Option<u64>>,
    pub layer: bool,
    pub mount: Option<String>,
    pub node: Option<String>,
}

impl Options {
    pub fn parse(field: &str, text: &str) -> Result<Self, PlanError> {
        let invalid = |reason| PlanError::invalid(field, text, reason);
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default();
        let (path, read_only) = match (path.strip_suffix(":ro"), path.strip_suffix(":rw")) {
            (Some(path), _) => (path, true),
            (None, Some(path)) => (path, false),
            (None, None) => (path, false),
        };
        check_path(field, Path::new(path))?;
        let mut options = Self { path: path.into(), read_only, ..Self::default() };
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            options.set(key, value).map_err(invalid)?;
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "ro" if value.is_empty() => self.read_only = true,
            "layer" if value.is_empty() => self.layer = true,
            "overlay" if value.is_empty() => self.overlay = Some(None),
            "overlay" => {
                let bytes = size(value).filter(|bytes| *bytes > 0);
                self.overlay = Some(Some(bytes.ok_or("overlay= takes a size, as 512m")?));
            }
            "type" => {
                let known = FileSystem::parse(value);
                self.fstype = Some(known.ok_or("type= is one of erofs, ext4 and squashfs")?);
            }
            "mount" => self.mount = Some(absolute(value)?),
            "node" => self.node = Some(absolute(value)?),
            "queues" => {
                let count = value.parse().ok().filter(|n| (1..=BLOCK_QUEUES_MAX).contains(n));
                self.queues = Some(count.ok_or("queues= takes 1 to 8")?);
            }
            "iops" => self.rate.ops = Some(bucket(value.parse().ok()).ok_or(RATE)?),
            "bps" => self.rate.bytes = Some(bucket(size(value)).ok_or(RATE)?),
            _ => {
                return Err(
                    "ro, type=, mount=, node=, overlay, layer, iops=, bps= and queues= are known",
                );
            }
        }
        Ok(())
    }

    pub fn limit(&self) -> Option<RawRateLimit> {
        (self.rate != RawRateLimit::default()).then_some(self.rate)
    }
}

/// A path of the container below its root.
fn absolute(value: &str) -> Result<String, &'static str> {
    let path = Path::new(value);
    let plain = path.is_absolute() && !path.components().any(|c| c.as_os_str() == "..");
    match plain && path.parent().is_some() && !value.contains('\0') {
        true => Ok(value.to_owned()),
        false => Err("mount= and node= take absolute paths without `..`"),
    }
}
