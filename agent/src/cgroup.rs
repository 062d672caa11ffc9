//! One container's cgroup (v2): its processes, killing, freezing and removal.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use rustix::{
    io::pread,
    process::{Pid, Signal, kill_process},
};
use thiserror::Error;
use tokio::{io::Interest, time::timeout};

use crate::channel::register;

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// The cgroup below [`ROOT`] that holds all containers.
pub const PARENT: &str = "bulkhead";
/// How long a kernel may take to freeze or empty a cgroup before that is called an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// A step that failed.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// A control file cannot be read or written.
    #[error("cgroup file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel did not get there in time.
    #[error("cgroup {path} did not become {state} within 60 s")]
    Late {
        /// The cgroup.
        path: PathBuf,
        /// Key and value of `cgroup.events`.
        state: &'static str,
    },
    /// Not a part of the container's cgroup.
    #[error("cgroup {0:?}: the container has no such part of its cgroup")]
    Part(String),
    /// The cgroup cannot be removed.
    #[error("remove cgroup {path}: {source}")]
    Remove {
        /// The cgroup.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Directory of a cgroup given by its absolute path in the hierarchy.
pub fn directory(path_in_hierarchy: &Path) -> PathBuf {
    let relative = path_in_hierarchy.strip_prefix("/");
    Path::new(ROOT).join(relative.unwrap_or(path_in_hierarchy))
}

/// Which part of the container's cgroup `path_in_hierarchy` a process has to be added to, if not
/// to the whole of it.
///
/// An init like systemd's divides its cgroup and moves into a part of it; the kernel then lets no
/// process into the whole ("no internal processes", the kernel's cgroup-v2.rst). As with runc, the
/// process goes where `init` is, which cannot leave the cgroup.
pub fn part_with(path_in_hierarchy: &Path, init: u32) -> Result<Option<String>, CgroupError> {
    let read = |path: PathBuf| {
        fs::read_to_string(&path).map_err(|source| CgroupError::File { path, source })
    };
    let divided = read(directory(path_in_hierarchy).join("cgroup.subtree_control"))?;
    if divided.trim().is_empty() {
        return Ok(None);
    }
    let membership = read(PathBuf::from(format!("/proc/{init}/cgroup")))?;
    Ok(part_named(path_in_hierarchy, &membership))
}

/// `part`, a path below `path_in_hierarchy`, if it leads to a cgroup there.
pub fn existing_part(path_in_hierarchy: &Path, part: &str) -> Result<String, CgroupError> {
    let below = part.trim_matches('/');
    let inside = Path::new(below).components().all(|c| matches!(c, Component::Normal(_)));
    match inside && directory(path_in_hierarchy).join(below).is_dir() {
        true => Ok(below.to_owned()),
        false => Err(CgroupError::Part(part.to_owned())),
    }
}

/// The part of a cgroup that `/proc/PID/cgroup` names.
fn part_named(path_in_hierarchy: &Path, membership: &str) -> Option<String> {
    let path = membership.lines().find_map(|line| line.strip_prefix("0::"))?;
    let part = Path::new(path).strip_prefix(path_in_hierarchy).ok()?.to_str()?;
    Some(part.to_owned()).filter(|part| !part.is_empty())
}

/// A cgroup by its path.
#[derive(Clone, Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The cgroup of a container; it need not exist yet.
    pub fn of_container(id: &str) -> Self {
        Self(directory(&Self::path_in_hierarchy(id)))
    }

    /// Its path in the hierarchy, absolute.
    pub fn path_in_hierarchy(id: &str) -> PathBuf {
        Path::new("/").join(PARENT).join(id)
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// How many processes in it and below the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let name = "memory.events";
        let text = fs::read(self.0.join(name)).map_err(|source| self.file(name, source))?;
        Ok(kills_in(&text))
    }

    /// Waits until there are more than `seen`.
    pub async fn oom_kills_above(&self, seen: u64) -> Result<u64, CgroupError> {
        self.watch("memory.events", |text| Some(kills_in(text)).filter(|kills| *kills > seen))
            .await
            .map_err(|source| self.file("memory.events", source))
    }

    /// PIDs of all processes in it and below.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        collect(&self.0, &mut pids).map_err(|source| self.file("cgroup.procs", source))?;
        Ok(pids)
    }

    /// Sends a signal to all processes; SIGKILL misses none, even while they fork.
    pub fn signal(&self, signal: Signal) -> Result<(), CgroupError> {
        if signal == Signal::KILL {
            return self.write("cgroup.kill", "1");
        }
        for pid in self.processes()? {
            // A process that has just ended cannot be signalled, and need not be.
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, signal);
            }
        }
        Ok(())
    }

    /// Stops all processes; returns when they stand.
    pub async fn freeze(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "1")?;
        let frozen = self.wait_for("frozen 1").await;
        if frozen.is_err() {
            self.write("cgroup.freeze", "0")?;
        }
        frozen
    }

    /// Lets them run again.
    pub async fn thaw(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "0")?;
        self.wait_for("frozen 0").await
    }

    /// Kills what is in it and removes it with all below. Nothing there is fine.
    pub async fn destroy(&self) -> Result<(), CgroupError> {
        if !self.0.exists() {
            return Ok(());
        }
        self.signal(Signal::KILL)?;
        self.wait_for("populated 0").await?;
        remove_tree(&self.0).map_err(|source| CgroupError::Remove { path: self.0.clone(), source })
    }

    /// Waits for a line of `cgroup.events`.
    async fn wait_for(&self, state: &'static str) -> Result<(), CgroupError> {
        let name = "cgroup.events";
        let has = |text: &[u8]| text.split(|b| *b == b'\n').any(|l| l == state.as_bytes());
        let wait = self.watch(name, |text| has(text).then_some(()));
        match timeout(PATIENCE, wait).await {
            Ok(result) => result.map_err(|source| self.file(name, source)),
            Err(_) => Err(CgroupError::Late { path: self.0.clone(), state }),
        }
    }

    /// Reads a file of events, whose changes poll as urgent data, until `found` finds something.
    async fn watch<T>(&self, name: &str, found: impl Fn(&[u8]) -> Option<T>) -> io::Result<T> {
        let file = File::open(self.0.join(name))?;
        let events = register(file.into(), Interest::PRIORITY)?;
        loop {
            let mut text = [0; 512];
            let count = pread(&events, &mut text[..], 0)?;
            if let Some(found) = found(&text[..count]) {
                return Ok(found);
            }
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), CgroupError> {
        fs::write(self.0.join(name), text).map_err(|source| self.file(name, source))
    }

    fn file(&self, name: &str, source: io::Error) -> CgroupError {
        let path = self.0.join(name);
        CgroupError::File { path, source }
    }
}

