//! What the flags of `launch` say about a container, and how their texts are read.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::disks::{Device, ImageMount};
use super::network::NetworkChoice;
use crate::uplink::Port;

/// Smallest `-m`, Docker's.
const MEMORY_MIN: u64 = 6 << 20;
/// Length of a period of the CPU controller, in microseconds, Docker's.
pub const CPU_PERIOD_US: u64 = 100_000;

/// The container as the caller wants it; what is `None` or empty is up to the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Command, or arguments of the entry point.
    pub command: Vec<String>,
    /// Entry point; an empty one takes the image's away.
    pub entrypoint: Option<String>,
    /// Variables, each `NAME=VALUE` or `NAME` (see [`super::env`]).
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// Host name; else the start of the id.
    pub hostname: Option<String>,
    /// A terminal.
    pub terminal: bool,
    /// The root file system cannot be written to.
    pub read_only: bool,
    /// Memory of the container in bytes.
    pub memory: Option<u64>,
    /// CPU time in microseconds for each [`CPU_PERIOD_US`].
    pub cpu_quota_us: Option<i64>,
    /// What is mounted.
    pub volumes: Vec<Volume>,
    /// Labels, each `NAME=VALUE`.
    pub labels: Vec<String>,
    /// Block devices and image files that are nodes of the container.
    pub devices: Vec<Device>,
    /// File systems in images that are mounted.
    pub images: Vec<ImageMount>,
    /// What the container is connected with.
    pub network: NetworkChoice,
    /// Ports of the host that lead to the container.
    pub ports: Vec<Port>,
    /// More names in `/etc/hosts`.
    pub add_hosts: Vec<(String, IpAddr)>,
    /// Nameservers; else those of the host.
    pub dns: Vec<IpAddr>,
}

/// One `-v`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Absolute path on the host; none for a directory of the container's own.
    pub source: Option<PathBuf>,
    /// Absolute path in the container.
    pub destination: String,
    /// It cannot be written to.
    pub read_only: bool,
}

/// Why the text of a flag is not taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingError {
    /// Not a size.
    #[error("{0:?} is not a size: a number with b, k, m or g is wanted, as 512m")]
    Size(String),
    /// Too little memory.
    #[error("minimum memory limit allowed is 6MB")]
    Memory,
    /// Not a number of CPUs.
    #[error("{0:?} is not a number of CPUs: one of at least 0.01 is wanted, as 1.5")]
    Cpus(String),
    /// Not a volume.
    #[error("{0:?} is not a volume: SRC:DST or SRC:DST:ro with absolute paths is wanted")]
    Volume(String),
    /// A volume by name.
    #[error("{0:?} is the name of a volume: only directories and files of the host are mounted")]
    NamedVolume(String),
    /// An option that cannot be had.
    #[error("option {option:?} of volume {volume:?} cannot be had: ro and rw are known")]
    VolumeOption {
        /// The volume.
        volume: String,
        /// The option.
        option: String,
    },
    /// Not a device.
    #[error("{0:?} is not a device: HOST[:GUEST[:rwm]] with absolute GUEST is wanted")]
    Device(String),
    /// Not a mount.
    #[error(
        "{0:?} is not a mount: type=image,source=FILE,target=DIR[,readonly] or \
         type=bind,source=SRC,target=DST[,readonly] is wanted"
    )]
    Mount(String),
    /// Not a root mode.
    #[error("{0:?} is not a root mode: share and image are known")]
    RootMode(String),
    /// Not a host name.
    #[error("{0:?} is not a host name")]
    Hostname(String),
    /// Not a label.
    #[error("{0:?} is not a label: NAME or NAME=VALUE is wanted")]
    Label(String),
}

/// A size as `512m`, `1.5g`, `1048576`; the letters are powers of 1024.
pub fn size(text: &str) -> Result<u64, SettingError> {
    let bad = || SettingError::Size(text.to_owned());
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(bad()),
    };
    scaled(digits, 1 << shift).ok_or_else(bad)
}

/// `-m`.
pub fn memory(text: &str) -> Result<u64, SettingError> {
    size(text).and_then(|size| if size < MEMORY_MIN { Err(SettingError::Memory) } else { Ok(size) })
}

/// `--cpus` as microseconds for each [`CPU_PERIOD_US`].
pub fn cpus(text: &str) -> Result<i64, SettingError> {
    let quota = scaled(text, CPU_PERIOD_US).and_then(|quota| i64::try_from(quota).ok());
    // The kernel takes no quota below a millisecond.
    quota.filter(|quota| *quota >= 1000).ok_or_else(|| SettingError::Cpus(text.to_owned()))
}

/// A decimal number, perhaps with a fraction, times `unit`.
fn scaled(text: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let ten = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / u128::from(ten);
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    whole.checked_add(u64::try_from(part).ok()?)
}

