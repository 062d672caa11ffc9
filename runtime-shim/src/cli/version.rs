//! `--version`, in runc's form, which its clients parse.

use super::print;
use crate::failure::Failure;

/// Version of the runtime specification that is implemented.
pub(super) const SPEC_VERSION: &str = "1.2.1";

pub(super) fn run() -> Result<u8, Failure> {
    print(&text())
}

fn text() -> String {
    // Set by whoever builds a release.
    let commit = option_env!("BULKHEAD_COMMIT").unwrap_or("unknown");
    let version = env!("CARGO_PKG_VERSION");
    format!("bulkhead version {version}\ncommit: {commit}\nspec: {SPEC_VERSION}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_has_the_three_lines_of_runc() {
        let text = text();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("bulkhead version 0."));
        assert!(lines[1].starts_with("commit: ") && lines[2] == "spec: 1.2.1");
    }
}
