//! Whether the root file system of a container can be an image that its caller makes.

use bulkhead_protocol::limits::BLOCKS_MAX;
use oci_spec::runtime::{LinuxDeviceType, Spec};
use thiserror::Error;

use super::disks::{BLOCK, ROOT};
use super::{PlanError, Policy, sandbox_name};

/// What speaks against an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RootObstacle {
    /// The container says itself what its root is.
    #[error("an annotation of the container, {ROOT}, has another root")]
    Carried,
    /// It joins a microVM.
    #[error("the container is to be in another one's microVM, which takes no more disks")]
    Member,
    /// The operator says no.
    #[error("this host's operator does not allow the annotation {ROOT}")]
    Forbidden,
    /// The operator has chosen a root for all that choose none.
    #[error("this host's operator has chosen the root of all containers")]
    Given,
    /// It has all other disks that there can be.
    #[error("the container has {BLOCKS_MAX} disks already, and a microVM has no more")]
    Disks,
}

impl RootObstacle {
    /// Whether it is a matter of defaults: who asks for an image has one all the same.
    pub fn is_overridden(self) -> bool {
        self == Self::Given
    }
}

/// What keeps the root of the container of `spec` from being an image, if anything does.
pub fn root_obstacle(spec: &Spec, policy: &Policy) -> Result<Option<RootObstacle>, PlanError> {
    let carried = spec.annotations().as_ref();
    let all = policy.complete(carried)?;
    let devices = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref());
    let blocks = devices.unwrap_or_default().iter().filter(|d| d.typ() == LinuxDeviceType::B);
    let disks = all.keys().filter(|key| key.starts_with(BLOCK)).count() + blocks.count();
    let found = [
        (carried.is_some_and(|carried| carried.contains_key(ROOT)), RootObstacle::Carried),
        (sandbox_name(spec, policy)?.is_some(), RootObstacle::Member),
        (disks >= BLOCKS_MAX, RootObstacle::Disks),
        (!policy.allows(ROOT), RootObstacle::Forbidden),
        (all.contains_key(ROOT), RootObstacle::Given),
    ];
    Ok(found.into_iter().find_map(|(is_there, obstacle)| is_there.then_some(obstacle)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::policy::parse;
    use super::*;

    fn found(annotations: Value, policy: &str) -> Option<RootObstacle> {
        let mut spec = Spec::default();
        spec.set_annotations(serde_json::from_value(annotations).unwrap());
        root_obstacle(&spec, &parse(policy).unwrap()).unwrap()
    }

    #[test]
    fn annotations_and_the_operator_speak_against_an_image() {
        let given = r#"defaults = {"io.bulkhead.root" = "/root.img"}"#;
        let both = format!("annotations = []\n{given}");
        let other = r#"annotations = ["io.bulkhead.vcpus", "io.bulkhead.sandbox"]"#;
        let allowed = r#"annotations = ["io.bulkhead.root", "io.bulkhead.sandbox"]"#;
        let engine = json!({
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "p",
        });
        for (annotations, policy, expected) in [
            (json!({}), "", None),
            (json!({}), allowed, None),
            (json!({"io.bulkhead.root": "/r"}), given, Some(RootObstacle::Carried)),
            (json!({}), other, Some(RootObstacle::Forbidden)),
            (json!({}), &both, Some(RootObstacle::Forbidden)),
            (json!({}), given, Some(RootObstacle::Given)),
            (json!({"io.bulkhead.sandbox": "p"}), other, Some(RootObstacle::Member)),
            (json!({"io.bulkhead.sandbox": "p"}), allowed, Some(RootObstacle::Member)),
            (engine, "", Some(RootObstacle::Member)),
        ] {
            assert_eq!(found(annotations.clone(), policy), expected, "{annotations} {policy}");
        }
    }

    #[test]
    fn root_is_one_of_the_disks_of_a_microvm() {
        let disks = |count: usize| {
            let names = (0..count).map(|index| format!("{BLOCK}d{index}"));
            json!(names.map(|name| (name, "/d.img")).collect::<std::collections::BTreeMap<_, _>>())
        };
        assert_eq!(found(disks(BLOCKS_MAX - 1), ""), None);
        assert_eq!(found(disks(BLOCKS_MAX), ""), Some(RootObstacle::Disks));
        let given = r#"defaults = {"io.bulkhead.block.of-all" = "/all.img"}"#;
        assert_eq!(found(disks(BLOCKS_MAX - 1), given), Some(RootObstacle::Disks));
        let mut spec = Spec::default();
        spec.set_annotations(serde_json::from_value(disks(BLOCKS_MAX - 1)).unwrap());
        let device = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]);
        let linux = spec.linux_mut().get_or_insert_default();
        linux.set_devices(serde_json::from_value(device).unwrap());
        let found = root_obstacle(&spec, &Policy::default()).unwrap();
        assert_eq!(found, Some(RootObstacle::Disks));
    }
}