/// `-v`: `SRC:DST[:OPTIONS]`, or `DST` for a directory of the container's own. A relative SRC
/// starts with a dot and is taken from `directory`.
pub fn volume(text: &str, directory: &Path) -> Result<Volume, SettingError> {
    let bad = || SettingError::Volume(text.to_owned());
    let mut parts = text.splitn(3, ':');
    let first = parts.next().unwrap_or_default();
    let (source, destination) = match parts.next() {
        None => (None, first),
        Some(destination) => (Some(source(first, directory, text)?), destination),
    };
    let mut read_only = false;
    for option in parts.next().into_iter().flat_map(|options| options.split(',')) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            // Labels and caches that Linux without SELinux does not know either, and what is
            // the case anyway.
            "z" | "Z" | "cached" | "delegated" | "consistent" | "private" | "rprivate" => {}
            _ => {
                let (volume, option) = (text.to_owned(), option.to_owned());
                return Err(SettingError::VolumeOption { volume, option });
            }
        }
    }
    let destination = clean(destination).filter(|path| path != "/").ok_or_else(bad)?;
    Ok(Volume { source, destination, read_only })
}

fn source(text: &str, directory: &Path, volume: &str) -> Result<PathBuf, SettingError> {
    match text.as_bytes() {
        [b'/', ..] => Ok(PathBuf::from(text)),
        [b'.'] | [b'.', b'/' | b'.', ..] => Ok(directory.join(text)),
        [] => Err(SettingError::Volume(volume.to_owned())),
        _ => Err(SettingError::NamedVolume(text.to_owned())),
    }
}

/// An absolute path of the container without `.`, `..` and repeated slashes; `None` if it is
/// relative. `..` is taken by its letters, as Docker does.
pub fn clean(path: &str) -> Option<String> {
    let rest = path.strip_prefix('/')?;
    let mut parts = Vec::new();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

/// `--hostname`: letters, digits, hyphens and dots, at most 64 (Linux `HOST_NAME_MAX`).
pub fn hostname(text: &str) -> Result<String, SettingError> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    match (1..=64).contains(&text.len()) && text.bytes().all(valid) {
        true => Ok(text.to_owned()),
        false => Err(SettingError::Hostname(text.to_owned())),
    }
}

/// `-l`: `NAME=VALUE`, or `NAME` for an empty value.
pub fn label(text: &str) -> Result<String, SettingError> {
    match text.split_once('=') {
        Some(("", _)) => Err(SettingError::Label(text.to_owned())),
        Some(_) => Ok(text.to_owned()),
        None if text.is_empty() => Err(SettingError::Label(text.to_owned())),
        None => Ok(format!("{text}=")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_does() {
        for (text, expected) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("10b", 10),
            ("4k", 4096),
            ("512M", 512 << 20),
            ("512mb", 512 << 20),
            ("2GiB", 2 << 30),
            ("1.5g", 3 << 29),
        ] {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for text in ["", "m", "-1", "1x", "1.2.3", "1 g", "99999999999g", "1.", ".5", "1e3"] {
            assert_eq!(size(text), Err(SettingError::Size(text.to_owned())), "{text}");
        }
        assert_eq!(memory("5m"), Err(SettingError::Memory));
    }

    #[test]
    fn cpus_become_a_quota() {
        for (text, expected) in [("1", 100_000), ("0.5", 50_000), ("2.25", 225_000), ("0.01", 1000)]
        {
            assert_eq!(cpus(text), Ok(expected), "{text}");
        }
        for text in ["0", "0.001", "-1", "", "two", "1,5"] {
            assert!(matches!(cpus(text), Err(SettingError::Cpus(_))), "{text}");
        }
    }

    #[test]
    fn volumes_are_read_as_docker_does() {
        let here = Path::new("/here");
        let volume = |text: &str| volume(text, here);
        let of = |source: Option<&str>, destination: &str, read_only| {
            let (source, destination) = (source.map(PathBuf::from), destination.to_owned());
            Ok(Volume { source, destination, read_only })
        };
        for (text, expected) in [
            ("/a:/b", of(Some("/a"), "/b", false)),
            ("/a:/b/../c/:ro", of(Some("/a"), "/c", true)),
            ("/a:/b:rw,z", of(Some("/a"), "/b", false)),
            ("./a:/b", of(Some("/here/./a"), "/b", false)),
            (".:/b", of(Some("/here/."), "/b", false)),
            ("/data", of(None, "/data", false)),
        ] {
            assert_eq!(volume(text), expected, "{text}");
        }
        for text in ["", "/a:", "/a:b", ":/b", "/a:/", "/a:/..", "data"] {
            assert!(matches!(volume(text), Err(SettingError::Volume(_))), "{text}");
        }
        assert!(matches!(volume("name:/b"), Err(SettingError::NamedVolume(_))));
        assert!(matches!(volume("/a:/b:shared"), Err(SettingError::VolumeOption { .. })));
    }

    #[test]
    fn hostnames_and_labels_are_checked() {
        assert_eq!(hostname("a-1.example"), Ok("a-1.example".to_owned()));
        for text in ["", "a b", "a\n", &"x".repeat(65)] {
            assert!(hostname(text).is_err(), "{text:?}");
        }
        assert_eq!(label("a"), Ok("a=".to_owned()));
        assert_eq!(label("a=b=c"), Ok("a=b=c".to_owned()));
        assert!(label("").is_err() && label("=x").is_err());
    }
}
