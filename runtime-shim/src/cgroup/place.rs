//! From `linux.cgroupsPath` to a place in the hierarchy, by runc's rules (its specconv and
//! cgroups/fs2; [`super::systemd`] has those for scopes). Pure.

use std::path::{Component, Path, PathBuf};

use bulkhead_protocol::id::ContainerId;

use super::hierarchy;
use super::systemd::{Scope, SystemdError};

/// Where a sandbox's cgroup is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// From the root of the hierarchy.
    Absolute(PathBuf),
    /// Beside the cgroup of the caller: one with processes in it cannot have children.
    Relative(PathBuf),
    /// Where systemd puts a scope.
    Scope(Scope),
}

impl Place {
    /// Place of container `id` for `cgroups_path` as the specification has it.
    pub fn new(
        cgroups_path: Option<&Path>,
        id: &ContainerId,
        systemd: bool,
    ) -> Result<Self, SystemdError> {
        if systemd {
            return Scope::new(cgroups_path, id.as_str()).map(Self::Scope);
        }
        match cgroups_path.filter(|path| !path.as_os_str().is_empty()) {
            None => Ok(Self::Relative(PathBuf::from(id.as_str()))),
            Some(path) if path.is_absolute() => Ok(Self::Absolute(clean(path))),
            Some(path) => Ok(Self::Relative(clean(path))),
        }
    }

    /// The directory, for a caller whose own cgroup is `home`.
    pub(super) fn directory(&self, home: &Path) -> PathBuf {
        let root = hierarchy::root();
        match self {
            Self::Absolute(path) => root.join(path),
            Self::Relative(path) => {
                let beside = home.parent().filter(|dir| dir.starts_with(root));
                beside.unwrap_or(root).join(path)
            }
            Self::Scope(scope) => root.join(&scope.directory),
        }
    }
}

/// `path` without its root, `.` and `..`, none of which leads above the start.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            _ => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str, systemd: bool) -> Place {
        let id = ContainerId::try_from("c1".to_owned()).unwrap();
        Place::new(Some(Path::new(path)), &id, systemd).unwrap()
    }

    #[test]
    fn cgroups_path_is_read_as_runc_reads_it() {
        let home = Path::new("/sys/fs/cgroup/user.slice/session-1.scope");
        for (path, directory) in [
            ("", "/sys/fs/cgroup/user.slice/c1"),
            ("a/b", "/sys/fs/cgroup/user.slice/a/b"),
            ("../../a", "/sys/fs/cgroup/user.slice/a"),
            ("/a/../../b/./c", "/sys/fs/cgroup/b/c"),
        ] {
            let found = place(path, false).directory(home);
            assert_eq!(found, Path::new(directory), "{path}");
        }
        let root = place("", false).directory(Path::new("/sys/fs/cgroup"));
        assert_eq!(root, Path::new("/sys/fs/cgroup/c1"));
    }

    #[test]
    fn path_that_leads_nowhere_is_the_root() {
        let directory = place("/..", false).directory(Path::new("/sys/fs/cgroup"));
        assert_eq!(directory, hierarchy::root());
    }

    #[test]
    fn scope_is_where_systemd_puts_it() {
        let home = Path::new("/sys/fs/cgroup/user.slice/session-1.scope");
        let directory = place("a-b.slice:docker:c", true).directory(home);
        assert_eq!(directory, Path::new("/sys/fs/cgroup/a.slice/a-b.slice/docker-c.scope"));
    }
}
