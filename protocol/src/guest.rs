//! What host and guest agree on: vsock ports, tags and guest paths.

/// Context id of the host (virtio 1.2, section 5.10.4).
pub const HOST_CID: u32 = 2;
/// Context id of every guest: each VMM has one guest, so ids never meet.
pub const GUEST_CID: u64 = 3;

/// Guest port on which the agent serves the API of `proto/agent.proto`.
pub const AGENT_PORT: u32 = 1024;
/// Guest port on which the agent accepts standard streams: eight little-endian bytes of stream
/// number, then the stream.
pub const STDIO_PORT: u32 = 1025;
/// Host port that the agent connects to once it serves both ports. It writes one byte,
/// [`READY`], and keeps the connection for as long as it lives: its end is the agent's end.
pub const READY_PORT: u32 = 1024;
/// The byte that the agent writes on its ready connection; it is the version of the agent API.
pub const READY: u8 = 1;

/// Tag of the virtio-fs device that holds every share.
pub const SHARE_TAG: &str = "bulkhead";
/// Where the agent mounts that device. Each share is an entry of this directory.
pub const SHARE_DIR: &str = "/run/bulkhead/share";
/// Name of the share that is the container's root file system.
pub const ROOT_SHARE: &str = "root";
