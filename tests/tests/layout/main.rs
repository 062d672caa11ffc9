//! The shape of the project: which crate may use which, what ships, what lies at the top.

mod graph;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use graph::{Edge, Graph};

/// Floor of each workspace package. A package uses floors below its own, never its own or higher.
const FLOORS: &[(&str, u8)] = &[
    ("bulkhead-protocol", 0),
    ("bulkhead-machine", 0),
    ("bulkhead-devices", 0),
    ("bulkhead-jail", 0),
    ("bulkhead-vmm", 1),
    ("bulkhead-fsd", 1),
    ("bulkhead-agent", 1),
    ("bulkhead-runtime", 1),
    ("bulkhead-tests", 2),
    ("xtask", 2),
];
/// Packages that run the binaries and may import nothing but the protocol.
const OUTSIDERS: &[&str] = &["bulkhead-tests", "xtask"];
/// Largest agent, in bytes.
const AGENT_MAX: u64 = 6_000_000;
/// Largest of the host's binaries, in bytes: they are started for every sandbox.
const HOST_BINARY_MAX: u64 = 8_000_000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_path_buf()
}

/// The workspace as cargo sees it.
fn workspace() -> Graph {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Graph::from_metadata(&output.stdout).expect("metadata of the known form")
}

#[test]
fn workspace_packages_have_floors() {
    let mut found = workspace().packages;
    let mut known: Vec<String> = FLOORS.iter().map(|(name, _)| (*name).to_owned()).collect();
    found.sort();
    known.sort();
    assert_eq!(found, known, "every package of the workspace has its floor in this file");
}

#[test]
fn workspace_imports_only_downwards() {
    let wrong = workspace().not_downward(FLOORS);
    assert!(wrong.is_empty(), "imports upwards or sideways: {wrong:?}");
}

#[test]
fn workspace_imports_form_no_circle() {
    assert_eq!(workspace().circle(), None);
}

#[test]
fn workspace_outsiders_import_the_protocol_at_most() {
    let edges = workspace().edges;
    let wrong: Vec<&Edge> = edges
        .iter()
        .filter(|edge| OUTSIDERS.contains(&edge.from.as_str()) && edge.to != "bulkhead-protocol")
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn top_level_names_exist() {
    let names = [
        "vmm",
        "agent",
        "runtime-shim",
        "kernel-config",
        "tests",
        "docs",
        "protocol",
        "xtask",
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "deny.toml",
        ".ci/run",
        "docs/architecture.md",
        "docs/threat-model.md",
    ];
    let missing: Vec<&str> = names.into_iter().filter(|name| !root().join(name).exists()).collect();
    assert!(missing.is_empty(), "missing at the top: {missing:?}");
}

/// Does the 64-bit little-endian ELF program ask for an interpreter, that is, a dynamic loader?
fn has_interpreter(elf: &[u8]) -> Option<bool> {
    const PROGRAM_HEADER_INTERP: u32 = 3;
    let number = |at: usize, size: usize| {
        let mut bytes = [0; 8];
        bytes.get_mut(..size)?.copy_from_slice(elf.get(at..at.checked_add(size)?)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    for index in 0..count {
        if number(table + index * size, 4)? == PROGRAM_HEADER_INTERP as usize {
            return Some(true);
        }
    }
    Some(false)
}

#[test]
fn interpreter_dynamic_program_is_recognised() {
    let cargo = fs::read("/bin/ls").expect("ls is there");
    assert_eq!(has_interpreter(&cargo), Some(true));
    assert_eq!(has_interpreter(b"#!/bin/sh"), None);
}

#[track_caller]
fn assert_static(path: &Path, size_max: u64) {
    let elf = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(has_interpreter(&elf), Some(false), "{} is static", path.display());
    let size = elf.len() as u64;
    assert!(size <= size_max, "{} has {size} bytes, at most {size_max}", path.display());
}

#[test]
fn shipped_binaries_are_static_and_small() {
    let target = root().join("target");
    for name in ["bulkhead", "bulkhead-vmm", "bulkhead-fsd"] {
        assert_static(&target.join("dist").join(name), HOST_BINARY_MAX);
    }
    let agent = "dist-ship/x86_64-unknown-linux-gnu/dist/bulkhead-agent";
    assert_static(&target.join(agent), AGENT_MAX);
}
