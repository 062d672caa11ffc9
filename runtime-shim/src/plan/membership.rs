//! A container in the microVM of another one: which, and what it has in common with the
//! containers there.

use std::path::Path;

use bulkhead_protocol::guest::SHARE_DIR;
use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::annotations::{PREFIX, field};
use super::{Note, PlanError, Policy, SandboxPlan, SharePlan, guest_path, namespaces, plan_in};
use crate::cgroup::settings;

/// What a container says itself.
pub(super) const OWN: &str = "io.bulkhead.sandbox";
/// What engines say of the containers of a pod: the annotation that tells a container from the
/// pod's first, and the one with the id of that (containerd's, CRI-O's and Podman's).
const ENGINES: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];
/// What they call a container that is not the first.
const CONTAINER: &str = "container";

/// The sandbox that a specification names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxName {
    /// The first container of the sandbox.
    pub id: ContainerId,
    /// Whether an engine names it, for every container of a pod, or the container itself.
    pub by_engine: bool,
}

/// A namespace that a container shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// Its kind.
    pub kind: LinuxNamespaceType,
    /// The container of the sandbox whose it is.
    pub with: ContainerId,
}

impl Shared {
    /// The specification's word for its kind.
    pub fn kind_name(&self) -> &'static str {
        namespaces::name(self.kind)
    }
}

/// A container's place in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The first container of the sandbox.
    pub sandbox: ContainerId,
    /// What the names of its shares begin with: no other container of the sandbox ever has the
    /// same.
    pub prefix: String,
    /// The namespaces that its specification names by a path.
    pub shared: Vec<Shared>,
}

impl Membership {
    /// Whether its network is that of the guest.
    pub fn shares_network(&self) -> bool {
        self.shares(LinuxNamespaceType::Network)
    }

    /// Whether it shares a namespace of this kind.
    pub(super) fn shares(&self, kind: LinuxNamespaceType) -> bool {
        self.shared.iter().any(|shared| shared.kind == kind)
    }
}

/// The sandbox that `spec` wants to be in, if it does.
pub fn sandbox_name(spec: &Spec, policy: &Policy) -> Result<Option<SandboxName>, PlanError> {
    let Some(all) = spec.annotations() else { return Ok(None) };
    let id = |key: &str, text: &String| {
        let reason = "the id of a container is wanted";
        text.parse().map_err(|_| PlanError::invalid(field(key), text, reason))
    };
    if let Some(text) = all.get(OWN) {
        if !policy.allows(OWN) {
            let reason = "this host's operator does not allow the annotation";
            return Err(PlanError::forbidden(field(OWN), text, reason));
        }
        return Ok(Some(SandboxName { id: id(OWN, text)?, by_engine: false }));
    }
    for (kind, key) in ENGINES {
        if let (Some(CONTAINER), Some(text)) = (all.get(kind).map(String::as_str), all.get(key)) {
            return Ok(Some(SandboxName { id: id(key, text)?, by_engine: true }));
        }
    }
    Ok(None)
}

/// As [`super::plan`], for a container in the sandbox of `membership`. What belongs to a microVM
/// as a whole is dropped with a note where the sandbox has decided it, and refused where the
/// container would lack something.
pub fn plan_member(
    id: &ContainerId,
    bundle: &Path,
    spec: Spec,
    policy: &Policy,
    membership: &Membership,
) -> Result<SandboxPlan, PlanError> {
    let annotations = spec.annotations().clone().unwrap_or_default();
    let mut plan = plan_in(id, bundle, spec, policy, Some(membership))?;
    if let Some(disk) = plan.disks.first() {
        let reason = "a microVM that runs takes no more disks; give it to the sandbox's first \
                      container";
        return Err(PlanError::refused(disk.field.clone(), reason));
    }
    if let Some(field) = settings::need_host(&plan.host_resources) {
        let reason = "it holds for a whole microVM; give it to the sandbox's first container";
        return Err(PlanError::refused(field, reason));
    }
    let of_microvm = |key: &&String| key.starts_with(PREFIX) && *key != OWN;
    let mut keys: Vec<_> = annotations.keys().filter(of_microvm).collect();
    keys.sort();
    let reason = "it is the sandbox's first container that the microVM is made for";
    plan.notes.extend(keys.into_iter().map(|key| Note { field: field(key), reason }));
    rename_shares(&mut plan, &membership.prefix);
    Ok(plan)
}

