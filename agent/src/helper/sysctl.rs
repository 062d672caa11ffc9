//! `linux.sysctl` of the network: a container that has no network namespace of its own in the
//! guest has the guest's, so its settings are the guest's. libcontainer would refuse them there.

use std::{collections::HashMap, fs, io, path::PathBuf};

use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};
use thiserror::Error;

/// What all of them begin with.
const NETWORK: &str = "net.";

/// Why a setting is not made.
#[derive(Debug, Error)]
pub enum SysctlError {
    /// Not a name of a file below `/proc/sys/net`.
    #[error("linux.sysctl {0:?} is no setting of the network")]
    Name(String),
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
        fs::write(path, value).map_err(|source| {
            let (name, value) = (name.clone(), value.clone());
            SysctlError::Write { name, value, source }
        })
    })
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
    use std::path::Path;

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
