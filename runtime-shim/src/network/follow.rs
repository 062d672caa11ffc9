//! Keeps the guest's network what the namespace's is.
//!
//! Each interface of the namespace has a tap beside it, whose queues are the guest's device in
//! one slot of the VMM. The namespace is read when the sandbox is made, when its workload starts,
//! and a moment after each notice of a change; what differs is carried out. Interfaces are known
//! by their index, which survives a change of name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bulkhead_protocol::agent::client as api;
use bulkhead_protocol::limits::{NET_PAIRS_MAX, NETS_MAX};
use bulkhead_protocol::vm::{FdIndex, RawNet};

use super::answers;
use super::netlink::{Monitor, Netlink};
use super::read::{Seen, read};
use super::redirect::{Refusal, redirect, remove};
use super::snapshot::{Interface, Snapshot};
use super::{NetworkError, tap};
use crate::failure::Failure;
use crate::plan::{NetLimit, NetLimits};
use crate::process::ProcessId;

/// Slots for interfaces that come after the boot.
const SPARES: usize = 4;
/// How long changes are gathered: those who set an interface up make several.
const SETTLE: Duration = Duration::from_millis(50);

/// A device for the VMM.
#[derive(Debug)]
pub struct OpenNet {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest packet in bytes, without Ethernet header.
    pub mtu: u16,
    /// One queue of the tap for each pair.
    pub taps: Vec<OwnedFd>,
    /// How much may pass.
    pub limit: NetLimit,
}

/// The network devices that a machine boots with.
#[derive(Debug, Default)]
pub struct Devices {
    /// Those of the first slots.
    pub nets: Vec<OpenNet>,
    /// Empty slots behind them.
    pub spares: u32,
}

impl OpenNet {
    /// The device as the VMM is told it; `add` takes a descriptor along.
    pub fn raw<'a>(&'a self, add: impl FnMut(&'a OwnedFd) -> FdIndex) -> RawNet {
        RawNet {
            mac: self.mac,
            mtu: self.mtu,
            taps: self.taps.iter().map(add).collect(),
            rx_rate: self.limit.rx,
            tx_rate: self.limit.tx,
        }
    }
}

/// What is done to the guest.
pub trait Guest {
    /// Fills an empty slot.
    fn attach(&mut self, slot: u32, net: &OpenNet) -> Result<(), Failure>;
    /// Empties a slot that the guest has given up.
    fn detach(&mut self, slot: u32) -> Result<(), Failure>;
    /// Tells the agent what the network is.
    fn configure(&mut self, network: &api::Network) -> Result<(), Failure>;
}

/// An interface that the guest has.
#[derive(Debug)]
pub(super) struct Attached {
    index: u32,
    mac: [u8; 6],
    /// MTU that the device was made with, which the guest cannot exceed.
    mtu_max: u16,
    /// MTU that the tap has now.
    mtu: u16,
    tap: u32,
}

/// The network of one sandbox, in this thread's namespace. What it has put there goes when it is
/// dropped.
#[derive(Debug)]
pub struct Network {
    netlink: Netlink,
    monitor: Monitor,
    owner: ProcessId,
    limits: NetLimits,
    pairs: usize,
    slots: Vec<Option<Attached>>,
    /// What was there before the boot, until the guest is told.
    found: Snapshot,
    told: Snapshot,
    due: Option<Instant>,
    /// Answers to questions of the namespace's own are let in.
    answers: bool,
}

impl Network {
    /// The network of the supervisor `owner`, whose guest has `vcpus` and whose interfaces have
    /// `limits`. Nothing is changed yet.
    pub fn open(owner: ProcessId, vcpus: u32, limits: NetLimits) -> Result<Self, NetworkError> {
        let failed = |e: rustix::io::Errno| NetworkError::Socket(e.into());
        // Before anything is read: what changes later brings a notice.
        let monitor = Monitor::open().map_err(failed)?;
        Ok(Self {
            netlink: Netlink::open().map_err(failed)?,
            monitor,
            owner,
            limits,
            pairs: (vcpus as usize).clamp(1, NET_PAIRS_MAX),
            slots: vec![],
            found: Snapshot::default(),
            told: Snapshot::default(),
            due: None,
            answers: false,
        })
    }

