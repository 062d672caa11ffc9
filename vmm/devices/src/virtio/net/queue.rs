//! The worker of the network device: all queues of one interface.
//!
//! Events are waited for edge by edge, so that none costs a call to clear it: whatever has made an
//! event is looked at until there is nothing, or a further event is certain to come. All that one
//! event leads to ends in at most one interrupt.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventOps, Events};
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::backend::Port;
use super::control;
use super::counters::{Counters, Counts};
use super::header::Offloads;
use super::rx::{self, RxQueue};
use super::tx::TxQueue;
use crate::rate::RateLimiter;
use crate::virtio::Interrupt;
use crate::virtio::chain::ChainQueue;
use crate::worker::Serve;

/// Tokens of the events that are waited for; those from `PORT` on are of ports.
const KICK: u32 = 0;
const RX_TIMER: u32 = 1;
const TX_TIMER: u32 = 2;
const PORT: u32 = 3;

/// A receive queue, a transmit queue, and the queue of the tap that both use.
pub(super) struct Pair {
    pub(super) rx: RxQueue,
    pub(super) tx: TxQueue,
    pub(super) port: Box<dyn Port>,
    /// A kick lets the receive queue go on.
    pub(super) rx_waits: bool,
}

/// Limits of both directions.
#[derive(Default)]
pub(super) struct Limits {
    pub(super) rx: Option<RateLimiter>,
    pub(super) tx: Option<RateLimiter>,
}

/// What the device and its worker both know of an interface.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) counters: Arc<Counters>,
    /// Whether the interface of the host is there.
    pub(super) link: Arc<AtomicBool>,
}

/// The queues of an activated device.
pub(super) struct NetQueues {
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Interrupt,
    /// The event of all queues.
    pub(super) kick: Arc<EventFd>,
    pub(super) offloads: Offloads,
    pub(super) pairs: Vec<Pair>,
    /// How many pairs the driver uses, from the first on.
    pub(super) active: usize,
    pub(super) control: Option<ChainQueue>,
    /// Ports for pairs that this driver does not know of.
    pub(super) idle_ports: Vec<Box<dyn Port>>,
    pub(super) limits: Limits,
    pub(super) counts: Counts,
    pub(super) shared: Shared,
}

impl NetQueues {
    /// Positions of all queues, for a snapshot.
    pub(super) fn states(&self) -> Vec<QueueState> {
        let pairs = self.pairs.iter().flat_map(|pair| [pair.rx.state(), pair.tx.state()]);
        pairs.chain(self.control.as_ref().map(ChainQueue::state)).collect()
    }

    /// Gives back what outlives the driver.
    pub(super) fn into_parts(self) -> (Vec<Box<dyn Port>>, Limits, Counts) {
        let used = self.pairs.into_iter().map(|pair| pair.port);
        (used.chain(self.idle_ports).collect(), self.limits, self.counts)
    }

    fn link_is_up(&self) -> bool {
        self.shared.link.load(Ordering::Acquire)
    }

    /// Tells the driver that the interface of the host is gone (`VIRTIO_NET_S_LINK_UP`).
    fn lose_link(&self) {
        if self.shared.link.swap(false, Ordering::AcqRel) {
            self.interrupt.config_changed();
        }
    }

    /// Makes the queues of the tap be those of the pairs in use: the kernel spreads packets over
    /// all that are attached.
    fn attach_ports(&mut self) -> io::Result<()> {
        // New ones first: an interface without any queue loses what arrives.
        for pair in &mut self.pairs[..self.active] {
            pair.port.set_attached(true)?;
        }
        for pair in &mut self.pairs[self.active..] {
            pair.port.set_attached(false)?;
        }
        self.idle_ports.iter_mut().try_for_each(|port| port.set_attached(false))
    }

    /// Carries out commands.
    fn serve_control(&mut self) {
        let Some(mut queue) = self.control.take() else {
            return;
        };
        queue.begin_round(&self.memory);
        while let Some(chain) = queue.pop(&self.memory) {
            let pairs = control::parse(&chain, &self.memory, self.pairs.len());
            let done = pairs.is_some_and(|pairs| self.use_pairs(pairs));
            let written = control::answer(&chain, &self.memory, done);
            queue.complete(&self.memory, chain, written);
        }
        self.control = Some(queue);
    }

