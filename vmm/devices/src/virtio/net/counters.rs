//! What an interface has moved: counted by its worker, read by the monitor.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one interface, in the words of the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes received, with Ethernet headers.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that did not fit the guest's buffers or that the tap could not give.
    pub rx_dropped: u64,
    /// Bytes sent, with Ethernet headers.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that were malformed or that the tap refused.
    pub tx_dropped: u64,
}

/// Where a worker's counts are seen by others. Each is right by itself; they need not be of one
/// moment.
#[derive(Debug, Default)]
pub(super) struct Counters {
    counts: [AtomicU64; 6],
}

impl Counters {
    /// Shows `counts`; one thread does so at a time.
    pub(super) fn store(&self, counts: &Counts) {
        let Counts { rx_bytes, rx_packets, rx_dropped, tx_bytes, tx_packets, tx_dropped } = *counts;
        let values = [rx_bytes, rx_packets, rx_dropped, tx_bytes, tx_packets, tx_dropped];
        for (counter, value) in self.counts.iter().zip(values) {
            counter.store(value, Ordering::Relaxed);
        }
    }

    /// What was last shown.
    pub(super) fn load(&self) -> Counts {
        let [rx_bytes, rx_packets, rx_dropped, tx_bytes, tx_packets, tx_dropped] =
            [0, 1, 2, 3, 4, 5].map(|index: usize| self.counts[index].load(Ordering::Relaxed));
        Counts { rx_bytes, rx_packets, rx_dropped, tx_bytes, tx_packets, tx_dropped }
    }
}