    /// Connects every interface that is there before the boot; their devices fill the first
    /// slots.
    pub fn connect(&mut self) -> Result<Devices, NetworkError> {
        let Seen { snapshot, unfit } = self.read()?;
        if let Some((name, reason)) = unfit.into_iter().next() {
            return Err(NetworkError::Unfit(name, reason));
        }
        let mut nets = vec![];
        for interface in &snapshot.interfaces {
            if nets.len() == NETS_MAX {
                return Err(NetworkError::Slots(interface.name.clone(), NETS_MAX));
            }
            let (attached, net) = self.plug(interface)?;
            self.slots.push(Some(attached));
            nets.push(net);
        }
        self.slots.resize_with(NETS_MAX.min(nets.len() + SPARES), || None);
        self.found = snapshot;
        let spares = (self.slots.len() - nets.len()) as u32;
        Ok(Devices { nets, spares })
    }

    /// Tells the guest, once it serves, what [`Self::connect`] has found.
    pub fn introduce(&mut self, guest: &mut dyn Guest) -> Result<(), Failure> {
        let found = std::mem::take(&mut self.found);
        self.tell(found, guest)
    }

    /// Takes the notices that have come. Whether there was one: then [`Self::sync`] is
    /// [due](Self::due) in a moment.
    pub fn notice(&mut self) -> bool {
        let noticed = self.monitor.drain();
        if noticed {
            self.due.get_or_insert_with(|| Instant::now() + SETTLE);
        }
        noticed
    }

    /// When [`Self::sync`] is to be called, if anything has changed.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Carries out what has changed. Gives what could not be; the rest has been.
    pub fn sync(&mut self, guest: &mut dyn Guest) -> Vec<Failure> {
        self.due = None;
        let Seen { snapshot, unfit } = match self.read() {
            Ok(seen) => seen,
            Err(e) => return vec![e.into()],
        };
        let unfit = unfit.into_iter().map(|(name, reason)| NetworkError::Unfit(name, reason));
        let mut failures: Vec<Failure> = unfit.map(Failure::from).collect();
        failures.extend(self.give_up(&snapshot, guest));
        for interface in &snapshot.interfaces {
            failures.extend(self.take_up(interface, guest).err());
        }
        let network = snapshot.only(|index| self.slot_of(index).is_some());
        failures.extend(self.tell(network, guest).err());
        failures
    }

    /// Lets an engine that serves names in this namespace ask others from there.
    pub fn let_answers_in(&mut self) -> Result<(), NetworkError> {
        if self.answers {
            return Ok(());
        }
        answers::choose_ports().map_err(NetworkError::Ports)?;
        for attached in self.slots.iter().flatten() {
            let name = || format!("of index {}", attached.index);
            answers::let_in(&mut self.netlink, attached.index, attached.tap)
                .map_err(|e| NetworkError::Redirect(name(), e.into()))?;
        }
        self.answers = true;
        Ok(())
    }

    pub(super) fn read(&mut self) -> Result<Seen, NetworkError> {
        let own: Vec<u32> = self.slots.iter().flatten().map(|a| a.tap).collect();
        read(&mut self.netlink, &own).map_err(|e| NetworkError::Read(e.into()))
    }

