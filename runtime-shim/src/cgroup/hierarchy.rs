//! The hierarchy at /sys/fs/cgroup: whether it is version 2, where this process is, and making
//! directories whose controllers work.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::CgroupError;

const ROOT: &str = "/sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Controllers that a sandbox's limits and figures use. Others cost memory for each cgroup and
/// give nothing.
const CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];
/// Most that is read of one file.
const FILE_MAX: u64 = 64 << 10;

/// Root of the hierarchy.
pub(super) fn root() -> &'static Path {
    Path::new(ROOT)
}

/// Whether cgroup v2 is what is mounted there.
pub fn available() -> bool {
    rustix::fs::statfs(ROOT).is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC)
}

/// Directory of this process's own cgroup.
pub(super) fn own() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    own_of(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The line of hierarchy 0, which is that of version 2 (cgroups(7)).
fn own_of(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // A cgroup that was removed under its process, or is outside of a cgroup namespace.
    let usable = !path.ends_with(" (deleted)") && !path.split('/').any(|part| part == "..");
    Some(if usable && !path.is_empty() { root().join(path) } else { root().to_owned() })
}

/// Directories from the root down to `path` that do not exist, outermost first.
pub(super) fn missing(path: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> =
        path.ancestors().take_while(|dir| !dir.exists()).map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// Makes `path` with its parents, whose controllers are enabled for their children as far as
/// that is possible: a limit whose controller is missing fails by name when it is set. Takes out
/// of `missing` what somebody else has made meanwhile.
pub(super) fn make(path: &Path, missing: &mut Vec<PathBuf>) -> Result<(), CgroupError> {
    let mut make_own = |dir: &Path| -> Result<(), CgroupError> {
        if !make_one(dir)? {
            missing.retain(|own| own != dir);
        }
        Ok(())
    };
    let mut parents: Vec<&Path> =
        path.ancestors().skip(1).take_while(|dir| dir.starts_with(ROOT)).collect();
    parents.reverse();
    for parent in parents {
        make_own(parent)?;
        enable_controllers(parent);
    }
    make_own(path)
}

/// Makes one directory; false if it is there.
fn make_one(path: &Path) -> Result<bool, CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(CgroupError::Make(path.to_owned(), e)),
    }
}

fn enable_controllers(dir: &Path) {
    let list = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let (can, has) = (list("cgroup.controllers"), list("cgroup.subtree_control"));
    let wanted = to_enable(&can, &has);
    if wanted.is_empty() {
        return;
    }
    let control = dir.join("cgroup.subtree_control");
    if fs::write(&control, wanted.join(" ")).is_err() {
        // One that is impossible here must not take the others with it.
        for controller in &wanted {
            let _ = fs::write(&control, controller);
        }
    }
}

/// Those of ours that `can` be enabled and are not, as the kernel wants them written.
fn to_enable(can: &str, has: &str) -> Vec<String> {
    let in_list = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    let wanted = CONTROLLERS.iter().filter(|c| in_list(can, c) && !in_list(has, c));
    wanted.map(|controller| format!("+{controller}")).collect()
}

/// The text of `file` in the cgroup behind `dir`.
pub(super) fn read_at(dir: impl AsFd, file: &str) -> io::Result<String> {
    let fd = rustix::fs::openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    fs::File::from(fd).take(FILE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes `file` in the cgroup behind `dir`, in one call.
pub(super) fn write_at(dir: impl AsFd, file: &str, value: &str) -> io::Result<()> {
    let fd = rustix::fs::openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // With its newline: an empty value (no CPUs of its own) would write nothing.
    let line = format!("{value}\n");
    rustix::io::write(&fd, line.as_bytes()).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cgroup_is_the_line_of_version_2() {
        let own = |text| own_of(text);
        let v2 = Some(PathBuf::from("/sys/fs/cgroup/a/b"));
        assert_eq!(own("0::/a/b\n"), v2);
        assert_eq!(own("5:cpu:/x\n0::/a/b\n"), v2);
        let root = Some(PathBuf::from(ROOT));
        assert_eq!(own("0::/\n"), root);
        assert_eq!(own("0::/gone (deleted)\n"), root);
        assert_eq!(own("0::/../other\n"), root);
        assert_eq!(own("5:cpu:/x\n"), None);
    }

    #[test]
    fn controllers_are_enabled_that_are_there_and_off() {
        let enabled = to_enable("cpuset cpu io memory hugetlb pids\n", "memory pids\n");
        assert_eq!(enabled, ["+cpuset", "+cpu", "+io"]);
        assert!(to_enable("", "").is_empty());
    }

    #[test]
    fn directories_are_made_outermost_first_and_listed_before() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        std::fs::create_dir(root.path().join("a")).unwrap();
        assert_eq!(missing(&path), [root.path().join("a/b"), path.clone()]);
        make_one(&root.path().join("a/b")).unwrap();
        assert!(make_one(&path).unwrap());
        assert!(missing(&path).is_empty());
        assert!(!make_one(&path).unwrap());
    }

    #[test]
    fn directory_that_another_has_made_meanwhile_is_not_ones_own() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        let (mut first, mut second) = (missing(&path), missing(&path));
        make(&path, &mut first).unwrap();
        make(&path, &mut second).unwrap();
        assert_eq!((first, second), (vec![path], vec![]));
    }
}
