//! The worker of the memory device: plugs and unplugs blocks as the driver asks, within what the
//! runtime has asked for.
//!
//! Trust: requests are the guest's; what they name is checked by `blocks`, and pages go back only
//! if they are of a block that was plugged.

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, Events};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::blocks::{Blocks, Range};
use super::device::Shared;
use super::request::{BlockState, Request, Response, Span, parse, response};
use crate::virtio::chain::{Chain, ChainQueue};
use crate::virtio::reclaim::Reclaim;
use crate::virtio::{Interrupt, Reach};
use crate::worker::Serve;

/// The queue and the blocks.
pub(super) struct MemQueue {
    pub(super) queue: ChainQueue,
    pub(super) memory: GuestMemoryMmap,
    pub(super) reach: Reach,
    pub(super) interrupt: Interrupt,
    pub(super) shared: Arc<Shared>,
    pub(super) blocks: Blocks,
    pub(super) reclaim: Reclaim,
}

impl MemQueue {
    fn answer_all(&mut self) {
        self.queue.acknowledge_kick(&self.memory);
        while let Some(chain) = self.queue.pop(&self.memory) {
            let written = self.answer(&chain);
            self.queue.complete(&self.memory, chain, written);
        }
        self.queue.notify(&self.memory);
    }

    /// Carries out the request in `chain`; how many bytes were answered.
    fn answer(&mut self, chain: &Chain) -> usize {
        let Some(request) = parse(chain, &self.memory) else { return 0 };
        let (outcome, state) = self.carry_out(request);
        self.shared.set_plugged(self.blocks.plugged_bytes());
        let bytes = response(outcome, state);
        chain.write(&self.memory, 0, &bytes).map_or(0, |()| bytes.len())
    }

    fn carry_out(&mut self, request: Request) -> (Response, Option<BlockState>) {
        match request {
            Request::Plug(span) => (self.plug(span), None),
            Request::Unplug(span) => (self.unplug(span), None),
            Request::UnplugAll => {
                for range in self.blocks.take_all() {
                    // What stays in use costs the host memory, and the guest nothing.
                    self.give_back(range);
                }
                (Response::Ack, None)
            }
            Request::State(span) => match self.range(span) {
                Some(range) => (Response::Ack, Some(self.blocks.state(range))),
                None => (Response::Error, None),
            },
            Request::Unknown => (Response::Error, None),
        }
    }

    fn plug(&mut self, span: Span) -> Response {
        match self.range(span) {
            Some(range) => self.blocks.plug(range, self.shared.requested_bytes()),
            None => Response::Error,
        }
    }

    fn unplug(&mut self, span: Span) -> Response {
        match self.range(span) {
            Some(range) if self.blocks.state(range) == BlockState::Plugged => {
                if !self.give_back(range) {
                    return Response::Busy;
                }
                self.blocks.unplug(range);
                Response::Ack
            }
            _ => Response::Error,
        }
    }

    fn range(&self, span: Span) -> Option<Range> {
        self.blocks.range(span, self.shared.usable_bytes())
    }

    fn give_back(&mut self, range: Range) -> bool {
        let (start, len) = self.blocks.memory(range);
        self.reclaim.push(&self.memory, &self.reach, start, len) && self.reclaim.give_back().is_ok()
    }
}

impl Serve for MemQueue {
    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()> {
        ops.add(Events::new(&self.queue, EventSet::IN)).map_err(io::Error::other)?;
        self.answer_all();
        Ok(())
    }

    fn serve(&mut self, _event: Events, _ops: &mut EventOps) -> io::Result<()> {
        self.answer_all();
        Ok(())
    }

    fn failed(&mut self, _error: io::Error) {
        self.interrupt.device_needs_reset();
    }
}
