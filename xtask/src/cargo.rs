//! Cargo as a child: the same toolchain and lock file as the caller's.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{checkout, process};

/// Package of the end-to-end tests and of the measuring programs.
pub const TESTS_PACKAGE: &str = "bulkhead-tests";

/// `cargo SUBCOMMAND` in this checkout, with the lock file as it is.
pub fn cargo(subcommand: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(checkout::root()).arg(subcommand).arg("--locked");
    // What `cargo run` set for this program must not reach the build.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Run a building `command`; returns the path of each program that it made, by target name.
pub fn programs(command: &mut Command) -> Result<HashMap<String, PathBuf>> {
    let output = command
        .arg("--message-format=json")
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", process::line(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", process::line(command), output.status);
    }
    let mut programs = HashMap::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<Value>(line) else { continue };
        let name = message.pointer("/target/name").and_then(Value::as_str);
        let program = message.get("executable").and_then(Value::as_str);
        if let (Some(name), Some(program)) = (name, program) {
            programs.insert(name.to_owned(), PathBuf::from(program));
        }
    }
    Ok(programs)
}