/// Gives all shares names that no other container of the sandbox has.
fn rename_shares(plan: &mut SandboxPlan, prefix: &str) {
    let rename = |share: &mut SharePlan| share.name = format!("{prefix}{}", share.name);
    rename(&mut plan.root);
    plan.binds.iter_mut().for_each(rename);
    if let Some(root) = plan.guest_spec.root_mut() {
        root.set_path(guest_path(&plan.root.name));
    }
    for mount in plan.guest_spec.mounts_mut().iter_mut().flatten() {
        let source = mount.source().as_ref();
        let name = source.and_then(|source| source.strip_prefix(SHARE_DIR).ok());
        if let Some(name) = name.and_then(Path::to_str) {
            mount.set_source(Some(guest_path(&format!("{prefix}{name}"))));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::policy::parse;
    use super::*;

    fn spec(change: impl FnOnce(&mut Value)) -> Spec {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["a"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc"},
                {"destination": "/data", "type": "bind", "source": "/srv", "options": ["ro"]},
            ],
            "linux": {"namespaces": [
                {"type": "pid", "path": "/proc/7/ns/pid"}, {"type": "ipc"}, {"type": "mount"},
                {"type": "network", "path": "/proc/7/ns/net"},
            ]},
        });
        change(&mut spec);
        serde_json::from_value(spec).unwrap()
    }

    fn plan(shared: &[LinuxNamespaceType], spec: Spec) -> Result<SandboxPlan, PlanError> {
        let with: ContainerId = "first".parse().unwrap();
        let shared = shared.iter().map(|kind| Shared { kind: *kind, with: with.clone() });
        let membership =
            Membership { sandbox: with.clone(), prefix: "7-1-".into(), shared: shared.collect() };
        let id = "second".parse().unwrap();
        plan_member(&id, Path::new("/b"), spec, &Policy::default(), &membership)
    }

    const BOTH: [LinuxNamespaceType; 2] = [LinuxNamespaceType::Pid, LinuxNamespaceType::Network];

    #[test]
    fn sandbox_is_read_from_the_annotations_of_each_engine() {
        let name = |annotations: Value, policy: &Policy| {
            sandbox_name(&spec(|spec| spec["annotations"] = annotations), policy)
        };
        let all = Policy::default();
        let none = parse("annotations = []").unwrap();
        let found = |by_engine| Ok(Some(SandboxName { id: "p".parse().unwrap(), by_engine }));
        for (kind, key) in ENGINES {
            assert_eq!(name(json!({kind: "container", key: "p"}), &none), found(true));
            assert_eq!(name(json!({kind: "sandbox", key: "p"}), &all), Ok(None));
            assert!(name(json!({kind: "container", key: "../p"}), &all).is_err());
        }
        assert_eq!(name(json!({OWN: "p"}), &all), found(false));
        let refused = name(json!({OWN: "p"}), &none).unwrap_err();
        assert!(matches!(refused, PlanError::Forbidden { .. }), "{refused}");
        for id in ["", "..", "a/b"] {
            assert!(name(json!({OWN: id}), &all).is_err(), "{id:?}");
        }
        assert_eq!(name(json!({}), &all), Ok(None));
    }

    #[test]
    fn shares_of_a_member_have_names_of_their_own() {
        let plan = plan(&BOTH, spec(|_| {})).unwrap();
        assert_eq!((plan.root.name.as_str(), plan.binds[0].name.as_str()), ("7-1-root", "7-1-v0"));
        let root = plan.guest_spec.root().as_ref().unwrap();
        assert_eq!(root.path(), &guest_path("7-1-root"));
        let mounts = plan.guest_spec.mounts().as_ref().unwrap();
        assert_eq!(mounts[0].source().as_deref(), Some(Path::new("proc")));
        assert_eq!(mounts[1].source(), &Some(guest_path("7-1-v0")));
    }

    #[test]
    fn paths_of_the_sandbox_alone_are_taken_and_no_path_reaches_the_guest() {
        let kinds = |plan: &SandboxPlan| {
            let linux = plan.guest_spec.linux().clone().unwrap();
            let list = linux.namespaces().clone().unwrap();
            assert!(list.iter().all(|namespace| namespace.path().is_none()));
            list.iter().map(|namespace| namespace.typ().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&plan(&BOTH, spec(|_| {})).unwrap()), ["pid", "ipc", "mnt"]);
        // A network namespace of its own is one of the guest, with loopback alone.
        let apart = spec(|spec| spec["linux"]["namespaces"][3] = json!({"type": "network"}));
        assert_eq!(kinds(&plan(&BOTH[..1], apart).unwrap()).len(), 4);
        for (shared, word) in [(&BOTH[..1], "(network)"), (&BOTH[1..], "(pid)")] {
            let refused = plan(shared, spec(|_| {})).unwrap_err().to_string();
            assert!(refused.contains(word), "{refused}");
        }
    }

    #[test]
    fn what_belongs_to_a_whole_microvm_is_told_or_refused() {
        let vcpus = spec(|spec| spec["annotations"] = json!({"io.bulkhead.vcpus": "2"}));
        let notes = plan(&BOTH, vcpus).unwrap().notes;
        assert_eq!(notes[0].field, field("io.bulkhead.vcpus"));
        for change in [json!({"cpu": {"cpus": "0"}}), json!({"unified": {"io.weight": "7"}})] {
            let bound = spec(|spec| spec["linux"]["resources"] = change.clone());
            assert!(matches!(plan(&BOTH, bound), Err(PlanError::Refused { .. })), "{change}");
        }
        let disk = json!({"io.bulkhead.block.d": "/srv/d"});
        let refused = plan(&BOTH, spec(|spec| spec["annotations"] = disk)).unwrap_err();
        assert!(refused.to_string().contains("no more disks"), "{refused}");
    }
}
