//! `linux.namespaces`: namespaces without a path are made in the guest. A path leads to one of
//! the host, which no process of the guest can join. The network namespace alone is one of the
//! host either way: the container's interfaces are there, and the guest as a whole has them, so
//! that in the guest the container lives in the network namespace that the guest boots with.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType as Kind};

use super::{Membership, PlanError, check_path};

/// Network namespace on the host that the container's interfaces live in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkPlan {
    /// A new one, which an engine may populate.
    New,
    /// The one at this path.
    Path(PathBuf),
}

/// Checks the namespaces, leaves those to be made in the guest, and gives the network
/// namespace on the host. A container that is `named` has a name of host or domain.
///
/// A path that leads to a namespace of `membership`'s sandbox is taken for that in the guest.
pub(super) fn plan(
    linux: &mut Linux,
    named: bool,
    membership: Option<&Membership>,
) -> Result<NetworkPlan, PlanError> {
    let mut list = linux.namespaces().clone().unwrap_or_default();
    let mut network = NetworkPlan::New;
    for (i, namespace) in list.iter_mut().enumerate() {
        let field = format!("linux.namespaces[{i}]");
        check_kind(&field, namespace.typ())?;
        // An empty path is how some clients write none.
        let path = namespace.path().clone().filter(|p| !p.as_os_str().is_empty());
        namespace.set_path(None);
        match path {
            None => {}
            Some(_) if membership.is_some_and(|m| m.shares(namespace.typ())) => {}
            Some(_) if membership.is_some() => return Err(foreign_path(field, namespace.typ())),
            Some(path) if namespace.typ() == Kind::Network => {
                check_path(&format!("{field}.path"), &path)?;
                network = NetworkPlan::Path(path);
            }
            Some(_) => return Err(refused_path(field, namespace.typ())),
        }
    }
    check_set(&list, named)?;
    // A member with a network namespace of its own has none of the guest's interfaces in it.
    let own = membership.is_some_and(|m| !m.shares(Kind::Network));
    list.retain(|namespace| namespace.typ() != Kind::Network || own);
    linux.set_namespaces(Some(list));
    Ok(network)
}

fn check_kind(field: &str, kind: Kind) -> Result<(), PlanError> {
    match kind {
        Kind::Pid | Kind::Mount | Kind::Ipc | Kind::Uts | Kind::Cgroup | Kind::Network => Ok(()),
        Kind::User => Err(PlanError::refused(
            format!("{field} (user)"),
            "user namespaces are not made by this version; the microVM separates users",
        )),
        Kind::Time => Err(PlanError::refused(
            format!("{field} (time)"),
            "the guest kernel has no time namespaces",
        )),
    }
}

/// The specification's word for a namespace (`config-linux.md`, "Namespaces").
pub(super) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Pid => "pid",
        Kind::Network => "network",
        Kind::Mount => "mount",
        Kind::Ipc => "ipc",
        Kind::Uts => "uts",
        Kind::User => "user",
        Kind::Cgroup => "cgroup",
        Kind::Time => "time",
    }
}

fn foreign_path(field: String, kind: Kind) -> PlanError {
    PlanError::refused(
        format!("{field}.path ({})", name(kind)),
        "it is no namespace of a container of the sandbox, whose microVM has no other to share",
    )
}

fn refused_path(field: String, kind: Kind) -> PlanError {
    PlanError::refused(
        format!("{field}.path ({})", name(kind)),
        "a process of the microVM cannot join a namespace of the host",
    )
}

/// Which namespaces must be there, and none twice.
fn check_set(list: &[LinuxNamespace], named: bool) -> Result<(), PlanError> {
    let count = |kind| list.iter().filter(|n| n.typ() == kind).count();
    let field = "linux.namespaces";
    for kind in [Kind::Pid, Kind::Mount, Kind::Ipc, Kind::Uts, Kind::Cgroup, Kind::Network] {
        if count(kind) > 1 {
            return Err(PlanError::invalid(field, kind, "each namespace is named once"));
        }
    }
    // A namespace that is not named is shared with the host, which is exactly what a microVM
    // does not do. UTS and cgroup of the guest are as good as the host's.
    let absent = [
        (Kind::Mount, "a mount namespace must be made: that of the host cannot be shared"),
        (Kind::Pid, "a pid namespace must be made: processes of the host cannot be seen"),
        (
            Kind::Network,
            "the network of the host cannot be shared with a microVM, which has an IP stack of its \
             own; name a network namespace",
        ),
        (Kind::Ipc, "an ipc namespace must be made: that of the host cannot be shared"),
    ];
    for (kind, reason) in absent {
        if count(kind) == 0 {
            return Err(PlanError::invalid(field, format!("no {}", name(kind)), reason));
        }
    }
    if named && count(Kind::Uts) == 0 {
        let reason = "a hostname or domainname needs a uts namespace of its own";
        return Err(PlanError::invalid(field, "no uts", reason));
    }
    Ok(())
}
