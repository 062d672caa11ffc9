//! The worker of the balloon: gives back the pages that the driver names.
//!
//! Trust: page numbers and ranges are the guest's choice. A page that is no memory of the guest's
//! is passed over; how much one chain may ask for is bounded, and the rest of it stays in use.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::device::Shared;
use super::statistics::{self, BUFFER_MAX};
use crate::virtio::chain::{Chain, ChainQueue};
use crate::virtio::reclaim::{PAGE_BYTES, Reclaim};
use crate::virtio::{Interrupt, Reach};
use crate::worker::Serve;

/// Page numbers of one chain that are looked at; Linux sends 256.
pub(super) const PFNS_MAX: usize = 16 << 10;
/// Page numbers copied at once, on the stack.
const STEP_PFNS: usize = 256;
/// Bytes of a page number.
const PFN_BYTES: usize = size_of::<u32>();

/// The queues, in the order in which they are numbered where all are there.
pub(super) struct BalloonQueue {
    pub(super) inflate: ChainQueue,
    pub(super) deflate: ChainQueue,
    pub(super) statistics: Option<ChainQueue>,
    pub(super) reporting: Option<ChainQueue>,
    pub(super) memory: GuestMemoryMmap,
    pub(super) reach: Reach,
    pub(super) interrupt: Interrupt,
    pub(super) shared: Arc<Shared>,
    pub(super) reclaim: Reclaim,
    /// The driver's buffer for statistics, which goes back when new ones are wanted.
    pub(super) held: Option<Chain>,
}

impl BalloonQueue {
    fn inflate(&mut self) {
        self.inflate.acknowledge_kick(&self.memory);
        while let Some(chain) = self.inflate.pop(&self.memory) {
            self.take_pages(&chain);
            // What the kernel does not take costs the host memory and the guest nothing.
            let _ = self.reclaim.give_back();
            self.inflate.complete(&self.memory, chain, 0);
        }
        self.inflate.notify(&self.memory);
    }

    /// Collects the pages whose little-endian numbers `chain` holds.
    fn take_pages(&mut self, chain: &Chain) {
        let count = (chain.readable_len() / PFN_BYTES).min(PFNS_MAX);
        let mut step = [0; STEP_PFNS * PFN_BYTES];
        for first in (0..count).step_by(STEP_PFNS) {
            let bytes = &mut step[..STEP_PFNS.min(count - first) * PFN_BYTES];
            if chain.read(&self.memory, first * PFN_BYTES, bytes).is_err() {
                return;
            }
            let (pfns, _) = bytes.as_chunks::<PFN_BYTES>();
            for pfn in pfns {
                let start = u64::from(u32::from_le_bytes(*pfn)) * PAGE_BYTES;
                self.reclaim.push(&self.memory, &self.reach, start, PAGE_BYTES);
            }
        }
    }

    /// Pages that leave the balloon need nothing: they come back when they are touched.
    fn deflate(&mut self) {
        self.deflate.acknowledge_kick(&self.memory);
        while let Some(chain) = self.deflate.pop(&self.memory) {
            self.deflate.complete(&self.memory, chain, 0);
        }
        self.deflate.notify(&self.memory);
    }

    /// Section 5.5.6.7: each writable descriptor is a range that the driver does not use until
    /// the chain comes back.
    fn report(&mut self) {
        let Some(queue) = &mut self.reporting else { return };
        queue.acknowledge_kick(&self.memory);
        while let Some(chain) = queue.pop(&self.memory) {
            for (start, len) in chain.writable_ranges() {
                self.reclaim.push(&self.memory, &self.reach, start, len);
            }
            self.shared.count_reported(self.reclaim.give_back().unwrap_or(0));
            queue.complete(&self.memory, chain, 0);
        }
        queue.notify(&self.memory);
    }

    /// Keeps what the driver tells, and its buffer.
    fn learn(&mut self) {
        let Some(queue) = &mut self.statistics else { return };
        queue.acknowledge_kick(&self.memory);
        while let Some(chain) = queue.pop(&self.memory) {
            let mut bytes = [0; BUFFER_MAX];
            let bytes = &mut bytes[..chain.readable_len().min(BUFFER_MAX)];
            if chain.read(&self.memory, 0, bytes).is_ok() {
                self.shared.set_figures(statistics::parse(bytes));
            }
            // A driver that does not wait gets the older one back at once.
            if let Some(older) = self.held.replace(chain) {
                queue.complete(&self.memory, older, 0);
            }
        }
        queue.notify(&self.memory);
    }

    /// Asks the driver for new statistics, by the return of its buffer.
    fn ask(&mut self) {
        if let (Some(queue), Some(chain)) = (&mut self.statistics, self.held.take()) {
            queue.complete(&self.memory, chain, 0);
            queue.notify(&self.memory);
        }
    }
}

impl Serve for BalloonQueue {
    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let queues = [&self.inflate, &self.deflate];
        for queue in queues.into_iter().chain(&self.statistics).chain(&self.reporting) {
            ops.add(Events::new(queue, EventSet::IN)).map_err(io::Error::other)?;
        }
        ops.add(Events::new(self.shared.wanted(), EventSet::IN)).map_err(io::Error::other)?;
        self.inflate();
        self.deflate();
        self.learn();
        self.report();
        Ok(())
    }

    fn serve(&mut self, event: Events, _ops: &mut EventOps) -> io::Result<()> {
        let fd = event.fd();
        let is = |queue: &Option<ChainQueue>| queue.as_ref().is_some_and(|q| q.as_raw_fd() == fd);
        if fd == self.inflate.as_raw_fd() {
            self.inflate();
        } else if fd == self.deflate.as_raw_fd() {
            self.deflate();
        } else if is(&self.reporting) {
            self.report();
        } else if is(&self.statistics) {
            self.learn();
        } else {
            // That there is nothing to read is no error.
            let _ = self.shared.wanted().read();
            self.ask();
        }
        Ok(())
    }

    /// No chain stays out over a pause; the driver answers with a new one.
    fn end(&mut self) {
        self.ask();
    }

    fn failed(&mut self, _error: io::Error) {
        self.interrupt.device_needs_reset();
    }
}
