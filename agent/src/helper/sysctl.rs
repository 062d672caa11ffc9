//! `linux.sysctl`. libcontainer makes the settings of namespaces that the container has of its own;
//! a setting that the kernel lacks it does not name, so that is looked for before.
//!
//! A container that has no network namespace of its own in the guest has the guest's, so its settings
//! of the network are the guest's. libcontainer would refuse them there.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, ErrorKind, Write},
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use thiserror::Error;

/// What those of the network begin with.
const NETWORK: &str = "net.";
/// Where a setting may be missing.
const KERNEL: &str = "the guest's kernel";
const NEW_NETWORK: &str = "a new network namespace of the guest";

/// Why a setting is not made.
#[derive(Debug, Error)]
pub enum SysctlError {
    /// Not a name of a file below `/proc/sys/net`.
    #[error("linux.sysctl {0:?} is no setting of the network")]
    Name(String),
    /// The kernel has no such setting.
    #[error("linux.sysctl {name}: no such setting in {place} (leave it out)")]
    Missing {
        /// Name.
        name: String,
        /// What does not have it.
        place: &'static str,
    },
    /// Opening it.
    #[error("linux.sysctl {name}: open it: {source}")]
    Open {
        /// Name.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// A network namespace to look for it in.
    #[error("linux.sysctl: make a network namespace to look for settings in: {0}")]
    Namespace(#[source] io::Error),
    /// Writing it.
    #[error("linux.sysctl {name}={value}: {source}")]
    Write {
        /// Name.
        name: String,
        /// Value.
        value: String,
        /// Why not.
        source: io::Error,
    },
}

/// Takes the network's settings out of a specification without a network namespace.
pub fn take(spec: &mut Spec) -> HashMap<String, String> {
    let Some(linux) = spec.linux_mut() else {
        return HashMap::new();
    };
    let mut spaces = linux.namespaces().iter().flatten();
    if spaces.any(|space| space.typ() == LinuxNamespaceType::Network) {
        return HashMap::new();
    }
    let all = linux.sysctl().clone().unwrap_or_default();
    let (network, rest) = all.into_iter().partition(|(name, _)| name.starts_with(NETWORK));
    linux.set_sysctl(Some(rest));
    network
}

/// Makes settings.
pub fn apply(settings: &HashMap<String, String>) -> Result<(), SysctlError> {
    settings.iter().try_for_each(|(name, value)| {
        let path = file(name).ok_or_else(|| SysctlError::Name(name.clone()))?;
        let mut file = open(&path).map_err(|error| refusal(name, &path, error))?;
        file.write_all(value.as_bytes()).map_err(|source| {
            let (name, value) = (name.clone(), value.clone());
            SysctlError::Write { name, value, source }
        })
    })
}

/// Looks for the settings that libcontainer will make; those of the network are then those of a new
/// namespace, since [`take`] has taken others.
pub fn check(spec: &Spec) -> Result<(), SysctlError> {
    let settings = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    let names = settings.into_iter().flatten().map(|(name, _)| name.as_str());
    let (network, others): (Vec<_>, Vec<_>) = names.partition(|name| name.starts_with(NETWORK));
    let failed = match (first_that_fails(&others), network.is_empty()) {
        (None, false) => in_new_network(|| first_that_fails(&network))?,
        (failed, _) => failed,
    };
    match failed {
        Some((name, error)) => Err(refusal(name, &libcontainers_file(name), error)),
        None => Ok(()),
    }
}

fn first_that_fails<'a>(names: &[&'a str]) -> Option<(&'a str, io::Error)> {
    names.iter().find_map(|name| Some((*name, open(&libcontainers_file(name)).err()?)))
}

/// Does `look` in a new network namespace: a thread has it, and takes it with it.
fn in_new_network<T: Send>(look: impl FnOnce() -> T + Send) -> Result<T, SysctlError> {
    let look = || {
        // SAFETY: only the thread's network namespace changes; no descriptor table is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        Ok(look())
    };
    let looked = thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, look)?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    });
    looked.map_err(SysctlError::Namespace)
}

