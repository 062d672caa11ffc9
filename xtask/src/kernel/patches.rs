//! The patches of `kernel-config/`: changes of the kernel's source that no option makes. Each file
//! says above its change why it is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// First line of a unified diff.
const DIFF: &str = "--- ";

/// A file `*.patch`.
#[derive(Debug)]
pub struct Patch {
    path: PathBuf,
    /// The diff, without the text above it.
    pub change: String,
}

impl Patch {
    fn new(path: PathBuf, text: &str) -> Result<Self> {
        let above: usize = text
            .split_inclusive('\n')
            .take_while(|line| !line.starts_with(DIFF))
            .map(str::len)
            .sum();
        let (reason, change) = text.split_at(above);
        if change.is_empty() {
            bail!("{} holds no unified diff", path.display());
        }
        if reason.trim().is_empty() {
            bail!("{} does not say above its diff why it is there", path.display());
        }
        Ok(Self { change: change.to_owned(), path })
    }

    /// Change the source in `tree`. Nothing but the line numbers may differ from what the patch
    /// was made for.
    pub fn apply(&self, tree: &Path) -> Result<()> {
        let mut patch = Command::new("patch");
        patch.args(["--strip=1", "--fuzz=0", "--forward", "--batch", "--reject-file=-"]);
        patch.arg("--directory").arg(tree).arg("--input").arg(&self.path);
        process::output(&mut patch).map(drop).with_context(|| {
            format!("{} does not apply to {}", self.path.display(), tree.display())
        })
    }
}

/// The patches in `dir`, in the order of their names.
pub fn read(dir: &Path) -> Result<Vec<Patch>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            paths.push(path);
        }
    }
    paths.sort();
    let patch = |path: PathBuf| {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Patch::new(path, &text)
    };
    paths.into_iter().map(patch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGE: &str = "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n";

    #[test]
    fn patch_is_parted_into_reason_and_change() {
        let patch = Patch::new("x.patch".into(), &format!("Why.\n\n{CHANGE}")).unwrap();
        assert_eq!(patch.change, CHANGE);
    }

    #[test]
    fn patch_without_reason_or_change_is_refused_by_name() {
        for (text, why) in [(CHANGE, "why it is there"), ("Why.\n", "no unified diff")] {
            let error = Patch::new("x.patch".into(), text).unwrap_err().to_string();
            assert!(error.starts_with("x.patch") && error.contains(why), "{error}");
        }
    }
}
