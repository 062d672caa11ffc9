//! Splits an OCI configuration into what libcontainer does and what the agent's executor does,
//! and refuses by name what neither does. Pure.
//!
//! The executor takes over seccomp (libcontainer drops it on exec, and installs it too early),
//! capabilities (so that the filter can be installed while CAP_SYS_ADMIN is there), the working
//! directory, the environment and `noNewPrivileges`.

use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{
    Capabilities, Linux, LinuxCapabilities, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction,
    Mount, Process, Spec,
};
use thiserror::Error;

use super::hooks::StartHooks;
use super::identity::Identity;

/// Why a configuration cannot be applied in this guest. Each names the field.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// A field that must be there.
    #[error("{0} is missing from the specification")]
    Missing(&'static str),
    /// A field that this version does not implement.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// A namespace that a container must not share with the agent.
    #[error("linux.namespaces must have {0} namespace")]
    Namespace(&'static str),
    /// A mount option that would be ignored.
    #[error("mounts: option {option:?} of {destination:?} is not supported")]
    MountOption {
        /// The option.
        option: String,
        /// Where it would be mounted.
        destination: PathBuf,
    },
    /// Not an absolute path.
    #[error("process.cwd {0:?} is not an absolute path")]
    Cwd(PathBuf),
    /// An argument or variable with a NUL byte in it.
    #[error("{0} has a NUL byte")]
    Nul(&'static str),
}

/// What the executor does with one process after libcontainer has made its surroundings.
#[derive(Clone, Debug)]
pub struct Task {
    /// `process.args`, not empty.
    pub args: Vec<String>,
    /// `process.env` as given.
    pub environment: Vec<String>,
    /// `process.cwd`.
    pub cwd: PathBuf,
    /// Create `cwd` when it is missing, and set up the network namespace.
    pub is_init: bool,
    /// `process.user.uid`.
    pub uid: u32,
    /// `process.capabilities`; sets that are absent are empty.
    pub capabilities: LinuxCapabilities,
    /// `process.noNewPrivileges`.
    pub no_new_privileges: bool,
    /// `linux.seccomp` of the container.
    pub seccomp: Option<LinuxSeccomp>,
    /// Whether standard input is a terminal.
    pub terminal: bool,
    /// Rows and columns of that terminal.
    pub console_size: Option<(u16, u16)>,
    /// User namespace that libcontainer does not join.
    pub identity: Option<Identity>,
    /// What runs before the program.
    pub hooks: Option<StartHooks>,
}

/// Takes the executor's part out of a container's configuration and puts the container into
/// `cgroup`, an absolute path in the guest's hierarchy.
pub fn container(spec: &mut Spec, cgroup: &Path) -> Result<Task, SpecError> {
    refuse_spec(spec)?;
    let linux = spec.linux_mut().as_mut().ok_or(SpecError::Missing("linux"))?;
    refuse_linux(linux)?;
    let seccomp = linux.seccomp().clone();
    linux.set_seccomp(None);
    linux.set_cgroups_path(Some(cgroup.to_owned()));
    let process = spec.process_mut().as_mut().ok_or(SpecError::Missing("process"))?;
    self::process(process, seccomp, true)
}

/// Seccomp policy that processes added to a container run under: the container's.
pub fn seccomp_of(spec: &Spec) -> Option<LinuxSeccomp> {
    spec.linux().as_ref().and_then(|l| l.seccomp().clone())
}

/// Takes the executor's part out of one process.
pub fn process(
    process: &mut Process,
    seccomp: Option<LinuxSeccomp>,
    is_init: bool,
) -> Result<Task, SpecError> {
    refuse_process(process)?;
    let task = Task {
        args: process.args().clone().unwrap_or_default(),
        environment: process.env().clone().unwrap_or_default(),
        cwd: process.cwd().clone(),
        is_init,
        uid: process.user().uid(),
        capabilities: complete(process.capabilities().as_ref()),
        no_new_privileges: process.no_new_privileges() == Some(true),
        seccomp,
        terminal: process.terminal() == Some(true),
        console_size: console_size(process),
        identity: None,
        hooks: None,
    };
    process
        .set_cwd(PathBuf::from("/"))
        // With HOME set libcontainer does not look for it (getpwuid in a static program loads
        // code from the container's root).
        .set_env(Some(vec!["HOME=/".to_owned()]))
        .set_capabilities(None)
        .set_no_new_privileges(None);
    Ok(task)
}

fn console_size(process: &Process) -> Option<(u16, u16)> {
    let size = process.console_size()?;
    let rows = u16::try_from(size.height()).ok()?;
    let columns = u16::try_from(size.width()).ok()?;
    (rows > 0 || columns > 0).then_some((rows, columns))
}

fn complete(given: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(given.and_then(|given| of(given).clone()).unwrap_or_default())
    };
    let mut all = LinuxCapabilities::default();
    all.set_bounding(set(LinuxCapabilities::bounding))
        .set_effective(set(LinuxCapabilities::effective))
        .set_permitted(set(LinuxCapabilities::permitted))
        .set_inheritable(set(LinuxCapabilities::inheritable))
        .set_ambient(set(LinuxCapabilities::ambient));
    all
}

fn refuse_spec(spec: &Spec) -> Result<(), SpecError> {
    if spec.root().is_none() {
        return Err(SpecError::Missing("root"));
    }
    if let Some(hooks) = spec.hooks() {
        let lists = [
            hooks.prestart(),
            hooks.create_runtime(),
            hooks.create_container(),
            hooks.poststart(),
            hooks.poststop(),
        ];
        let given = |list: &&Option<Vec<_>>| list.as_ref().is_some_and(|l| !l.is_empty());
        unsupported("hooks", lists.iter().any(given))?;
    }
    spec.mounts().iter().flatten().try_for_each(refuse_mount)
}

fn refuse_mount(mount: &Mount) -> Result<(), SpecError> {
    let mapped = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
    unsupported("mounts.uidMappings", mapped)?;
    // libcontainer parses these and does nothing with them.
    const IGNORED: [&str; 8] =
        ["idmap", "ridmap", "shared", "rshared", "unbindable", "runbindable", "remount", "mand"];
    match mount.options().iter().flatten().find(|option| IGNORED.contains(&option.as_str())) {
        Some(option) => Err(SpecError::MountOption {
            option: option.clone(),
            destination: mount.destination().clone(),
        }),
        None => Ok(()),
    }
}

fn refuse_linux(linux: &Linux) -> Result<(), SpecError> {
    let has = |kind: LinuxNamespaceType, new: bool| {
        let own = |path: &Option<PathBuf>| path.as_ref().is_none_or(|p| p.as_os_str().is_empty());
        let mut spaces = linux.namespaces().iter().flatten();
        spaces.any(|n| n.typ() == kind && (!new || own(n.path())))
    };
    // That of another container is as good: the agent's own is what must not be seen.
    if !has(LinuxNamespaceType::Pid, false) {
        return Err(SpecError::Namespace("a pid"));
    }
    if !has(LinuxNamespaceType::Mount, true) {
        return Err(SpecError::Namespace("a new mount"));
    }
    let label = linux.mount_label().as_ref();
    unsupported("linux.mountLabel", label.is_some_and(|l| !l.is_empty()))?;
    unsupported("linux.intelRdt", linux.intel_rdt().is_some())?;
    let devices = linux.net_devices().as_ref();
    unsupported("linux.netDevices", devices.is_some_and(|d| !d.is_empty()))?;
    if let Some(resources) = linux.resources() {
        let rdma = resources.rdma().as_ref();
        unsupported("linux.resources.rdma", rdma.is_some_and(|r| !r.is_empty()))?;
        unsupported("linux.resources.network", resources.network().is_some())?;
    }
    linux.seccomp().as_ref().map_or(Ok(()), refuse_seccomp)
}

fn refuse_seccomp(seccomp: &LinuxSeccomp) -> Result<(), SpecError> {
    let listener = seccomp.listener_path().as_ref();
    let given = listener.is_some_and(|path| !path.as_os_str().is_empty());
    unsupported("linux.seccomp.listenerPath", given)?;
    let notify = LinuxSeccompAction::ScmpActNotify;
    let mut rules = seccomp.syscalls().iter().flatten();
    let used = seccomp.default_action() == notify || rules.any(|rule| rule.action() == notify);
    unsupported("linux.seccomp action SCMP_ACT_NOTIFY", used)
}

fn refuse_process(process: &Process) -> Result<(), SpecError> {
    let given = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    unsupported("process.apparmorProfile", given(process.apparmor_profile()))?;
    unsupported("process.selinuxLabel", given(process.selinux_label()))?;
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        return Err(SpecError::Missing("process.args"));
    }
    for (name, texts) in
        [("process.args", args), ("process.env", process.env().as_deref().unwrap_or_default())]
    {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(SpecError::Nul(name));
        }
    }
    match process.cwd().is_absolute() {
        true => Ok(()),
        false => Err(SpecError::Cwd(process.cwd().clone())),
    }
}

