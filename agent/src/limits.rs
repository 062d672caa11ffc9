//! New limits for a container that exists (OCI runtime-spec, config-linux.md, "Control groups").
//!
//! libcgroups writes them one by one; what it has written before a step fails is undone, so that
//! a failed update leaves the old limits.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use libcgroups::{
    common::{CgroupManager, ControllerOpt},
    v2::manager::{Manager, V2ManagerError},
};
use libcontainer::oci_spec::runtime::LinuxResources;
use thiserror::Error;

use crate::cgroup;

/// Files that an update may write. An idle cgroup takes no weight, so its file comes first.
const FILES: [&str; 10] = [
    "cpu.idle",
    "cpu.weight",
    "cpu.max",
    "cpu.max.burst",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.max",
    "memory.low",
    "memory.swap.max",
    "pids.max",
];

/// Why limits were not changed.
#[derive(Debug, Error)]
pub enum LimitsError {
    /// A key of `unified` that is no file of a cgroup.
    #[error("linux.resources.unified: {0:?} is not a file of a cgroup")]
    Key(String),
    /// The cgroup's place in the hierarchy.
    #[error("find the container's cgroup: {0}")]
    Find(#[source] V2ManagerError),
    /// A limit that the kernel did not take.
    #[error("{0}")]
    Apply(#[source] V2ManagerError),
    /// Nor did it take the old one.
    #[error("{apply}; and the old limit cannot be set again: {path}: {source}")]
    Undo {
        /// What failed first.
        apply: V2ManagerError,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Gives the cgroup at `path_in_hierarchy` these limits; those that are absent stay.
pub fn update(path_in_hierarchy: &Path, resources: &LinuxResources) -> Result<(), LimitsError> {
    let unified = resources.unified().iter().flatten().map(|(key, _)| key);
    if let Some(key) = unified.clone().find(|key| !is_file_name(key)) {
        return Err(LimitsError::Key(key.clone()));
    }
    let directory = cgroup::directory(path_in_hierarchy);
    let names = FILES.iter().copied().chain(unified.map(String::as_str));
    let before = snapshot(&directory, names);
    let manager = Manager::new(cgroup::ROOT.into(), path_in_hierarchy.to_owned());
    let options = ControllerOpt {
        resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    let applied = manager.map_err(LimitsError::Find)?.apply(&options);
    applied.map_err(|apply| match restore(&before) {
        Ok(()) => LimitsError::Apply(apply),
        Err((path, source)) => LimitsError::Undo { apply, path, source },
    })
}

fn is_file_name(key: &str) -> bool {
    !key.is_empty() && !key.starts_with("cgroup.") && !key.contains('/')
}

/// Files that exist and can be read, with what they hold.
fn snapshot<'a>(directory: &Path, names: impl Iterator<Item = &'a str>) -> Vec<(PathBuf, String)> {
    let entry = |name: &str| {
        let path = directory.join(name);
        let text = fs::read_to_string(&path).ok()?;
        Some((path, text))
    };
    names.filter_map(entry).collect()
}

/// Writes back what has changed, all that can be; the first file that cannot.
fn restore(before: &[(PathBuf, String)]) -> Result<(), (PathBuf, io::Error)> {
    // A burst must fit its quota, so which of the two comes first depends on their values: what is
    // refused may be taken once the others are back.
    let again = before.iter().filter(|(path, text)| write_back(path, text).is_err());
    let again: Vec<_> = again.collect();
    let mut refused = Ok(());
    for (path, text) in again {
        let done = write_back(path, text).map_err(|error| (path.clone(), error));
        refused = refused.and(done);
    }
    refused
}

fn write_back(path: &Path, text: &str) -> io::Result<()> {
    match fs::read_to_string(path) {
        Ok(now) if now == text => Ok(()),
        // An empty set of CPUs is written as a newline: an empty write does nothing.
        _ => fs::write(path, format!("{}\n", text.trim_end())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_changed_are_restored_and_others_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("memory.max"), "4096\n").unwrap();
        fs::write(path("cpu.max"), "max 100000\n").unwrap();
        let before = snapshot(directory.path(), ["memory.max", "cpu.max", "absent"].into_iter());
        assert_eq!(before.len(), 2);
        fs::write(path("memory.max"), "8192\n").unwrap();
        restore(&before).unwrap();
        assert_eq!(fs::read_to_string(path("memory.max")).unwrap(), "4096\n");
        assert!(!path("absent").exists());
    }

    #[test]
    fn file_that_cannot_be_restored_is_named_and_the_others_are_restored() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let names = ["cpu.max", "memory.max", "pids.max"];
        names.iter().for_each(|name| fs::write(path(name), "1\n").unwrap());
        let before = snapshot(directory.path(), names.into_iter());
        fs::remove_file(path("cpu.max")).unwrap();
        fs::create_dir(path("cpu.max")).unwrap();
        fs::write(path("memory.max"), "2\n").unwrap();
        fs::write(path("pids.max"), "2\n").unwrap();
        assert_eq!(restore(&before).unwrap_err().0, path("cpu.max"));
        for name in ["memory.max", "pids.max"] {
            assert_eq!(fs::read_to_string(path(name)).unwrap(), "1\n", "{name}");
        }
    }

    #[test]
    fn unified_key_that_leads_elsewhere_is_refused() {
        for key in ["", "../memory.max", "/x", "cgroup.procs"] {
            let unified = std::collections::HashMap::from([(key.to_owned(), "1".to_owned())]);
            let mut resources = LinuxResources::default();
            resources.set_unified(Some(unified));
            let refused = update(Path::new("/bulkhead/none"), &resources);
            assert!(matches!(refused, Err(LimitsError::Key(k)) if k == key));
        }
    }
}
