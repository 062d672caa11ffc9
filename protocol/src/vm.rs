//! The machine that the runtime asks `bulkhead-vmm` to build.
//!
//! [`RawVmConfig`] is what crosses the socket; [`VmConfig`] is what has been checked. Nothing
//! names a path: every file, socket and device is an index into the descriptors sent along.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::guest::HOST_CID;
use crate::limits::{
    BLOCK_QUEUES_MAX, BLOCKS_MAX, CMDLINE_MAX, MEM_MIB_MAX, MEM_MIB_MIN, NET_PAIRS_MAX, NETS_MAX,
    VCPUS_MAX,
};

/// Index into the descriptors that came with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdIndex(pub u32);

impl FdIndex {
    /// Fails with the index if fewer than `fds` descriptors include it.
    pub(crate) fn check(self, fds: usize) -> Result<(), u32> {
        if (self.0 as usize) < fds { Ok(()) } else { Err(self.0) }
    }
}

/// Unchecked configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawVmConfig {
    /// `/dev/kvm`, open for reading and writing.
    pub kvm: FdIndex,
    /// An ELF `vmlinux`, or any 64-bit ELF with a PVH entry note.
    pub kernel: FdIndex,
    /// Initial RAM file system.
    pub initrd: Option<FdIndex>,
    /// Kernel command line without the devices, which the VMM appends.
    pub cmdline: String,
    /// vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub mem_mib: u32,
    /// Pipe or file that receives what the guest writes on its serial console.
    pub console: Option<FdIndex>,
    /// The vsock device.
    pub vsock: Option<RawVsock>,
    /// Block devices, in the order in which the guest names them.
    pub blocks: Vec<RawBlock>,
    /// The virtio-fs device.
    pub share: Option<RawShareDevice>,
    /// Network interfaces that are there from the start, in slots 0, 1, …
    pub nets: Vec<RawNet>,
    /// Slots after those, empty until `AttachNet` fills one. With them at most [`NETS_MAX`].
    pub net_spares: u32,
    /// Whether there is a memory balloon, which also returns what the guest frees.
    pub balloon: bool,
    /// Memory in MiB that can be added while the guest runs, beyond `mem_mib`; 0: none.
    pub hotplug_mib: u32,
    /// Who the VMM becomes.
    pub jail: RawJail,
}

/// A vsock device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawVsock {
    /// Context id of the guest, above 2.
    pub guest_cid: u64,
    /// Listening UNIX stream socket. A client writes `CONNECT <port>\n`, reads
    /// `OK <host port>\n`, and is then connected to that port of the guest.
    pub listener: FdIndex,
    /// Connections that the guest may open, each once; every other is refused.
    pub dials: Vec<RawDial>,
}

/// A connected UNIX stream socket that waits for the guest to connect to a host port.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDial {
    /// Host port.
    pub port: u32,
    /// The VMM's end of the pair.
    pub socket: FdIndex,
}

/// A block device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBlock {
    /// Serial number that the guest reads, at most 20 bytes of ASCII.
    pub serial: String,
    /// Regular file or block device.
    pub file: FdIndex,
    /// Refuse every change.
    pub read_only: bool,
    /// Request queues, 1 to [`BLOCK_QUEUES_MAX`].
    pub queues: u32,
    /// Limit of reads and writes together.
    pub rate: Option<RawRateLimit>,
}

/// A network interface (virtio 1.2, section 5.1).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNet {
    /// Hardware address of the guest's interface.
    pub mac: [u8; 6],
    /// Largest packet without its Ethernet header, in bytes, 68 to 65535.
    pub mtu: u16,
    /// One open queue of a tap interface for each queue pair, 1 to [`NET_PAIRS_MAX`]: attached
    /// with `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR` and, if several, `IFF_MULTI_QUEUE`.
    pub taps: Vec<FdIndex>,
    /// Limit of what the guest receives.
    pub rx_rate: Option<RawRateLimit>,
    /// Limit of what the guest sends.
    pub tx_rate: Option<RawRateLimit>,
}

/// Limits of a device; what is absent has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRateLimit {
    /// Bytes of payload.
    pub bytes: Option<RawTokenBucket>,
    /// Operations: packets or requests.
    pub ops: Option<RawTokenBucket>,
}

/// A token bucket, in the words of Firecracker's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTokenBucket {
    /// Tokens that the bucket holds, not 0; it starts full.
    pub size: u64,
    /// Tokens besides these that are there once, at the start.
    pub one_time_burst: u64,
    /// Time in which an empty bucket becomes full, in milliseconds, not 0.
    pub refill_time_ms: u64,
}