fn unsupported(field: &'static str, used: bool) -> Result<(), SpecError> {
    match used {
        true => Err(SpecError::Unsupported(field)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(change: impl Fn(&mut Value)) -> Spec {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "/root"},
            "process": {
                "user": {"uid": 3, "gid": 4},
                "args": ["program"],
                "env": ["A=1"],
                "cwd": "/work",
                "consoleSize": {"height": 5, "width": 6},
                "noNewPrivileges": true,
                "capabilities": {"bounding": ["CAP_KILL"]},
            },
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "mount"}],
                "cgroupsPath": "/of/the/host",
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
            },
        });
        change(&mut spec);
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn container_is_split_between_library_and_executor() {
        let mut spec = spec(|_| {});
        let task = container(&mut spec, Path::new("/bulkhead/one")).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_none());
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/bulkhead/one")));
        let left = spec.process().as_ref().unwrap();
        assert_eq!(left.cwd(), Path::new("/"));
        assert_eq!(left.env().as_deref(), Some(&["HOME=/".to_owned()][..]));
        assert!(left.capabilities().is_none());
        assert_eq!(left.no_new_privileges(), None);
        assert_eq!(left.user().uid(), 3);
        assert_eq!((task.cwd.as_path(), task.uid), (Path::new("/work"), 3));
        assert_eq!(task.console_size, Some((5, 6)));
        assert!(task.seccomp.is_some() && task.no_new_privileges && task.is_init);
    }

    #[test]
    fn capabilities_that_are_absent_are_empty() {
        let mut spec = spec(|_| {});
        let task = container(&mut spec, Path::new("/x")).unwrap();
        let sets = &task.capabilities;
        assert_eq!(sets.bounding().as_ref().map(Capabilities::len), Some(1));
        for set in [sets.effective(), sets.permitted(), sets.inheritable(), sets.ambient()] {
            assert_eq!(set.as_ref().map(Capabilities::len), Some(0));
        }
    }

    #[test]
    fn pid_namespace_must_be_there_and_mount_namespace_must_be_new() {
        let checked = |namespaces: Value| {
            let mut spec = spec(|spec| spec["linux"]["namespaces"] = namespaces.clone());
            container(&mut spec, Path::new("/x")).map(drop)
        };
        let joined = |kind: &str| json!({"type": kind, "path": "/proc/1/ns/x"});
        let new = |kind: &str| json!({"type": kind});
        assert_eq!(checked(json!([joined("pid"), new("mount")])), Ok(()));
        let refused = checked(json!([new("mount")])).unwrap_err();
        assert_eq!(refused, SpecError::Namespace("a pid"));
        let refused = checked(json!([new("pid"), joined("mount")])).unwrap_err();
        assert_eq!(refused, SpecError::Namespace("a new mount"));
    }

    #[test]
    fn text_with_nul_is_refused() {
        let mut spec = spec(|spec| spec["process"]["args"] = json!(["a\0b"]));
        let refused = container(&mut spec, Path::new("/x")).unwrap_err();
        assert_eq!(refused, SpecError::Nul("process.args"));
    }
}