/// Opens a setting as for writing it, which changes nothing.
fn open(path: &Path) -> io::Result<File> {
    File::options().write(true).open(path)
}

/// Why a setting cannot be opened; a place that lacks it, by name.
fn refusal(name: &str, path: &Path, source: io::Error) -> SysctlError {
    let name = name.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            let place = if path.exists() { NEW_NETWORK } else { KERNEL };
            SysctlError::Missing { name, place }
        }
        _ => SysctlError::Open { name, source },
    }
}

/// The file that libcontainer takes for a setting: every dot separates.
fn libcontainers_file(name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/{}", name.replace('.', "/")))
}

/// The file of a setting. Dots separate; a slash stands for the dot in an interface's name
/// (sysctl(8)).
fn file(name: &str) -> Option<PathBuf> {
    let valid =
        |part: &str| !part.is_empty() && part != "/" && part != "//" && !part.contains('\0');
    let parts: Vec<&str> = name.split('.').collect();
    if !parts.iter().all(|part| valid(part)) {
        return None;
    }
    let parts = parts.iter().map(|part| part.replace('/', "."));
    Some(std::iter::once("/proc/sys".to_owned()).chain(parts).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_is_a_file_below_the_networks() {
        assert_eq!(
            file("net.core.somaxconn").as_deref(),
            Some(Path::new("/proc/sys/net/core/somaxconn"))
        );
        assert_eq!(
            file("net.ipv4.conf.eth0/1.forwarding").as_deref(),
            Some(Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding"))
        );
        for name in ["net..x", "net.//.kernel", "net./.x", "net.", "net.a\0"] {
            assert_eq!(file(name), None, "{name}");
        }
    }

    #[test]
    fn setting_that_is_missing_is_named() {
        let given = |name: &str| HashMap::from([(name.to_owned(), "1".to_owned())]);
        for name in ["net.ipv4.nonsense", "net.core.somaxconn.x"] {
            let missing = format!(
                "linux.sysctl {name}: no such setting in the guest's kernel (leave it out)"
            );
            assert_eq!(apply(&given(name)).unwrap_err().to_string(), missing);
            let (name, error) = first_that_fails(&[name]).unwrap();
            let refused = refusal(name, &libcontainers_file(name), error).to_string();
            assert_eq!(refused, missing);
        }
    }

    #[test]
    fn setting_of_the_first_network_namespace_alone_is_not_said_to_be_missing_everywhere() {
        let there = Path::new("/proc/sys/kernel/ostype");
        let refused = refusal("net.core.x", there, ErrorKind::NotFound.into()).to_string();
        let place = "a new network namespace of the guest";
        assert_eq!(
            refused,
            format!("linux.sysctl net.core.x: no such setting in {place} (leave it out)")
        );
    }

    #[test]
    fn settings_stay_where_the_container_has_a_network_namespace() {
        let spec = |namespaces: serde_json::Value| -> Spec {
            serde_json::from_value(serde_json::json!({
                "ociVersion": "1.0.2",
                "linux": {
                    "namespaces": namespaces,
                    "sysctl": {"net.core.somaxconn": "5", "kernel.msgmax": "6"},
                },
            }))
            .unwrap()
        };
        let mut own = spec(serde_json::json!([{"type": "network"}]));
        assert!(take(&mut own).is_empty());
        assert_eq!(own.linux().as_ref().unwrap().sysctl().as_ref().unwrap().len(), 2);
        let mut shared = spec(serde_json::json!([{"type": "pid"}]));
        assert_eq!(take(&mut shared).len(), 1);
        let left = shared.linux().as_ref().unwrap().sysctl().clone().unwrap();
        assert_eq!(left.keys().collect::<Vec<_>>(), ["kernel.msgmax"]);
    }
}
