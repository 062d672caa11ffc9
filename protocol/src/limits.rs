//! Bounds on everything that crosses a trust boundary.

/// Longest container id accepted, in bytes.
pub const ID_MAX: usize = 255;
/// Largest `config.json` or `process.json` accepted, in bytes.
pub const SPEC_MAX: usize = 1 << 20;
/// Largest control message between the runtime and a sandbox process, in bytes.
pub const CONTROL_MESSAGE_MAX: usize = 64 << 10;
/// Most file descriptors in one control message; the kernel's own limit is 253 (SCM_MAX_FD).
pub const CONTROL_FDS_MAX: usize = 253;
/// Longest kernel command line, in bytes (x86 `COMMAND_LINE_SIZE` less its terminator).
pub const CMDLINE_MAX: usize = 2047;
/// Containers of one sandbox.
pub const CONTAINERS_MAX: usize = 64;
/// vCPUs of one guest.
pub const VCPUS_MAX: u32 = 32;
/// Smallest guest memory, in MiB, in which the guest kernel and the agent start.
pub const MEM_MIB_MIN: u32 = 48;
/// Largest guest memory, in MiB.
pub const MEM_MIB_MAX: u32 = 1 << 20;
/// Block devices of one guest.
pub const BLOCKS_MAX: usize = 16;
/// Request queues of one block device.
pub const BLOCK_QUEUES_MAX: u32 = 8;
/// Network interfaces of one guest, with those that may still come.
pub const NETS_MAX: usize = 8;
/// Queue pairs of one network interface.
pub const NET_PAIRS_MAX: usize = 8;
/// Shares of one container: root and bind mounts. A pod of Kubernetes with a hundred volumes fits,
/// and all of them with the device's socket go in one control message.
pub const SHARES_MAX: usize = 240;
/// Shares of all containers of one sandbox.
pub const SHARES_OF_ALL_MAX: usize = 1024;
/// Descriptors of the caller that one process gets behind its standard streams.
pub const PRESERVED_MAX: usize = 32;
/// Last bytes of the guest console that are kept.
pub const CONSOLE_TAIL: usize = 16 << 10;
