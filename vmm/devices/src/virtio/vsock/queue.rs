//! What the worker thread serves: the three queues (virtio 1.2, section 5.10.2) and the muxer.
//!
//! Trust: chains come checked from `chain.rs`; headers are copied out before they are looked at.
//! Each event does bounded work, however fast guest and clients are; what is left over is marked
//! by the wake event.

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, Events};
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::Interrupt;
use crate::virtio::chain::{ChainQueue, IoVectors};
use crate::worker::Serve;

use super::muxer::{Muxer, Step};
use super::packet::Header;
use super::payload::Payload;
use super::rx::RxQueue;

/// Packets of the guest handled before connections have turns.
const TX_BATCH: usize = 32;
/// Turns before other events are looked at.
const TURNS: usize = 32;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` as it lies in the event queue's buffer (section 5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Data of the events.
const RX: u32 = 0;
const TX: u32 = 1;
const EVENT: u32 = 2;
const HOST: u32 = 3;
const WAKE: u32 = 4;

/// An activated device.
pub struct Handler {
    memory: GuestMemoryMmap,
    rx: RxQueue,
    tx: ChainQueue,
    event: ChainQueue,
    muxer: Box<Muxer>,
    interrupt: Interrupt,
    /// Signalled while there is work that no other event announces.
    wake: Arc<EventFd>,
    awake: bool,
    /// The driver is to be told that all its connections are gone.
    reset_due: bool,
    vectors: IoVectors,
}

/// The queues of an activated device, in the order of the specification.
pub struct Queues {
    /// Packets to the guest.
    pub rx: RxQueue,
    /// Packets of the guest.
    pub tx: ChainQueue,
    /// Events for the guest.
    pub event: ChainQueue,
}

impl Handler {
    /// Takes over what is served. With `reset_due` the driver is told first that all connections
    /// that it knows are gone.
    pub fn new(
        memory: GuestMemoryMmap,
        queues: Queues,
        muxer: Box<Muxer>,
        interrupt: Interrupt,
        wake: Arc<EventFd>,
        reset_due: bool,
    ) -> Self {
        Self {
            memory,
            rx: queues.rx,
            tx: queues.tx,
            event: queues.event,
            muxer,
            interrupt,
            wake,
            awake: false,
            reset_due,
            vectors: IoVectors::default(),
        }
    }

    /// The connections.
    pub fn muxer(&self) -> &Muxer {
        &self.muxer
    }

    /// Gives the connections back.
    pub fn into_muxer(self) -> Box<Muxer> {
        self.muxer
    }

    /// Whether the driver is still to be told that its connections are gone.
    pub fn reset_is_due(&self) -> bool {
        self.reset_due
    }

    /// Positions of the queues for a snapshot.
    pub fn queue_states(&self) -> [QueueState; 3] {
        [self.rx.state(), self.tx.state(), self.event.state()]
    }

    /// Moves packets in both directions, a bounded number, and tells the driver.
    fn work(&mut self) -> io::Result<()> {
        self.tell_reset();
        let more_packets = self.take_packets();
        let more_turns = self.give_turns();
        self.muxer.listen_again();
        self.tx.notify(&self.memory);
        self.rx.notify();
        self.set_awake(more_turns || (more_packets && self.muxer.takes_packets()))
    }

    /// Handles packets of the guest. True if there may be more.
    fn take_packets(&mut self) -> bool {
        for _ in 0..TX_BATCH {
            // A guest that fills this queue and leaves no buffers in the other waits for itself.
            if !self.muxer.takes_packets() {
                return true;
            }
            let Some(chain) = self.tx.pop(&self.memory) else {
                return false;
            };
            // A chain too short for a header says nothing that could be answered.
            if let Ok(header) = chain.read_object::<Header>(&self.memory, 0) {
                let (memory, vectors) = (&self.memory, &mut self.vectors);
                self.muxer.receive(&header, |len| Payload::new(memory, &chain, len, vectors));
            }
            self.tx.complete(&self.memory, chain, 0);
        }
        true
    }

    /// Gives turns to connections. True if there may be more.
    fn give_turns(&mut self) -> bool {
        (0..TURNS).all(|_| self.muxer.serve_next(&mut self.rx) == Step::Served)
    }

    /// Tells the driver that its connections are gone, when it has given a buffer for that.
    fn tell_reset(&mut self) {
        while self.reset_due
            && let Some(chain) = self.event.pop(&self.memory)
        {
            let told = chain.write(&self.memory, 0, &TRANSPORT_RESET).is_ok();
            let written = if told { TRANSPORT_RESET.len() } else { 0 };
            self.event.complete(&self.memory, chain, written);
            self.reset_due = !told;
        }
        self.event.notify(&self.memory);
    }

    fn set_awake(&mut self, awake: bool) -> io::Result<()> {
        if std::mem::replace(&mut self.awake, awake) != awake {
            if awake {
                self.wake.write(1)?;
            } else {
                self.wake.read()?;
            }
        }
        Ok(())
    }
}

impl Serve for Handler {
    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let events = [
            Events::with_data(&self.rx, RX, EventSet::IN),
            Events::with_data(&self.tx, TX, EventSet::IN),
            Events::with_data(&self.event, EVENT, EventSet::IN),
            Events::with_data(&*self.muxer, HOST, EventSet::IN),
            Events::with_data(&*self.wake, WAKE, EventSet::IN),
        ];
        for event in events {
            ops.add(event).map_err(io::Error::other)?;
        }
        // Also whatever an earlier handler has left in it.
        let _ = self.wake.read();
        self.awake = false;
        self.work()
    }

    fn serve(&mut self, event: Events, _ops: &mut EventOps) -> io::Result<()> {
        match event.data() {
            RX => self.rx.acknowledge_kick(),
            TX => self.tx.acknowledge_kick(&self.memory),
            EVENT => self.event.acknowledge_kick(&self.memory),
            HOST => self.muxer.poll()?,
            // The wake event is read when there is no work left.
            _ => {}
        }
        self.work()
    }

    fn failed(&mut self, _error: io::Error) {
        self.interrupt.device_needs_reset();
    }
}
