//! The table itself.

use super::Fate::{Both, Guest, Host, Meaningless, Refused};
use super::Row;

/// In the order of the document.
pub(super) const ROWS: &[Row] = &[
    ("ociVersion", Both("1.x is understood, another major version refused")),
    ("root", Both("")),
    (
        "root.path",
        Both(
            "the host serves the directory; the annotation `io.bulkhead.root` can put a disk in its place",
        ),
    ),
    ("root.readonly", Both("the host refuses every change, and the guest mounts it read-only")),
    ("hostname", Guest("needs a uts namespace")),
    ("domainname", Guest("needs a uts namespace")),
    // Mounts.
    ("mounts", Both("in the given order")),
    (
        "mounts[].destination",
        Guest("`..` is refused; missing mount points of a read-only root are made on the host"),
    ),
    (
        "mounts[].type",
        Both(
            "proc, sysfs, tmpfs, devpts, mqueue, cgroup: made by the guest's kernel; bind: served by the host; overlay: mounted on the host and served; erofs, ext2, ext3, ext4, squashfs: a disk",
        ),
    ),
    ("mounts[].type: other", Refused(r#"{"mounts": [{"destination": "/a", "type": "nfs"}]}"#)),
    (
        "mounts[].source",
        Both("opened on the host; /dev/null, zero, full, random and urandom are the guest's"),
    ),
    (
        "mounts[].options",
        Both(
            "`bulkhead features` lists those of every mount; tmpfs also takes tmpcopyup and, like overlay and disks, the options of its file system",
        ),
    ),
    (
        "mounts[].options: shared without CAP_SYS_ADMIN",
        Meaningless(
            r#"{"process": {"capabilities": {}}, "mounts": [{"destination": "/a", "source": "/x", "options": ["bind", "shared"]}]}"#,
        ),
    ),
    (
        "mounts[].options: shared, rshared, slave, rslave",
        Refused(
            r#"{"mounts": [{"destination": "/a", "source": "/x", "options": ["rbind", "rslave"]}]}"#,
        ),
    ),
    (
        "mounts[].options: unbindable, runbindable",
        Refused(
            r#"{"mounts": [{"destination": "/a", "source": "/x", "options": ["bind", "unbindable"]}]}"#,
        ),
    ),
    (
        "mounts[].options: remount",
        Refused(r#"{"mounts": [{"destination": "/a", "type": "tmpfs", "options": ["remount"]}]}"#),
    ),
    (
        "mounts[].options: mand",
        Refused(r#"{"mounts": [{"destination": "/a", "type": "tmpfs", "options": ["mand"]}]}"#),
    ),
    (
        "mounts[].options: idmap, ridmap without mappings",
        Refused(
            r#"{"mounts": [{"destination": "/a", "source": "/x", "options": ["bind", "idmap"]}]}"#,
        ),
    ),
    (
        "mounts[].options: unknown ones of a bind mount",
        Refused(r#"{"mounts": [{"destination": "/a", "source": "/x", "options": ["bind", "x"]}]}"#),
    ),
    ("mounts[].uidMappings", Host("of a bind mount: an idmapped mount of the host is served")),
    ("mounts[].uidMappings[].*", Host("")),
    ("mounts[].gidMappings", Host("as uidMappings, with which it is given")),
    ("mounts[].gidMappings[].*", Host("")),
    // The process.
    ("process", Guest("")),
    ("process.terminal", Both("a pseudoterminal of the guest, relayed to one of the host")),
    ("process.consoleSize", Guest("with `terminal`; without it the specification ignores it")),
    ("process.consoleSize.*", Guest("at most 65535")),
    ("process.user", Guest("")),
    ("process.user.uid", Guest("")),
    ("process.user.gid", Guest("")),
    ("process.user.umask", Guest("")),
    ("process.user.additionalGids", Guest("")),
    ("process.user.username", Meaningless(r#"{"process": {"user": {"username": "x"}}}"#)),
    ("process.args", Guest("")),
    ("process.commandLine", Refused(r#"{"process": {"commandLine": "x"}}"#)),
    ("process.env", Guest("")),
    ("process.cwd", Guest("made if it is missing")),
    ("process.capabilities", Guest("capabilities over the guest's kernel, not the host's")),
    ("process.capabilities.*", Guest("")),
    ("process.rlimits", Guest("")),
    ("process.rlimits[].*", Guest("")),
    ("process.noNewPrivileges", Guest("")),
    (
        "process.apparmorProfile",
        Meaningless(r#"{"process": {"apparmorProfile": "docker-default"}}"#),
    ),
    ("process.selinuxLabel", Meaningless(r#"{"process": {"selinuxLabel": "x"}}"#)),
    (
        "process.oomScoreAdj",
        Both("of the process in the guest, and of the sandbox's processes on the host"),
    ),
    ("process.ioPriority", Guest("")),
    ("process.ioPriority.*", Guest("")),
    ("process.scheduler", Guest("among the processes of the guest")),
    (
        "process.scheduler.flags",
        Guest("SCHED_FLAG_RESET_ON_FORK and SCHED_FLAG_DL_OVERRUN are refused as unknown"),
    ),
    ("process.scheduler.*", Guest("")),
    ("process.execCPUAffinity", Refused(r#"{"process": {"execCPUAffinity": {"initial": "0"}}}"#)),
    // Hooks.
    ("hooks", Both("the state of the container is on their standard input")),
    ("hooks.prestart", Host("in the runtime's namespaces, after the network namespace is made")),
    ("hooks.createRuntime", Host("as prestart, after it")),
    ("hooks.createContainer", Host("in the container's network namespace, on the host")),
    (
        "hooks.startContainer",
        Guest("programs of the container's root, run in it with its user, capabilities and filter"),
    ),
    ("hooks.poststart", Host("in the runtime's namespaces, after the workload has started")),
    ("hooks.poststop", Host("in the runtime's namespaces, when the container is deleted")),
    ("hooks.*[].path", Both("absolute")),
    ("hooks.*[].args", Both("")),
    ("hooks.*[].env", Both("without it a startContainer hook has the environment of the process")),
    ("hooks.*[].timeout", Both("seconds, above 0")),
    (
        "annotations",
        Host(
            "kept in the state and given to hooks; those of bulkhead, and of systemd, are listed below",
        ),
    ),
    // Linux.
    ("linux", Both("")),
    ("linux.namespaces", Both("mount, pid, network and ipc must be there")),
    (
        "linux.namespaces[].type",
        Both(
            "mount, pid, ipc, uts and cgroup are made in the guest; network is one of the host, whose interfaces the guest gets",
        ),
    ),
    (
        "linux.namespaces[]: user",
        Refused(
            r#"{"linux": {"namespaces": [{"type": "user"}, {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "mount"}]}}"#,
        ),
    ),
    (
        "linux.namespaces[]: time",
        Refused(
            r#"{"linux": {"namespaces": [{"type": "time"}, {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "mount"}]}}"#,
        ),
    ),
    (
        "linux.namespaces[].path",
        Host(
            "of a network namespace; in the microVM of another container, of one of a container there",
        ),
    ),
    (
        "linux.namespaces[].path: of another namespace",
        Refused(
            r#"{"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "mount"}]}}"#,
        ),
    ),
    (
        "linux.uidMappings",
        Refused(r#"{"linux": {"uidMappings": [{"hostID": 0, "containerID": 0, "size": 1}]}}"#),
    ),
    (
        "linux.gidMappings",
        Refused(r#"{"linux": {"gidMappings": [{"hostID": 0, "containerID": 0, "size": 1}]}}"#),
    ),
    ("linux.timeOffsets", Refused(r#"{"linux": {"timeOffsets": {"boottime": {"secs": 1}}}}"#)),
    (
        "linux.devices",
        Guest(
            "nodes of devices that the guest's kernel has, and FIFOs; a block device becomes a disk",
        ),
    ),
    ("linux.devices[].*", Guest("")),
    (
        "linux.devices[]: of the host",
        Refused(
            r#"{"linux": {"devices": [{"path": "/dev/ttyS0", "type": "c", "major": 4, "minor": 64}]}}"#,
        ),
    ),
    ("linux.netDevices", Refused(r#"{"linux": {"netDevices": {"eth0": {"name": "x"}}}}"#)),
    (
        "linux.cgroupsPath",
        Both(
            "the sandbox's cgroup on the host, with `--systemd-cgroup` as slice:prefix:name; in the \
             guest it is /bulkhead/ID",
        ),
    ),
    ("linux.resources", Both("")),
    (
        "linux.resources.devices",
        Guest("by a filter on the container's cgroup, and by which disks can be written"),
    ),
    ("linux.resources.devices[].*", Guest("")),
    ("linux.resources.memory", Both("")),
    (
        "linux.resources.memory.limit",
        Both(
            "enforced in the guest; with 64 MiB more it is the guest's memory, and with what its processes need the limit of the sandbox's cgroup",
        ),
    ),
    ("linux.resources.memory.reservation", Both("memory.low of both cgroups")),
    ("linux.resources.memory.swap", Host("the guest has no swap; the host may swap guest memory")),
    (
        "linux.resources.memory.kernel",
        Meaningless(r#"{"linux": {"resources": {"memory": {"kernel": 1}}}}"#),
    ),
    (
        "linux.resources.memory.kernelTCP",
        Meaningless(r#"{"linux": {"resources": {"memory": {"kernelTCP": 1}}}}"#),
    ),
    (
        "linux.resources.memory.swappiness",
        Meaningless(r#"{"linux": {"resources": {"memory": {"swappiness": 1}}}}"#),
    ),
    (
        "linux.resources.memory.disableOOMKiller",
        Meaningless(r#"{"linux": {"resources": {"memory": {"disableOOMKiller": true}}}}"#),
    ),
    (
        "linux.resources.memory.useHierarchy",
        Meaningless(r#"{"linux": {"resources": {"memory": {"useHierarchy": true}}}}"#),
    ),
    (
        "linux.resources.memory.checkBeforeUpdate",
        Meaningless(r#"{"linux": {"resources": {"memory": {"checkBeforeUpdate": true}}}}"#),
    ),
    ("linux.resources.cpu", Both("")),
    ("linux.resources.cpu.shares", Both("cpu.weight, by runc's curve")),
    (
        "linux.resources.cpu.quota",
        Both("also the number of vCPUs; on the host from the end of the boot on"),
    ),
    ("linux.resources.cpu.burst", Both("")),
    ("linux.resources.cpu.period", Both("")),
    (
        "linux.resources.cpu.realtimeRuntime",
        Refused(r#"{"linux": {"resources": {"cpu": {"realtimeRuntime": 1000}}}}"#),
    ),
    (
        "linux.resources.cpu.realtimePeriod",
        Refused(r#"{"linux": {"resources": {"cpu": {"realtimePeriod": 1000}}}}"#),
    ),
    ("linux.resources.cpu.cpus", Host("CPUs of the host; their number bounds that of vCPUs")),
    ("linux.resources.cpu.mems", Host("memory nodes of the host")),
    ("linux.resources.cpu.idle", Both("")),
    ("linux.resources.pids", Guest("")),
    ("linux.resources.pids.limit", Guest("0 is no limit; processes of the host are bounded apart")),
    ("linux.resources.blockIO", Host("devices of the host")),
    ("linux.resources.blockIO.weight", Host("io.bfq.weight or io.weight")),
    (
        "linux.resources.blockIO.leafWeight",
        Refused(r#"{"linux": {"resources": {"blockIO": {"leafWeight": 10}}}}"#),
    ),
    ("linux.resources.blockIO.weightDevice", Host("")),
    (
        "linux.resources.blockIO.weightDevice[].leafWeight",
        Refused(
            r#"{"linux": {"resources": {"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}}}}"#,
        ),
    ),
    ("linux.resources.blockIO.weightDevice[].*", Host("")),
    ("linux.resources.blockIO.throttleReadBpsDevice", Host("io.max")),
    ("linux.resources.blockIO.throttleReadBpsDevice[].*", Host("")),
    ("linux.resources.blockIO.throttleWriteBpsDevice", Host("io.max")),
    ("linux.resources.blockIO.throttleWriteBpsDevice[].*", Host("")),
    ("linux.resources.blockIO.throttleReadIOPSDevice", Host("io.max")),
    ("linux.resources.blockIO.throttleReadIOPSDevice[].*", Host("")),
    ("linux.resources.blockIO.throttleWriteIOPSDevice", Host("io.max")),
    ("linux.resources.blockIO.throttleWriteIOPSDevice[].*", Host("")),
    (
        "linux.resources.hugepageLimits",
        Meaningless(
            r#"{"linux": {"resources": {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}}}"#,
        ),
    ),
    (
        "linux.resources.network",
        Meaningless(r#"{"linux": {"resources": {"network": {"classID": 1}}}}"#),
    ),
    (
        "linux.resources.rdma",
        Meaningless(r#"{"linux": {"resources": {"rdma": {"mlx5": {"hcaHandles": 1}}}}}"#),
    ),
    (
        "linux.resources.unified",
        Both("cpu.* on both sides, cpuset.* and io.* on the host, the rest in the guest"),
    ),
    ("linux.sysctl", Guest("of the guest's kernel: all of them are the container's own")),
    ("linux.seccomp", Guest("also for processes of exec")),
    ("linux.seccomp.defaultAction", Guest("")),
    (
        "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY",
        Refused(r#"{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}}}"#),
    ),
    ("linux.seccomp.defaultErrnoRet", Guest("")),
    ("linux.seccomp.architectures", Guest("")),
    ("linux.seccomp.flags", Guest("")),
    (
        "linux.seccomp.listenerPath",
        Refused(
            r#"{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s"}}}"#,
        ),
    ),
    (
        "linux.seccomp.listenerMetadata",
        Refused(
            r#"{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "m"}}}"#,
        ),
    ),
    ("linux.seccomp.syscalls", Guest("names that the guest's kernel does not know are skipped")),
    ("linux.seccomp.syscalls[].names", Guest("")),
    ("linux.seccomp.syscalls[].action", Guest("")),
    (
        "linux.seccomp.syscalls[].action: SCMP_ACT_NOTIFY",
        Refused(
            r#"{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kexec_load"], "action": "SCMP_ACT_NOTIFY"}]}}}"#,
        ),
    ),
    ("linux.seccomp.syscalls[].errnoRet", Guest("")),
    ("linux.seccomp.syscalls[].args", Guest("")),
    ("linux.seccomp.syscalls[].args[].*", Guest("")),
    ("linux.rootfsPropagation", Meaningless(r#"{"linux": {"rootfsPropagation": "rslave"}}"#)),
    (
        "linux.rootfsPropagation: shared, rshared",
        Refused(r#"{"linux": {"rootfsPropagation": "rshared"}}"#),
    ),
    ("linux.maskedPaths", Guest("")),
    ("linux.readonlyPaths", Guest("")),
    ("linux.mountLabel", Meaningless(r#"{"linux": {"mountLabel": "x"}}"#)),
    ("linux.intelRdt", Refused(r#"{"linux": {"intelRdt": {}}}"#)),
    (
        "linux.memoryPolicy",
        Refused(r#"{"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}}}"#),
    ),
    ("linux.personality", Guest("")),
    ("linux.personality.domain", Guest("")),
    (
        "linux.personality.flags",
        Refused(r#"{"linux": {"personality": {"domain": "LINUX", "flags": ["x"]}}}"#),
    ),
    // Others.
    ("vm", Refused(r#"{"vm": {"kernel": {"path": "/k"}}}"#)),
    ("freebsd", Refused(r#"{"freebsd": {}}"#)),
    ("solaris", Refused(r#"{"solaris": {}}"#)),
    ("windows", Refused(r#"{"windows": {"layerFolders": ["x"]}}"#)),
    ("zos", Refused(r#"{"zos": {}}"#)),
    // No fields of the specification, but of its types.
    ("uidMappings", Refused(r#"{"uidMappings": [{"hostID": 0, "containerID": 0, "size": 1}]}"#)),
    ("gidMappings", Refused(r#"{"gidMappings": [{"hostID": 0, "containerID": 0, "size": 1}]}"#)),
];
