//! Which annotations of a container bulkhead itself reads: `io.bulkhead.*`. The table of
//! `docs/oci.md`.

/// Every annotation below this name is bulkhead's.
pub(super) const PREFIX: &str = "io.bulkhead.";
/// What stands in a name for one that the container chooses.
pub(super) const ANY: &str = "NAME";
/// Longest start-up limit, in seconds.
pub(super) const BOOT_TIMEOUT_MAX_S: u32 = 3600;

/// What an annotation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// vCPUs.
    Vcpus,
    /// Most vCPUs.
    VcpusMax,
    /// Memory.
    MemMib,
    /// Most memory.
    MemMaxMib,
    /// The start-up limit.
    BootTimeoutS,
    /// Words of the command line.
    KernelParameters,
    /// What the guest's kernel says.
    DebugConsole,
    /// Limits of network interfaces.
    Net,
    /// Read where disks are planned.
    Disk,
    /// Read before anything is planned.
    Sandbox,
}

/// An annotation that bulkhead reads.
#[derive(Debug)]
pub(super) struct Annotation {
    /// Its name; one that ends with `NAME` stands for many.
    pub name: &'static str,
    /// What it may hold.
    pub value: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// Key of the operator's file that bounds it.
    pub bound: &'static str,
    /// What it is about.
    pub key: Key,
}

impl Annotation {
    /// Whether it stands for `key`.
    pub fn is(&self, key: &str) -> bool {
        match self.name.strip_suffix(ANY) {
            Some(start) => key.starts_with(start),
            None => key == self.name,
        }
    }
}

/// All of them.
pub(super) const ANNOTATIONS: [Annotation; 12] = [
    Annotation {
        name: "io.bulkhead.vcpus",
        value: "1 to 32",
        meaning: "vCPUs, in place of those that follow from `linux.resources.cpu`",
        bound: "limits.vcpus",
        key: Key::Vcpus,
    },
    Annotation {
        name: "io.bulkhead.vcpus.max",
        value: "1 to 32",
        meaning: "most vCPUs that `update` may ask for; by default what it booted with",
        bound: "limits.vcpus",
        key: Key::VcpusMax,
    },
    Annotation {
        name: "io.bulkhead.memory-mib",
        value: "48 to 1048576",
        meaning: "guest memory in MiB, in place of what follows from `linux.resources.memory`",
        bound: "limits.memory_mib",
        key: Key::MemMib,
    },
    Annotation {
        name: "io.bulkhead.memory.max",
        value: "48 to 1048576",
        meaning: "most guest memory in MiB that `update` may ask for; by default 16 times that at boot",
        bound: "limits.memory_mib",
        key: Key::MemMaxMib,
    },
    Annotation {
        name: "io.bulkhead.boot-timeout-s",
        value: "1 to 3600",
        meaning: "seconds that a silent guest may take to start; by default 5",
        bound: "limits.boot_timeout_s",
        key: Key::BootTimeoutS,
    },
    Annotation {
        name: "io.bulkhead.kernel-parameters",
        value: "words as `NAME` or `NAME=VALUE`, at most 256 bytes",
        meaning: "added to the guest kernel's command line; none is allowed unless the operator names it",
        bound: "kernel_parameters.allow",
        key: Key::KernelParameters,
    },
    Annotation {
        name: "io.bulkhead.debug-console",
        value: "`true` or `false`",
        meaning: "the guest's kernel talks, and a failure shows its console, as with `--debug`",
        bound: "",
        key: Key::DebugConsole,
    },
    Annotation {
        name: "io.bulkhead.root",
        value: "`PATH[:ro][,type=FS][,overlay[=SIZE]][,layer][,iops=N][,bps=SIZE][,queues=N]`",
        meaning: "image file or block device of the host that is the root file system",
        bound: "limits.disk_iops, limits.disk_bytes_per_s",
        key: Key::Disk,
    },
    Annotation {
        name: "io.bulkhead.block.NAME",
        value: "`PATH[:ro]`, then `[,node=/dev/X]` or `,mount=/DIR[,type=FS]`, then `[,iops=N][,bps=SIZE][,queues=N]`",
        meaning: "image file or block device of the host as a device node, or mounted",
        bound: "limits.disk_iops, limits.disk_bytes_per_s",
        key: Key::Disk,
    },
    Annotation {
        name: "io.bulkhead.net",
        value: "`rx-bps=SIZE`, `tx-bps=SIZE`, `rx-pps=N`, `tx-pps=N`, some of them with commas between",
        meaning: "bytes and packets that each interface receives and sends in a second",
        bound: "",
        key: Key::Net,
    },
    Annotation {
        name: "io.bulkhead.net.NAME",
        value: "the same",
        meaning: "the same of the interface NAME, in place of `io.bulkhead.net`",
        bound: "",
        key: Key::Net,
    },
    Annotation {
        name: "io.bulkhead.sandbox",
        value: "id of a container under the same `--root`",
        meaning: "the container runs in that one's microVM, which must run; all other annotations of bulkhead then mean nothing",
        bound: "",
        key: Key::Sandbox,
    },
];

/// Name and meaning of each, for people.
pub fn annotations() -> impl Iterator<Item = (&'static str, &'static str)> {
    ANNOTATIONS.iter().map(|annotation| (annotation.name, annotation.meaning))
}

/// The annotation that `key` is, if bulkhead reads it.
pub(super) fn find(key: &str) -> Option<&'static Annotation> {
    ANNOTATIONS.iter().find(|annotation| annotation.is(key))
}

/// As messages name an annotation.
pub(super) fn field(key: &str) -> String {
    format!("annotations[{key:?}]")
}

/// The table of the document.
#[cfg(test)]
fn document() -> String {
    let mut text = "| annotation | value | meaning | bounded by |\n|---|---|---|---|\n".to_owned();
    for Annotation { name, value, meaning, bound, .. } in &ANNOTATIONS {
        let bounds: Vec<String> =
            bound.split(", ").filter(|b| !b.is_empty()).map(|b| format!("`{b}`")).collect();
        text += &format!("| `{name}` | {value} | {meaning} | {} |\n", bounds.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::disks;
    use super::*;

    #[test]
    fn document_has_the_table_of_annotations() {
        super::super::document::assert_current("annotations", &document());
    }

    #[test]
    fn names_of_disks_are_those_of_the_table() {
        for key in [disks::ROOT.to_owned(), format!("{}x", disks::BLOCK)] {
            assert_eq!(find(&key).unwrap().key, Key::Disk, "{key}");
        }
    }
}