/// A virtio-fs device whose requests a file server answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawShareDevice {
    /// Tag by which the guest mounts it, at most 36 bytes.
    pub tag: String,
    /// Socket to `bulkhead-fsd`.
    pub server: FdIndex,
}

/// Identity and limits of the jailed process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawJail {
    /// User and group id on the host, not 0.
    pub id: u32,
}

/// Why a configuration is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum VmConfigError {
    /// Field `vcpus`.
    #[error("vcpus: {0} (1 to {VCPUS_MAX})")]
    Vcpus(u32),
    /// Field `mem_mib`.
    #[error("mem_mib: {0} ({MEM_MIB_MIN} to {MEM_MIB_MAX})")]
    Memory(u32),
    /// Field `cmdline`.
    #[error("cmdline: {0} bytes (at most {CMDLINE_MAX}, ASCII, no NUL)")]
    Cmdline(usize),
    /// Field `blocks`.
    #[error("blocks: {0} (at most {BLOCKS_MAX})")]
    Blocks(usize),
    /// Field `blocks[].serial`.
    #[error("blocks: serial {0:?} (at most 20 bytes of ASCII)")]
    Serial(String),
    /// Field `blocks[].queues`.
    #[error("blocks: {0} queues (1 to {BLOCK_QUEUES_MAX})")]
    BlockQueues(u32),
    /// Fields `nets` and `net_spares`.
    #[error("nets: {0} (at most {NETS_MAX} with the spare ones)")]
    Nets(usize),
    /// Field `nets[].mac`.
    #[error("nets: {0:02x?} is no address of one interface")]
    Mac([u8; 6]),
    /// Field `nets[].mtu`.
    #[error("nets: MTU {0} (68 to 65535)")]
    Mtu(u16),
    /// Field `nets[].taps`.
    #[error("nets: {0} tap queues (1 to {NET_PAIRS_MAX})")]
    Taps(usize),
    /// A token bucket.
    #[error("{0}: a token bucket without size or refill time")]
    Bucket(&'static str),
    /// Field `hotplug_mib`.
    #[error("hotplug_mib: {0} (with mem_mib at most {MEM_MIB_MAX})")]
    Hotplug(u32),
    /// Field `share.tag`.
    #[error("share.tag: {0:?} (1 to 36 bytes)")]
    Tag(String),
    /// Field `vsock.guest_cid`.
    #[error("vsock.guest_cid: {0} (3 to 2^32 - 2)")]
    Cid(u64),
    /// Field `vsock.dials`.
    #[error("vsock.dials: port {0} twice")]
    Dial(u32),
    /// Field `jail.id`.
    #[error("jail.id: 0 (the VMM never runs as root)")]
    Root,
    /// A descriptor index beyond those that came along.
    #[error("descriptor {0} was not sent")]
    Fd(u32),
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct VmConfig {
    raw: RawVmConfig,
}

impl VmConfig {
    /// Checks `raw`, which came with `fds` descriptors.
    pub fn new(raw: RawVmConfig, fds: usize) -> Result<Self, VmConfigError> {
        if !(1..=VCPUS_MAX).contains(&raw.vcpus) {
            return Err(VmConfigError::Vcpus(raw.vcpus));
        }
        if !(MEM_MIB_MIN..=MEM_MIB_MAX).contains(&raw.mem_mib) {
            return Err(VmConfigError::Memory(raw.mem_mib));
        }
        let text = &raw.cmdline;
        if text.len() > CMDLINE_MAX || !text.is_ascii() || text.contains('\0') {
            return Err(VmConfigError::Cmdline(text.len()));
        }
        if raw.jail.id == 0 {
            return Err(VmConfigError::Root);
        }
        check_blocks(&raw.blocks)?;
        let slots = raw.nets.len().saturating_add(raw.net_spares as usize);
        if slots > NETS_MAX {
            return Err(VmConfigError::Nets(slots));
        }
        raw.nets.iter().try_for_each(check_net)?;
        if raw.hotplug_mib > MEM_MIB_MAX - raw.mem_mib {
            return Err(VmConfigError::Hotplug(raw.hotplug_mib));
        }
        if let Some(vsock) = &raw.vsock {
            check_vsock(vsock)?;
        }
        if let Some(share) = &raw.share
            && !(1..=36).contains(&share.tag.len())
        {
            return Err(VmConfigError::Tag(share.tag.clone()));
        }
        for index in indices(&raw) {
            index.check(fds).map_err(VmConfigError::Fd)?;
        }
        Ok(Self { raw })
    }

    /// `/dev/kvm`.
    pub fn kvm(&self) -> FdIndex {
        self.raw.kvm
    }

    /// The guest kernel.
    pub fn kernel(&self) -> FdIndex {
        self.raw.kernel
    }

    /// The initial RAM file system.
    pub fn initrd(&self) -> Option<FdIndex> {
        self.raw.initrd
    }

    /// Kernel command line without devices: ASCII, no NUL, at most [`CMDLINE_MAX`] bytes.
    pub fn cmdline(&self) -> &str {
        &self.raw.cmdline
    }

    /// vCPUs, 1 to [`VCPUS_MAX`].
    pub fn vcpus(&self) -> u32 {
        self.raw.vcpus
    }

    /// Guest memory in MiB, [`MEM_MIB_MIN`] to [`MEM_MIB_MAX`].
    pub fn mem_mib(&self) -> u32 {
        self.raw.mem_mib
    }

    /// Receiver of the serial console.
    pub fn console(&self) -> Option<FdIndex> {
        self.raw.console
    }

    /// The vsock device: guest CID valid, dialled ports unique.
    pub fn vsock(&self) -> Option<&RawVsock> {
        self.raw.vsock.as_ref()
    }

    /// Block devices, at most [`BLOCKS_MAX`], serials at most 20 bytes of ASCII.
    pub fn blocks(&self) -> &[RawBlock] {
        &self.raw.blocks
    }

    /// The virtio-fs device, its tag 1 to 36 bytes.
    pub fn share(&self) -> Option<&RawShareDevice> {
        self.raw.share.as_ref()
    }

    /// Network interfaces of the slots from 0 on, each checked.
    pub fn nets(&self) -> &[RawNet] {
        &self.raw.nets
    }

    /// Empty network slots after them.
    pub fn net_spares(&self) -> u32 {
        self.raw.net_spares
    }

    /// Whether there is a balloon.
    pub fn balloon(&self) -> bool {
        self.raw.balloon
    }

    /// Memory in MiB that can be added; with the guest's at most [`MEM_MIB_MAX`].
    pub fn hotplug_mib(&self) -> u32 {
        self.raw.hotplug_mib
    }

    /// User and group id that the VMM takes, not 0.
    pub fn jail_id(&self) -> u32 {
        self.raw.jail.id
    }
}

fn check_blocks(blocks: &[RawBlock]) -> Result<(), VmConfigError> {
    if blocks.len() > BLOCKS_MAX {
        return Err(VmConfigError::Blocks(blocks.len()));
    }
    for block in blocks {
        if block.serial.len() > 20 || !block.serial.is_ascii() {
            return Err(VmConfigError::Serial(block.serial.clone()));
        }
        if !(1..=BLOCK_QUEUES_MAX).contains(&block.queues) {
            return Err(VmConfigError::BlockQueues(block.queues));
        }
        check_rate("blocks", block.rate)?;
    }
    Ok(())
}

/// A configuration of one interface, also one that comes after the start.
pub(crate) fn check_net(net: &RawNet) -> Result<(), VmConfigError> {
    // The lowest bit of the first byte marks a group (IEEE 802-2014, section 8.2).
    if net.mac[0] & 1 == 1 || net.mac == [0; 6] {
        return Err(VmConfigError::Mac(net.mac));
    }
    if net.mtu < 68 {
        return Err(VmConfigError::Mtu(net.mtu));
    }
    if !(1..=NET_PAIRS_MAX).contains(&net.taps.len()) {
        return Err(VmConfigError::Taps(net.taps.len()));
    }
    check_rate("nets", net.rx_rate)?;
    check_rate("nets", net.tx_rate)
}

fn check_rate(field: &'static str, rate: Option<RawRateLimit>) -> Result<(), VmConfigError> {
    let buckets = rate.into_iter().flat_map(|rate| [rate.bytes, rate.ops]).flatten();
    match buckets.into_iter().any(|b| b.size == 0 || b.refill_time_ms == 0) {
        true => Err(VmConfigError::Bucket(field)),
        false => Ok(()),
    }
}

fn check_vsock(vsock: &RawVsock) -> Result<(), VmConfigError> {
    if vsock.guest_cid <= u64::from(HOST_CID) || vsock.guest_cid >= u64::from(u32::MAX) {
        return Err(VmConfigError::Cid(vsock.guest_cid));
    }
    let mut ports = std::collections::BTreeSet::new();
    match vsock.dials.iter().find(|dial| !ports.insert(dial.port)) {
        Some(dial) => Err(VmConfigError::Dial(dial.port)),
        None => Ok(()),
    }
}

fn indices(raw: &RawVmConfig) -> impl Iterator<Item = FdIndex> {
    let vsock = raw.vsock.iter();
    [raw.kvm, raw.kernel]
        .into_iter()
        .chain(raw.initrd)
        .chain(raw.console)
        .chain(vsock.clone().map(|v| v.listener))
        .chain(vsock.flat_map(|v| v.dials.iter().map(|d| d.socket)))
        .chain(raw.blocks.iter().map(|b| b.file))
        .chain(raw.share.iter().map(|s| s.server))
        .chain(raw.nets.iter().flat_map(|n| n.taps.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawVmConfig {
        RawVmConfig {
            kvm: FdIndex(0),
            kernel: FdIndex(1),
            initrd: None,
            cmdline: "quiet".into(),
            vcpus: 1,
            mem_mib: 128,
            console: None,
            vsock: None,
            blocks: vec![],
            share: None,
            nets: vec![],
            net_spares: 0,
            balloon: false,
            hotplug_mib: 0,
            jail: RawJail { id: 1000 },
        }
    }

    fn refused(change: impl FnOnce(&mut RawVmConfig)) -> VmConfigError {
        let mut raw = raw();
        change(&mut raw);
        VmConfig::new(raw, 2).unwrap_err()
    }

    #[test]
    fn config_within_bounds_is_accepted() {
        assert_eq!(VmConfig::new(raw(), 2).unwrap().mem_mib(), 128);
    }

    #[test]
    fn config_out_of_bounds_names_the_field() {
        assert_eq!(refused(|r| r.vcpus = 0), VmConfigError::Vcpus(0));
        assert_eq!(refused(|r| r.mem_mib = 1), VmConfigError::Memory(1));
        assert_eq!(refused(|r| r.cmdline = "x".repeat(4000)), VmConfigError::Cmdline(4000));
        assert_eq!(refused(|r| r.jail.id = 0), VmConfigError::Root);
        assert_eq!(refused(|r| r.console = Some(FdIndex(2))), VmConfigError::Fd(2));
    }

    #[test]
    fn dial_of_one_port_twice_is_refused() {
        let dial = RawDial { port: 7, socket: FdIndex(0) };
        let vsock =
            RawVsock { guest_cid: 3, listener: FdIndex(0), dials: vec![dial.clone(), dial] };
        assert_eq!(refused(|r| r.vsock = Some(vsock)), VmConfigError::Dial(7));
    }

    fn net() -> RawNet {
        RawNet {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            taps: vec![FdIndex(1)],
            rx_rate: None,
            tx_rate: None,
        }
    }

    #[test]
    fn interface_out_of_bounds_names_the_field() {
        let with = |change: fn(&mut RawNet)| {
            let mut net = net();
            change(&mut net);
            refused(|r| r.nets = vec![net])
        };
        assert_eq!(with(|n| n.mac = [1; 6]), VmConfigError::Mac([1; 6]));
        assert_eq!(with(|n| n.mtu = 67), VmConfigError::Mtu(67));
        assert_eq!(with(|n| n.taps.clear()), VmConfigError::Taps(0));
        assert_eq!(with(|n| n.taps = vec![FdIndex(2)]), VmConfigError::Fd(2));
        let bytes = Some(RawTokenBucket { size: 1, one_time_burst: 0, refill_time_ms: 0 });
        let rate = Some(RawRateLimit { bytes, ops: None });
        let refusal = refused(|r| r.nets = vec![RawNet { tx_rate: rate, ..net() }]);
        assert_eq!(refusal, VmConfigError::Bucket("nets"));
        assert_eq!(refused(|r| r.net_spares = u32::MAX), VmConfigError::Nets(u32::MAX as usize));
    }

    #[test]
    fn memory_beyond_the_largest_guest_cannot_be_added() {
        assert_eq!(refused(|r| r.hotplug_mib = u32::MAX), VmConfigError::Hotplug(u32::MAX));
    }

    #[test]
    fn unknown_field_is_refused() {
        let mut json = serde_json::to_value(raw()).unwrap();
        json["path"] = "/etc/shadow".into();
        assert!(serde_json::from_value::<RawVmConfig>(json).is_err());
    }
}
