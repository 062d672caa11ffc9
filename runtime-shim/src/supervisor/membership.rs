//! Which sandbox a container is to be in, and which of its namespaces are those of the containers
//! there: what the planner cannot know, as it looks at processes of the host.
//!
//! Only containers below the same `--root` are looked at, which belongs to one user.
//!
//! All namespaces of a supervisor but the network's are the host's, so a path to one says by its
//! pid which container is meant; a network namespace is compared itself.

use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType as Kind, Spec};

use crate::failure::Failure;
use crate::plan::{Membership, Policy, Shared, sandbox_name};
use crate::process::ProcessId;
use crate::request::SandboxOptions;
use crate::state::{Record, StateError, Status, Store, View};

const PHASE: &str = "looking up the sandbox";

/// A place in a sandbox that runs.
pub(super) struct Place {
    pub sandbox: View,
    pub membership: Membership,
}

/// The place that the specification asks for, if it does.
pub(super) fn find(options: &SandboxOptions, policy: &Policy) -> Result<Option<Place>, Failure> {
    let Some(name) = sandbox_name(&options.spec, policy)? else { return Ok(None) };
    let store = Store::new(&options.state_root);
    let sandbox = match store.view(&name.id) {
        Ok(view) => view,
        // A pod without a first container: its containers have nothing in common.
        Err(StateError::Absent(_)) if name.by_engine && !names_a_path(&options.spec) => {
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    check(&sandbox)?;
    let own = ProcessId::own().map_err(|e| Failure::new(PHASE, e.to_string(), "mount /proc"))?;
    let shared = shared(&options.spec, &store, &sandbox)?;
    // No two processes of the host have the same pid and start.
    let prefix = format!("{}-{}-", own.pid, own.started);
    let membership = Membership { sandbox: name.id, prefix, shared };
    Ok(Some(Place { sandbox, membership }))
}

fn check(sandbox: &View) -> Result<(), Failure> {
    let id = &sandbox.record.id;
    if let Some(other) = &sandbox.record.sandbox {
        let cause = format!("container {id} is in the microVM of {other} itself");
        return Err(Failure::new(PHASE, cause, &format!("name {other}")));
    }
    match sandbox.status() {
        Status::Created | Status::Running | Status::Paused => Ok(()),
        status => {
            let cause = format!("container {id} is {status}, and its microVM with it");
            Err(Failure::new(PHASE, cause, "name one that runs"))
        }
    }
}

fn names_a_path(spec: &Spec) -> bool {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    let mut paths = namespaces.filter_map(|namespace| namespace.path().as_ref());
    paths.any(|path| !path.as_os_str().is_empty())
}

/// The namespaces of `spec` that are those of containers in the sandbox. Others are left out; the
/// planner refuses them.
fn shared(spec: &Spec, store: &Store, sandbox: &View) -> Result<Vec<Shared>, Failure> {
    let mut containers = vec![];
    for view in store.list()?.into_iter().flatten() {
        let record = &view.record;
        let inside =
            record.id == sandbox.record.id || record.sandbox.as_ref() == Some(&sandbox.record.id);
        if inside && view.status() != Status::Stopped {
            containers.push(view.record);
        }
    }
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    let shared = namespaces.filter_map(|namespace| {
        let path = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty())?;
        let with = match namespace.typ() {
            Kind::Network => is_network_of(path, &sandbox.record).then_some(&sandbox.record),
            Kind::Pid | Kind::Ipc | Kind::Uts => {
                let pid = pid_of(path, namespace.typ())?;
                containers.iter().find(|record| record.supervisor.pid == pid)
            }
            Kind::Mount | Kind::Cgroup | Kind::User | Kind::Time => None,
        };
        Some(Shared { kind: namespace.typ(), with: with?.id.clone() })
    });
    Ok(shared.collect())
}

/// Whether `path` leads to the network namespace that the sandbox's supervisor lives in.
fn is_network_of(path: &Path, sandbox: &Record) -> bool {
    let own = format!("/proc/{}/ns/net", sandbox.supervisor.pid);
    let number = |path: &Path| metadata(path).map(|found| (found.dev(), found.ino())).ok();
    number(path).is_some_and(|named| Some(named) == number(Path::new(&own)))
}

/// The pid in `/proc/PID/ns/KIND`.
fn pid_of(path: &Path, kind: Kind) -> Option<u32> {
    let file = match kind {
        Kind::Pid => "pid",
        Kind::Ipc => "ipc",
        Kind::Uts => "uts",
        _ => return None,
    };
    let mut parts = path.strip_prefix("/proc").ok()?.iter();
    let pid = parts.next()?.to_str()?.parse().ok()?;
    let rest: Vec<_> = parts.collect();
    (rest == ["ns", file]).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_is_read_from_the_path_of_its_kind_alone() {
        assert_eq!(pid_of(Path::new("/proc/42/ns/ipc"), Kind::Ipc), Some(42));
        for path in
            ["/proc/42/ns/uts", "/proc/42/ns", "/proc/self/ns/ipc", "/run/42/ns/ipc", "/proc/42"]
        {
            assert_eq!(pid_of(Path::new(path), Kind::Ipc), None, "{path}");
        }
    }
}
