//! An overlay of host directories, as snapshotters give it: options with host paths.
//!
//! The host mounts it, without a place in its tree, and serves it like a bind mount. In the guest
//! it could only lie over shares, where its marks (`trusted.overlay.*`) are refused, and each
//! lookup would go to the host once for each layer.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::{MOUNT_OPTIONS, PlanError, of};

/// Options with a value.
const VALUES: [&str; 9] = [
    "index=",
    "lowerdir=",
    "metacopy=",
    "nfs_export=",
    "redirect_dir=",
    "upperdir=",
    "uuid=",
    "workdir=",
    "xino=",
];
/// Options without.
const FLAGS: [&str; 2] = ["userxattr", "volatile"];
/// Longest options that mount(2) takes: a page with a terminator.
const DATA_MAX: usize = 4095;

/// Whether `option` is one of overlayfs that can be given.
pub(super) fn knows(option: &str) -> bool {
    FLAGS.contains(&option) || VALUES.iter().any(|name| option.starts_with(name))
}

/// The uppermost directory and the options for mount(2).
pub(super) fn plan(field: &str, mount: &Mount) -> Result<(PathBuf, String), PlanError> {
    let invalid =
        |value: &str, reason| Err(PlanError::invalid(format!("{field}.options"), value, reason));
    let own: Vec<&str> =
        of(mount).filter(|o| !o.is_empty() && !MOUNT_OPTIONS.contains(o)).collect();
    let value = |name| own.iter().rev().find_map(|option| option.strip_prefix(name));
    let Some(lower) = value("lowerdir=") else {
        return invalid("no lowerdir", "an overlay has a lowerdir");
    };
    for option in &own {
        if split(option, ',').count() > 1 {
            return invalid(option, "a comma in a path is written `\\,`");
        }
    }
    let lower = split(lower, ':').filter(|path| !path.is_empty());
    let paths: Vec<&str> = value("upperdir=").into_iter().chain(lower).collect();
    for path in paths.iter().copied().chain(value("workdir=")) {
        if !path.starts_with('/') {
            return invalid(path, "a directory of an overlay is an absolute path");
        }
    }
    if value("upperdir=").is_some() != value("workdir=").is_some() {
        return invalid("upperdir, workdir", "both or none are wanted");
    }
    let data = own.join(",");
    match paths.first() {
        Some(_) if data.len() > DATA_MAX => {
            invalid(&format!("{} bytes", data.len()), "mount(2) takes at most 4095")
        }
        Some(top) => Ok((Path::new(&unescape(top)).to_owned(), data)),
        None => invalid("lowerdir=", "a directory is wanted"),
    }
}

/// Splits at `separator` where no backslash stands before it.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c| {
        let ends = c == separator && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })
}

fn unescape(path: &str) -> String {
    let mut chars = path.chars();
    let mut plain = String::new();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    plain
}
