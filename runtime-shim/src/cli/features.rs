//! `features` (`features.md` of the runtime specification).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::print_json;
use super::version::SPEC_VERSION;
use crate::failure::Failure;
use crate::plan::{MOUNT_OPTIONS, annotations};

pub(super) fn run() -> Result<u8, Failure> {
    print_json(&features())
}

fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": &MOUNT_OPTIONS[..],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": {
                "v1": false, "v2": true, "systemd": true, "systemdUser": false, "rdma": false
            },
            "seccomp": {"enabled": true, "archs": ["SCMP_ARCH_X86_64"]},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": false}
        },
        "annotations": metadata(),
        "potentiallyUnsafeConfigAnnotations": ["io.bulkhead."]
    })
}

/// What this runtime is, and the annotations of containers that it reads.
fn metadata() -> BTreeMap<&'static str, &'static str> {
    let own = [("io.bulkhead.version", env!("CARGO_PKG_VERSION")), ("io.bulkhead.vm", "kvm")];
    own.into_iter().chain(annotations()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_the_form_of_the_specification() {
        let typed: oci_spec::runtime::Features = serde_json::from_value(features()).unwrap();
        assert_eq!(typed.oci_version_max(), SPEC_VERSION);
        assert!(MOUNT_OPTIONS.is_sorted());
    }
}