    fn slot_of(&self, index: u32) -> Option<usize> {
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(|a| a.index == index))
    }

    /// Takes from the guest what is gone, or what it can only have anew.
    fn give_up(&mut self, snapshot: &Snapshot, guest: &mut dyn Guest) -> Vec<Failure> {
        let stays = |a: &Attached| {
            let mut found = snapshot.interfaces.iter().filter(|i| i.index == a.index);
            found.next().is_some_and(|i| i.mac == a.mac && i.mtu <= a.mtu_max)
        };
        let leaving: Vec<(usize, u32)> = (self.slots.iter().enumerate())
            .filter_map(|(slot, a)| Some((slot, a.as_ref().filter(|a| !stays(a))?.index)))
            .collect();
        if leaving.is_empty() {
            return vec![];
        }
        let rest = self.told.only(|index| leaving.iter().all(|(_, gone)| *gone != index));
        // An agent that does not obey does not keep the device.
        let mut failures: Vec<Failure> = self.tell(rest, guest).err().into_iter().collect();
        for (slot, _) in leaving {
            if let Some(attached) = self.slots[slot].take() {
                self.unplug(&attached);
                failures.extend(guest.detach(slot as u32).err());
            }
        }
        failures
    }

    /// Gives the guest an interface that it does not have; follows the MTU of one that it has.
    fn take_up(&mut self, interface: &Interface, guest: &mut dyn Guest) -> Result<(), Failure> {
        if let Some(slot) = self.slot_of(interface.index) {
            if let Some(attached) = self.slots[slot].as_mut().filter(|a| a.mtu != interface.mtu) {
                tap::set_mtu(&mut self.netlink, attached.tap, interface.mtu)
                    .map_err(|e| NetworkError::TapSetup(interface.name.clone(), e.into()))?;
                attached.mtu = interface.mtu;
            }
            return Ok(());
        }
        let Some(slot) = self.slots.iter().position(Option::is_none) else {
            let most = self.slots.len();
            return Err(NetworkError::Slots(interface.name.clone(), most).into());
        };
        let (attached, net) = self.plug(interface)?;
        if let Err(failure) = guest.attach(slot as u32, &net) {
            self.unplug(&attached);
            return Err(failure);
        }
        self.slots[slot] = Some(attached);
        Ok(())
    }

    fn tell(&mut self, network: Snapshot, guest: &mut dyn Guest) -> Result<(), Failure> {
        if network != self.told {
            guest.configure(&network.to_api())?;
            self.told = network;
        }
        Ok(())
    }

    /// Makes a tap beside an interface and connects the two.
    pub(super) fn plug(
        &mut self,
        interface: &Interface,
    ) -> Result<(Attached, OpenNet), NetworkError> {
        let setup = |e: rustix::io::Errno| NetworkError::TapSetup(interface.name.clone(), e.into());
        let tap = tap::open(self.pairs)?;
        tap::set_mtu(&mut self.netlink, tap.index, interface.mtu).map_err(setup)?;
        tap::bring_up(&mut self.netlink, tap.index).map_err(setup)?;
        let (index, mac, mtu) = (interface.index, interface.mac, interface.mtu);
        let attached = Attached { index, mac, mtu_max: mtu, mtu, tap: tap.index };
        let connected = self
            .join(tap.index, index)
            .and_then(|()| self.join(index, tap.index))
            .and_then(|()| match self.answers {
                true => Ok(answers::let_in(&mut self.netlink, index, tap.index)?),
                false => Ok(()),
            })
            .map_err(|refusal| refused(interface, refusal));
        match connected {
            Ok(()) => {
                let limit = self.limits.of(&interface.name);
                Ok((attached, OpenNet { mac, mtu, taps: tap.queues, limit }))
            }
            Err(e) => {
                self.unplug(&attached);
                Err(e)
            }
        }
    }

    fn join(&mut self, from: u32, to: u32) -> Result<(), Refusal> {
        redirect(&mut self.netlink, from, to, self.owner)
    }

    /// Disconnects an interface; its tap goes with the last descriptor.
    fn unplug(&mut self, attached: &Attached) {
        // An interface that is gone has taken everything with it.
        let _ = remove(&mut self.netlink, attached.index, self.owner);
    }
}

fn refused(interface: &Interface, refusal: Refusal) -> NetworkError {
    let name = interface.name.clone();
    match refusal {
        Refusal::Taken(pid) => NetworkError::Taken(name, pid),
        Refusal::Kernel(rustix::io::Errno::NODEV) => NetworkError::Gone(name),
        Refusal::Kernel(e) => NetworkError::Redirect(name, e.into()),
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for attached in std::mem::take(&mut self.slots).into_iter().flatten() {
            self.unplug(&attached);
        }
    }
}

impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
}
