//! `spec`: a new config.json, runc's default.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use crate::bundle::CONFIG;
use crate::failure::Failure;

/// runc's default configuration for the version of the specification that is implemented.
const DEFAULT_SPEC: &str = include_str!("default_config.json");

/// Arguments of `spec`.
#[derive(Debug, Args)]
pub(super) struct SpecArgs {
    /// Directory of the bundle.
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// Refused: microVMs are run by root.
    #[arg(long)]
    pub rootless: bool,
}

pub(super) fn run(args: SpecArgs) -> Result<u8, Failure> {
    let failed = |cause: String, fix| Failure::new("writing config.json", cause, fix);
    if args.rootless {
        let cause = "--rootless: user namespaces are not made by this version".to_owned();
        return Err(failed(cause, "leave it out"));
    }
    let path = args.bundle.join(CONFIG);
    let mut file =
        File::options().write(true).create_new(true).open(&path).map_err(|e| match e.kind() {
            // runc's words.
            io::ErrorKind::AlreadyExists => {
                let cause = format!("File {CONFIG} exists. Remove it first");
                failed(cause, "or choose another directory with --bundle")
            }
            _ => failed(format!("{}: {e}", path.display()), "choose another --bundle"),
        })?;
    file.write_all(DEFAULT_SPEC.as_bytes())
        .map_err(|e| failed(format!("{}: {e}", path.display()), ""))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::plan::{Policy, plan};

    #[test]
    fn default_spec_can_be_planned() {
        let spec = serde_json::from_str(DEFAULT_SPEC).unwrap();
        let plan = plan(&"a".parse().unwrap(), Path::new("/b"), spec, &Policy::default()).unwrap();
        assert!(plan.terminal && plan.root.read_only && plan.notes.is_empty());
    }

    #[test]
    fn spec_is_not_written_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let args = || SpecArgs { bundle: dir.path().to_owned(), rootless: false };
        run(args()).unwrap();
        let refused = run(args()).unwrap_err().to_string();
        assert!(refused.contains("File config.json exists. Remove it first"), "{refused}");
    }
}