    /// Uses so many pairs from now on; whether that was possible.
    fn use_pairs(&mut self, pairs: usize) -> bool {
        let before = std::mem::replace(&mut self.active, pairs);
        if self.attach_ports().is_ok() {
            // What has reached a queue of the tap before its pair was looked at.
            self.pairs[..pairs].iter_mut().for_each(|pair| pair.rx_waits = true);
            return true;
        }
        self.active = before;
        // The outcome was reported by the first attempt.
        let _ = self.attach_ports();
        false
    }

    fn send(&mut self) -> io::Result<()> {
        let mut lost = !self.link_is_up();
        for pair in &mut self.pairs[..self.active] {
            let limit = self.limits.tx.as_mut();
            pair.tx.send(&self.memory, &mut *pair.port, limit, &mut self.counts, &mut lost)?;
        }
        if lost {
            self.lose_link();
        }
        Ok(())
    }

    fn receive(&mut self, index: usize) -> io::Result<()> {
        if index >= self.active || !self.link_is_up() {
            return Ok(());
        }
        let pair = &mut self.pairs[index];
        let limit = self.limits.rx.as_mut();
        let ended = pair.rx.receive(&self.memory, &mut *pair.port, limit, &mut self.counts)?;
        pair.rx_waits = matches!(ended, rx::Ended::Starved | rx::Ended::Batch);
        match ended {
            // No edge will come for what is there already.
            rx::Ended::Batch => {
                let _ = self.kick.write(1);
            }
            rx::Ended::Lost => self.lose_link(),
            rx::Ended::Drained | rx::Ended::Starved | rx::Ended::Limited => {}
        }
        Ok(())
    }

    fn receive_all(&mut self, only_waiting: bool) -> io::Result<()> {
        for index in 0..self.active {
            if !only_waiting || self.pairs[index].rx_waits {
                self.receive(index)?;
            }
        }
        Ok(())
    }

    /// Shows the driver what was done, and interrupts it once if it wants to know.
    fn finish(&mut self) {
        let memory = &self.memory;
        let mut wanted = false;
        for pair in &mut self.pairs {
            wanted |= pair.tx.needs_interrupt(memory);
            wanted |= pair.rx.needs_interrupt(memory);
        }
        wanted |= self.control.as_mut().is_some_and(|queue| queue.needs_interrupt(memory));
        if wanted {
            self.interrupt.used();
        }
        self.shared.counters.store(&self.counts);
    }

    fn subscribe(&self, ops: &mut EventOps) -> io::Result<()> {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let timers = [(&self.limits.rx, RX_TIMER), (&self.limits.tx, TX_TIMER)];
        let timers = timers
            .into_iter()
            .filter_map(|(limit, token)| limit.as_ref().map(|limit| (limit.as_raw_fd(), token)));
        let ports = self.pairs.iter().map(|pair| pair.port.as_raw_fd()).zip(PORT..);
        for (fd, token) in [(self.kick.as_raw_fd(), KICK)].into_iter().chain(timers).chain(ports) {
            ops.add(Events::with_data_raw(fd, token, edges)).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Prepares the tap for this driver. A tap that is gone is a link that is down.
    fn configure(&mut self) -> io::Result<()> {
        let first = self.pairs[0].port.configure(self.offloads);
        match first.and_then(|()| self.attach_ports()) {
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                self.lose_link();
                Ok(())
            }
            other => other,
        }
    }
}

impl Serve for NetQueues {
    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()> {
        self.configure()?;
        self.subscribe(ops)?;
        self.serve_control();
        self.send()?;
        self.receive_all(false)?;
        self.finish();
        Ok(())
    }

    fn serve(&mut self, event: Events, _ops: &mut EventOps) -> io::Result<()> {
        match event.data() {
            KICK => {
                self.serve_control();
                self.send()?;
                self.receive_all(true)?;
            }
            RX_TIMER => {
                self.limits.rx.as_mut().into_iter().for_each(RateLimiter::acknowledge);
                self.receive_all(false)?;
            }
            TX_TIMER => {
                self.limits.tx.as_mut().into_iter().for_each(RateLimiter::acknowledge);
                self.send()?;
            }
            port => {
                let index = (port - PORT) as usize;
                // Of a queue that is not in use it only says so.
                if event.event_set().contains(EventSet::ERROR) && index < self.active {
                    self.lose_link();
                }
                self.receive(index)?;
            }
        }
        self.finish();
        Ok(())
    }

    fn failed(&mut self, _error: io::Error) {
        self.interrupt.device_needs_reset();
    }
}
