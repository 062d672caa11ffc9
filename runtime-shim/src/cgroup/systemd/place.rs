//! From `linux.cgroupsPath` to a scope of systemd: `slice:prefix:name`, as runc reads it. Pure.
//!
//! The attack: a name that is a path, or a slice that leads somewhere else. So both are names of
//! units, of which no part is a way.

use std::path::{Path, PathBuf};

use super::SystemdError;

/// Slice and prefix of a container whose specification names none; runc's are `system.slice` and
/// `runc`.
const SLICE: &str = "system.slice";
const PREFIX: &str = "bulkhead";
/// Longest name of a unit (systemd.unit(5)).
const NAME_MAX: usize = 255;

/// A scope and the slice that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Name of the slice.
    pub slice: String,
    /// Name of the scope.
    pub unit: String,
    /// Its cgroup, from the root of the hierarchy.
    pub directory: PathBuf,
}

impl Scope {
    /// The scope of the container `id` for `cgroups_path` as the specification has it.
    pub fn new(cgroups_path: Option<&Path>, id: &str) -> Result<Self, SystemdError> {
        let path = cgroups_path.map(|path| path.to_str().unwrap_or(":invalid"));
        let (slice, prefix, name) = match path.filter(|path| !path.is_empty()) {
            None => (SLICE, PREFIX, id),
            Some(path) => {
                let parts: Vec<&str> = path.split(':').collect();
                match parts[..] {
                    ["", prefix, name] => (SLICE, prefix, name),
                    [slice, prefix, name] => (slice, prefix, name),
                    _ => return Err(SystemdError::Path(path.to_owned())),
                }
            }
        };
        if name.ends_with(".slice") {
            return Err(SystemdError::Slice(name.to_owned()));
        }
        let unit = format!("{prefix}-{name}.scope");
        if !is_name(&unit) {
            return Err(SystemdError::Name(unit));
        }
        let directory = slice_directory(slice)?.join(&unit);
        Ok(Self { slice: slice.to_owned(), unit, directory })
    }
}

/// The cgroup of a slice: `a-b.slice` is in `a.slice` (systemd.slice(5)).
fn slice_directory(slice: &str) -> Result<PathBuf, SystemdError> {
    let refused = || SystemdError::Name(slice.to_owned());
    let name = slice.strip_suffix(".slice").filter(|name| is_name(name)).ok_or_else(refused)?;
    if name == "-" {
        return Ok(PathBuf::new());
    }
    let mut directory = PathBuf::new();
    let mut above = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(refused());
        }
        directory.push(format!("{above}{part}.slice"));
        above += part;
        above.push('-');
    }
    Ok(directory)
}

/// Whether systemd takes it for the name of a unit, or for a part of one.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\".contains(&b);
    !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(path: &str) -> Result<String, SystemdError> {
        let scope = Scope::new(Some(Path::new(path)), "c1")?;
        Ok(scope.directory.display().to_string())
    }

    #[test]
    fn path_is_slice_prefix_and_name_as_with_runc() {
        for (path, expected) in [
            ("", "system.slice/bulkhead-c1.scope"),
            ("system.slice:docker:1234", "system.slice/docker-1234.scope"),
            (":libpod:c", "system.slice/libpod-c.scope"),
            (
                "machine-libpod_pod_1.slice:libpod:c",
                "machine.slice/machine-libpod_pod_1.slice/libpod-c.scope",
            ),
            ("a-b-c.slice:p:n", "a.slice/a-b.slice/a-b-c.slice/p-n.scope"),
            ("-.slice:p:n", "p-n.scope"),
            ("user.slice::n", "user.slice/-n.scope"),
        ] {
            assert_eq!(directory(path).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn path_of_another_form_is_refused() {
        for path in ["/a", "a:b", "a:b:c:d", "/system.slice:p:n:x"] {
            assert!(matches!(directory(path), Err(SystemdError::Path(_))), "{path}");
        }
        for path in [
            "system:p:n",
            ".slice:p:n",
            "a--b.slice:p:n",
            "-a.slice:p:n",
            "a/../b.slice:p:n",
            "system.slice:p:../n",
            "system.slice:p:a/b",
            "system.slice:p:a b",
            "system.slice:p:\u{e9}",
        ] {
            assert!(matches!(directory(path), Err(SystemdError::Name(_))), "{path}");
        }
        let long = format!("system.slice:p:{}", "n".repeat(NAME_MAX));
        assert!(matches!(directory(&long), Err(SystemdError::Name(_))));
        assert!(matches!(directory("a.slice:p:n.slice"), Err(SystemdError::Slice(_))));
    }
}
