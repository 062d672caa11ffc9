//! Differences that are in the nature of a microVM, or of the runtime that is compared with. Each
//! is seen by a variation, and told in `docs/oci.md`.

use std::fs;
use std::path::Path;

use crate::{areas, choice};

/// Whoever sets this variable has the table written into the document.
const WRITE: &str = "BULKHEAD_WRITE_DOCS";
const BEGIN: &str = "<!-- differences: begin -->\n";
const END: &str = "<!-- differences: end -->";

/// Id, and what differs and why.
pub const EXPLANATIONS: &[(&str, &str)] = &[
    (
        "kernel-limits",
        "`RLIMIT_NPROC` and `RLIMIT_SIGPENDING` that config.json does not set follow from the \
            kernel's memory, which is the guest's",
    ),
    (
        "exit-codes",
        "a program that does not exist ends `run` with 127 and one that cannot be run with 126, \
            as in a shell; runc says 1",
    ),
    (
        "sysfs",
        "the guest's kernel has other directories in sysfs than the host's: it has other devices \
            and subsystems",
    ),
    (
        "firmware",
        "the guest has no firmware, so `/sys/firmware` is empty even where it is not masked",
    ),
    (
        "paths-without-a-file",
        "masked and read-only paths that the guest's kernel does not have (`/proc/acpi`, \
            `/proc/kcore`, `/proc/sysrq-trigger`) need no mount",
    ),
    (
        "namespaces-that-must-be",
        "a container without a pid or ipc namespace would share the host's under runc; in a \
            microVM there is no host to share with, and the agent's are not shared",
    ),
    (
        "swap",
        "a limit of swap is that of the sandbox's cgroup on the host, which may swap guest memory: \
            the guest has no swap, and the container's own cgroup shows `max`",
    ),
    (
        "host-limits",
        "limits of CPUs, memory nodes and disks are those of the sandbox's cgroup on the host; \
            the container's own cgroup does not show them",
    ),
    (
        "no-huge-pages",
        "the guest has no huge page pool to limit: limits of it are dropped, and the container's \
            cgroup shows `max`",
    ),
    (
        "exec-without-capabilities",
        "a process without `capabilities` has none, as the specification has it; runc gives \
            those of the container",
    ),
    (
        "exec-oom-score",
        "`oomScoreAdj` of an added process is set, as the specification has it; runc 1.1 and crun \
            1.8 leave it out",
    ),
    ("cpu-burst", "`linux.resources.cpu.burst` is set; runc 1.1 and crun 1.8 leave it out"),
    (
        "labels",
        "the guest's kernel has neither AppArmor nor SELinux: a profile is ignored, where runc \
            refuses one that cannot be applied",
    ),
    (
        "late-failure",
        "a file that may be executed but is none that the kernel can execute (a script without a \
            first line, or with one that names no program) ends with 255, where runc 1.1 says 1",
    ),
    (
        "limits-not-given",
        "limits that config.json does not set are those of the agent in the guest, 1024 open \
            files of at most 1048576, and not those of the runtime's caller",
    ),
    ("version", "`ociVersion` must be there, as the specification has it; runc 1.1 runs without"),
    (
        "empty-list",
        "an empty list in the place of an object is taken for one without properties; runc \
            refuses it",
    ),
    (
        "tmpfs-sync",
        "`sync` and `dirsync` mean nothing to a file system in memory, and are not shown in \
            `/proc/mounts`",
    ),
    (
        "tmpfs-size",
        "a tmpfs without a size has half of the kernel's memory, which is the guest's; the \
            guest's kernel does not show `inode64`",
    ),
    (
        "cpu-shares",
        "`cpu.weight` follows from shares by the curve of runc 1.3, by which 1024 is 100; older \
            ones make it 39",
    ),
    (
        "one-process",
        "a limit of one process lets no container be made: the agent's helper makes it by two in \
            the container's cgroup",
    ),
    (
        "line-ends",
        "the terminal of a foreground `run` ends lines itself (`onlcr`); runc leaves that to the \
            caller's terminal. What is shown is the same",
    ),
    (
        "settings-that-are-missing",
        "a setting of `linux.sysctl` that the guest's kernel does not have \
            (`net.ipv4.tcp_syncookies`) is refused by its name",
    ),
];

#[test]
fn explanations_are_those_of_the_document() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/oci.md");
    let text = fs::read_to_string(&path).expect("docs/oci.md");
    let all = areas::all();
    let explained = all.iter().filter(|case| case.explained.is_some()).count();
    let (same, every) = (all.len() - explained, choice::quick(all).len());
    let mut table = format!(
        "{same} variations are the same, {explained} show one of these differences. Every run of \
         the suites has {every} of them, `cargo xtask test --full` has all.\n\n\
         | difference | what a program or a caller sees, and why |\n|---|---|\n"
    );
    for (id, reason) in EXPLANATIONS {
        table += &format!("| {id} | {reason} |\n");
    }
    let (before, rest) = text.split_once(BEGIN).expect("the begin mark");
    let (was, after) = rest.split_once(END).expect("the end mark");
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).expect("docs/oci.md");
        return;
    }
    assert!(was == table, "docs/oci.md is old ({WRITE}=1 writes it)");
}