/// The line `oom_kill` of `memory.events`; 0 without it.
fn kills_in(text: &[u8]) -> u64 {
    let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"oom_kill "));
    let number = line.and_then(|number| std::str::from_utf8(number).ok());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn children(cgroup: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(cgroup)?
        .filter_map(|entry| match entry {
            Ok(entry) if entry.file_type().is_ok_and(|t| t.is_dir()) => Some(Ok(entry.path())),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
        .collect()
}

fn collect(cgroup: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(text) => text,
        // A cgroup of threads (EOPNOTSUPP): its processes are listed above it.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        Err(error) => return Err(error),
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for child in children(cgroup)? {
        match collect(&child, pids) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for child in children(cgroup)? {
        remove_tree(&child)?;
    }
    fs::remove_dir(cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_read_from_their_own_line() {
        let text = b"low 0\nhigh 0\nmax 12\noom 2\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(kills_in(text), 3);
        assert_eq!(kills_in(b"oom 2\n"), 0);
        assert_eq!(kills_in(b"oom_kill x\n"), 0);
    }

    #[test]
    fn part_that_leads_elsewhere_or_nowhere_is_refused() {
        for part in ["..", "../other", "a/../..", "/../other", "bulkhead-has-no-such-cgroup"] {
            let refused = existing_part(Path::new("/"), part);
            assert!(matches!(refused, Err(CgroupError::Part(_))), "{part}");
        }
    }

    #[test]
    fn part_is_below_the_cgroup_of_the_container() {
        let part = |membership| part_named(Path::new("/bulkhead/one"), membership);
        assert_eq!(part("0::/bulkhead/one/init.scope\n").as_deref(), Some("init.scope"));
        assert_eq!(part("1:name=x:/y\n0::/bulkhead/one/a/b\n").as_deref(), Some("a/b"));
        for elsewhere in ["0::/bulkhead/one\n", "0::/bulkhead/other/a\n", "0::/\n", ""] {
            assert_eq!(part(elsewhere), None, "{elsewhere}");
        }
    }
}
