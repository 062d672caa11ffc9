//! Control messages between the runtime and `bulkhead-vmm`.
//!
//! Each is one JSON text in one message of a `SOCK_SEQPACKET` UNIX socket, at most
//! [`crate::limits::CONTROL_MESSAGE_MAX`] bytes. The VMM inherits its end as [`CONTROL_FD`].
//! The runtime sends [`Request`]s and reads one [`Reply`] for each; an [`Reply::Exited`] comes
//! without request as the VMM's last message.

use serde::{Deserialize, Serialize};

use crate::vm::{FdIndex, RawNet, RawVmConfig, VmConfigError, check_net};

/// Descriptor number of the control socket in `bulkhead-vmm` and in `bulkhead-fsd`.
pub const CONTROL_FD: i32 = 3;

/// What the runtime asks of the VMM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// First message, with the descriptors that the configuration names.
    Configure {
        /// The machine to build.
        config: Box<RawVmConfig>,
    },
    /// Run the guest from its first instruction.
    Start,
    /// Stop every vCPU and worker between two instructions.
    Pause,
    /// Undo a pause.
    Resume,
    /// End the guest at once.
    Stop,
    /// Tell the state.
    Status,
    /// Fill the empty network slot `slot`, with the descriptors that `net` names.
    AttachNet {
        /// Slot, below the number of interfaces and spare slots of the configuration.
        slot: u32,
        /// The interface.
        net: RawNet,
    },
    /// Empty a network slot; the guest has given the interface up.
    DetachNet {
        /// Slot.
        slot: u32,
    },
    /// Take this much of the guest's memory out of use (virtio 1.2, section 5.5).
    Balloon {
        /// Size of the balloon in MiB, below the guest's memory.
        mib: u32,
    },
    /// Ask the guest to use this much of the memory that can be added (section 5.15).
    Hotplug {
        /// MiB, at most the configuration's `hotplug_mib` rounded up to whole 128 MiB.
        mib: u32,
    },
    /// The file of a block device has another size now.
    ResizeBlock {
        /// Index in the configuration's `blocks`.
        block: u32,
    },
    /// Tell the counters of the devices.
    Stats,
}

/// Checks an interface that comes after the start, with `fds` descriptors.
pub fn check_attached(net: &RawNet, fds: usize) -> Result<(), VmConfigError> {
    check_net(net)?;
    net.taps.iter().try_for_each(|tap: &FdIndex| tap.check(fds)).map_err(VmConfigError::Fd)
}

/// Counters of a machine's devices since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmStats {
    /// Network interfaces that are attached.
    pub nets: Vec<NetStats>,
    /// Block devices, in the order of the configuration.
    pub blocks: Vec<BlockStats>,
    /// The balloon.
    pub balloon: Option<BalloonStats>,
    /// Memory that can be added.
    pub hotplug: Option<HotplugStats>,
}

/// Counters of one network interface, named from the guest's side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetStats {
    /// Slot.
    pub slot: u32,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that could not be received.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_dropped: u64,
}

/// Counters of one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// State of the balloon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStats {
    /// Size asked for, in bytes.
    pub target_bytes: u64,
    /// Size that the guest has made, in bytes.
    pub actual_bytes: u64,
    /// Bytes given back to the host by free page reporting, counted each time.
    pub reported_bytes: u64,
    /// What the guest kernel said of its memory when it was last asked, which is once for each
    /// [`Request::Stats`] and answered a moment later.
    pub guest: Option<GuestFigures>,
}

/// Memory of the guest in its own words, in bytes; 0 for what it does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestFigures {
    /// All that it has.
    pub total_bytes: u64,
    /// In no use.
    pub free_bytes: u64,
    /// What new programs could have.
    pub available_bytes: u64,
    /// Disk caches.
    pub cache_bytes: u64,
}

/// State of the memory that can be added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HotplugStats {
    /// Bytes asked for.
    pub requested_bytes: u64,
    /// Bytes that the guest uses.
    pub plugged_bytes: u64,
}

/// States of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Built, not started.
    Ready,
    /// vCPUs run.
    Running,
    /// vCPUs stand still.
    Paused,
}

/// What the VMM answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The request was carried out; the state after it.
    Done {
        /// State after the request.
        state: VmState,
    },
    /// The counters asked for by [`Request::Stats`].
    Stats {
        /// Counters.
        stats: Box<VmStats>,
    },
    /// The request failed; the machine is as it was.
    Failed {
        /// Phase, cause and fix.
        message: String,
    },
    /// The guest has ended; the VMM exits next.
    Exited {
        /// Why.
        reason: ExitReason,
    },
}

/// Why a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExitReason {
    /// The guest switched itself off.
    PowerOff,
    /// The guest kernel panicked.
    Panic,
    /// The guest's CPU shut down after a triple fault.
    TripleFault,
    /// The runtime asked for the stop.
    Stopped,
    /// The VMM cannot go on.
    Error {
        /// Phase and cause.
        message: String,
    },
}
