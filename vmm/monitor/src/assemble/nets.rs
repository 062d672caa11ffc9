//! The network slots of a machine: filled from the configuration, and by the runtime while it runs.

use std::os::fd::OwnedFd;

use bulkhead_devices::virtio::net::{AttachError, Backend, BackendError, Net, NetConfig};
use bulkhead_protocol::control::{NetStats, check_attached};
use bulkhead_protocol::vm::{RawNet, RawRateLimit, VmConfigError};
use thiserror::Error;

use super::descriptors::{DescriptorError, Descriptors};
use super::placed::{Placed, lock};
use super::rate;

/// Why a slot stays as it is.
#[derive(Debug, Error)]
pub enum NetError {
    /// No such slot.
    #[error("there is no network slot {0}")]
    Absent(u32),
    /// Nothing to detach.
    #[error("network slot {0} is empty")]
    Empty(u32),
    /// The interface's configuration.
    #[error("checking the interface for network slot {0}")]
    Config(u32, #[source] VmConfigError),
    /// The descriptors that it names.
    #[error("taking the descriptors for network slot {0}")]
    Descriptors(u32, #[source] DescriptorError),
    /// The tap.
    #[error("opening the tap for network slot {0}")]
    Tap(u32, #[source] BackendError),
    /// The slot.
    #[error("filling network slot {0}")]
    Attach(u32, #[source] AttachError),
}

/// All slots, in the order of the guest's windows.
#[derive(Default)]
pub struct Nets(Vec<Placed<Net>>);

impl Nets {
    /// Adds the next one.
    pub fn push(&mut self, slot: Placed<Net>) {
        self.0.push(slot);
    }

    /// Fills slot `slot` with an interface that has come after the start.
    pub fn attach(&self, slot: u32, net: &RawNet, fds: Vec<OwnedFd>) -> Result<(), NetError> {
        check_attached(net, fds.len()).map_err(|source| NetError::Config(slot, source))?;
        self.fill(slot, net, &mut Descriptors::new(fds))
    }

    /// Fills slot `slot` with a checked interface.
    pub fn fill(&self, slot: u32, net: &RawNet, fds: &mut Descriptors) -> Result<(), NetError> {
        let device = self.slot(slot)?;
        let queues = net.taps.iter().map(|tap| fds.take(*tap)).collect::<Result<_, _>>();
        let queues = queues.map_err(|source| NetError::Descriptors(slot, source))?;
        let backend = Backend::new(queues).map_err(|source| NetError::Tap(slot, source))?;
        let mut device = lock(device);
        if device.device().counts().is_some() {
            return Err(NetError::Attach(slot, AttachError::Occupied));
        }
        device
            .replace(|device| device.attach(config(net), backend))
            .map_err(|source| NetError::Attach(slot, source))
    }

    /// Empties slot `slot`, and closes its tap. A driver that still uses it is left with nothing.
    pub fn detach(&self, slot: u32) -> Result<(), NetError> {
        let detached = lock(self.slot(slot)?).replace(Net::detach);
        if detached { Ok(()) } else { Err(NetError::Empty(slot)) }
    }

    /// What each interface has moved.
    pub fn stats(&self) -> Vec<NetStats> {
        let counts = |slot: &Placed<Net>| lock(slot).device().counts();
        let slots = (0..).zip(&self.0).filter_map(|(slot, device)| Some((slot, counts(device)?)));
        let stats = slots.map(|(slot, counts)| NetStats {
            slot,
            rx_bytes: counts.rx_bytes,
            rx_packets: counts.rx_packets,
            rx_dropped: counts.rx_dropped,
            tx_bytes: counts.tx_bytes,
            tx_packets: counts.tx_packets,
            tx_dropped: counts.tx_dropped,
        });
        stats.collect()
    }

    fn slot(&self, slot: u32) -> Result<&Placed<Net>, NetError> {
        self.0.get(slot as usize).ok_or(NetError::Absent(slot))
    }
}

fn config(net: &RawNet) -> NetConfig {
    let limit = |raw: Option<RawRateLimit>| raw.map(rate::limit).unwrap_or_default();
    let (rx_rate, tx_rate) = (limit(net.rx_rate), limit(net.tx_rate));
    NetConfig { mac: net.mac, mtu: net.mtu, rx_rate, tx_rate }
}
