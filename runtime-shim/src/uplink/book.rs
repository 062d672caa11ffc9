//! Who has which address of the bridge, in one locked file of the host, whatever `--root` a
//! container has.
//!
//! A lease belongs to a process. It is written before anything is made for it, and is void once
//! its process is gone, so that nothing has to be remembered by whoever is killed: the next that
//! opens the book finds the leases of the dead and removes what was made for them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, mkdir, open, openat, renameat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Port, UplinkError, address};
use crate::process::{ProcessId, has_ended};

/// Where the book lies. `/run` is empty after a start of the machine, as its network is.
pub(super) const DIRECTORY: &str = "/run/bulkhead-network";
const FILE: &str = "leases.json";
const UNFINISHED: &str = "leases.json.new";
/// Largest book that is read: some thousand containers with many ports.
const BOOK_MAX: u64 = 64 << 20;

/// One container's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// The container's supervisor.
    pub holder: ProcessId,
    /// Its address.
    pub address: Ipv4Addr,
    /// Ports of the host that lead there.
    pub ports: Vec<Port>,
}

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leases {
    /// The bridge's network while there is a lease.
    pub network: Option<Ipv4Addr>,
    /// Low half of the address that was given out last.
    last: u16,
    /// All leases.
    pub list: Vec<Lease>,
}

/// The book, open and locked.
#[derive(Debug)]
pub(super) struct Book {
    directory: OwnedFd,
    /// Its contents.
    pub leases: Leases,
}

impl Leases {
    /// Gives `holder` an address. `free` finds a network for a bridge that does not exist yet.
    pub fn take(
        &mut self,
        holder: ProcessId,
        ports: &[Port],
        free: impl FnOnce() -> Option<Ipv4Addr>,
    ) -> Result<Lease, UplinkError> {
        let network = match self.network {
            Some(network) => network,
            None => free().ok_or(UplinkError::NoSubnet)?,
        };
        let taken: Vec<Ipv4Addr> = self.list.iter().map(|lease| lease.address).collect();
        let address =
            address::next(network, self.last, &taken).ok_or(UplinkError::NoAddress(network))?;
        let [.., high, low] = address.octets();
        self.last = u16::from_be_bytes([high, low]);
        self.network = Some(network);
        let lease = Lease { holder, address, ports: ports.to_vec() };
        self.list.push(lease.clone());
        Ok(lease)
    }

    /// Takes out the leases whose holder `is_gone`, and gives them. With the last lease the
    /// bridge goes, and with it its network.
    pub fn strike(&mut self, is_gone: impl Fn(ProcessId) -> bool) -> Vec<Lease> {
        let (gone, list) = self.list.drain(..).partition(|lease| is_gone(lease.holder));
        self.list = list;
        if self.list.is_empty() {
            self.network = None;
        }
        gone
    }

    fn is_sound(&self) -> bool {
        self.network.is_none_or(address::is_network)
    }
}

impl Book {
    /// Opens the book, made if it is not there, and waits for its lock.
    pub fn open() -> io::Result<Self> {
        match mkdir(DIRECTORY, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        Self::lock()
    }

    /// Opens the book, if there is one.
    pub fn open_existing() -> io::Result<Option<Self>> {
        match Self::lock() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            book => book.map(Some),
        }
    }

    fn lock() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = open(DIRECTORY, flags, Mode::empty())?;
        loop {
            match flock(&directory, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        }
        let leases = match openat(&directory, FILE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        {
            Err(Errno::NOENT) => Leases::default(),
            file => read(file?.into())?,
        };
        Ok(Self { directory, leases })
    }

    /// Writes the book, in one step.
    pub fn save(&self) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = File::from(openat(&self.directory, UNFINISHED, flags, mode)?);
        file.write_all(&serde_json::to_vec(&self.leases)?)?;
        Ok(renameat(&self.directory, UNFINISHED, &self.directory, FILE)?)
    }
}

/// The lock: whoever has a copy of it holds it, too.
impl AsFd for Book {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn read(file: File) -> io::Result<Leases> {
    let mut bytes = Vec::new();
    file.take(BOOK_MAX).read_to_end(&mut bytes)?;
    let leases: Leases = serde_json::from_slice(&bytes)?;
    match leases.is_sound() {
        true => Ok(leases),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether the process that held a lease is gone, or has ended and nobody has asked how yet. One
/// that cannot be looked at is not.
pub(super) fn is_gone(holder: ProcessId) -> bool {
    match holder.open() {
        Ok(None) => true,
        Ok(Some(pidfd)) => has_ended(&pidfd),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32) -> ProcessId {
        ProcessId { pid, started: 1 }
    }

    #[test]
    fn holder_that_nobody_has_reaped_is_gone() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let holder = ProcessId::of(child.id()).unwrap();
        assert!(!is_gone(holder));
        holder.kill().unwrap();
        assert!(is_gone(holder), "a zombie holds no lease");
        child.wait().unwrap();
    }

    #[test]
    fn leases_are_given_struck_and_end_with_the_network() {
        let network = Ipv4Addr::new(10, 241, 0, 0);
        let mut leases = Leases::default();
        let first = leases.take(process(1), &[], || Some(network)).unwrap();
        let second = leases.take(process(2), &[], || None).unwrap();
        assert_eq!((first.address.octets()[3], second.address.octets()[3]), (2, 3));
        assert_eq!(leases.strike(|holder| holder.pid == 1), [first]);
        assert_eq!(leases.network, Some(network));
        let third = leases.take(process(3), &[], || None).unwrap();
        assert_eq!(third.address.octets()[3], 4);
        assert_eq!(leases.strike(|_| true), [second, third]);
        assert_eq!(leases.network, None);
        let none = leases.take(process(4), &[], || None);
        assert!(matches!(none, Err(UplinkError::NoSubnet)));
    }

    #[test]
    fn only_a_process_that_is_gone_loses_its_lease() {
        let own = ProcessId::own().unwrap();
        assert!(!is_gone(own));
        assert!(is_gone(ProcessId { started: own.started + 1, ..own }));
    }

    #[test]
    fn network_that_no_bridge_can_have_is_no_book() {
        let json = r#"{"network":"192.0.2.0","last":0,"list":[]}"#;
        let leases: Leases = serde_json::from_str(json).unwrap();
        assert!(!leases.is_sound());
    }
}
