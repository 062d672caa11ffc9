//! What a sandbox may leave behind: processes, mounts, state, cgroups, network interfaces.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Where the state of containers lies: our own root, and that of runc's shim for `ctr`.
const STATE: [&str; 2] = ["/run/bulkhead", "/run/containerd/runc/default"];

/// What there was at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftovers {
    processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    state: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    interfaces: BTreeSet<String>,
}

impl Leftovers {
    /// Looks at this host now.
    pub fn now() -> Self {
        Self {
            processes: processes(),
            mounts: lines("/proc/self/mountinfo"),
            state: STATE.iter().flat_map(|root| names(Path::new(root))).collect(),
            cgroups: tree(Path::new("/sys/fs/cgroup")),
            interfaces: names(Path::new("/sys/class/net")),
        }
    }

    /// Fails if there is anything now that there was not at `self`.
    #[track_caller]
    pub fn assert_none(&self) {
        let now = Self::now();
        let more = |name: &str, old: &BTreeSet<String>, new: &BTreeSet<String>| {
            let extra: Vec<_> = new.difference(old).collect();
            assert!(extra.is_empty(), "left behind, {name}: {extra:?}");
        };
        more("processes", &self.processes, &now.processes);
        more("mounts", &self.mounts, &now.mounts);
        more("state", &self.state, &now.state);
        more("cgroups", &self.cgroups, &now.cgroups);
        more("interfaces", &self.interfaces, &now.interfaces);
    }
}

/// Processes whose program is one of ours or pasta, zombies left out: a zombie is its parent's to
/// reap.
fn processes() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for pid in names(Path::new("/proc")) {
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) else {
            continue;
        };
        let Some(name) = program.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let ours = ["bulkhead", "bulkhead-vmm", "bulkhead-fsd"].contains(&name);
        // `pasta` is a link to the program of another name.
        if ours || name.starts_with("passt") {
            found.insert(format!("{name} {pid}"));
        }
    }
    found
}

fn lines(file: &str) -> BTreeSet<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn tree(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(entry.path().display().to_string());
            found.extend(tree(&entry.path()));
        }
    }
    found
}
