//! The worker of the entropy device: fills the buffers of the one queue.
//!
//! Trust: the guest chooses how much it asks for; [`CHUNK_BYTES`] bounds what one chain gets, as
//! a device may give less than was asked for (virtio 1.2, section 5.4.6.1).

use std::io;

use event_manager::{EventOps, Events};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::backend::Entropy;
use crate::virtio::Interrupt;
use crate::virtio::chain::{Chain, ChainQueue};
use crate::worker::Serve;

/// Most bytes given for one chain.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// Bytes generated at once, on the stack.
const STEP_BYTES: usize = 1 << 10;

/// The queue and its source.
pub(super) struct RngQueue {
    pub(super) queue: ChainQueue,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Interrupt,
    pub(super) entropy: Entropy,
}

impl RngQueue {
    fn answer_all(&mut self) -> io::Result<()> {
        self.queue.acknowledge_kick(&self.memory);
        while let Some(chain) = self.queue.pop(&self.memory) {
            let outcome = fill(&chain, &self.memory, &mut self.entropy);
            let written = *outcome.as_ref().unwrap_or(&0);
            self.queue.complete(&self.memory, chain, written);
            outcome?;
        }
        self.queue.notify(&self.memory);
        Ok(())
    }
}

/// Fills the writable part of `chain`, up to [`CHUNK_BYTES`]; a chain without one gets nothing.
fn fill(chain: &Chain, memory: &GuestMemoryMmap, entropy: &mut Entropy) -> io::Result<usize> {
    let len = chain.writable_len().min(CHUNK_BYTES);
    let mut step = [0; STEP_BYTES];
    for offset in (0..len).step_by(STEP_BYTES) {
        let bytes = &mut step[..STEP_BYTES.min(len - offset)];
        entropy.fill(bytes)?;
        chain.write(memory, offset, bytes).map_err(io::Error::other)?;
    }
    Ok(len)
}

impl Serve for RngQueue {
    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()> {
        ops.add(Events::new(&self.queue, EventSet::IN)).map_err(io::Error::other)?;
        self.answer_all()
    }

    fn serve(&mut self, _event: Events, _ops: &mut EventOps) -> io::Result<()> {
        self.answer_all()
    }

    fn failed(&mut self, _error: io::Error) {
        self.interrupt.device_needs_reset();
    }
}
