//! Where packets come from and go to: the queues of a tap interface of the host.
//!
//! Input: descriptors of the host's owner. This process has neither the capabilities nor the
//! network namespace to do more to the interface than these descriptors let it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use thiserror::Error;

use super::header::{HEADER_BYTES, Offloads};
use crate::virtio::chain::IoVectors;

/// Why descriptors cannot back an interface.
#[derive(Debug, Error)]
pub enum BackendError {
    /// `TUNGETIFF`.
    #[error("queue {queue} is no attached queue of a tap interface (TUNGETIFF)")]
    Interface {
        /// Index of the descriptor.
        queue: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Made with other flags.
    #[error("queue {queue} has interface flags {flags:#06x} (needed are {needed:#06x})")]
    Flags {
        /// Index of the descriptor.
        queue: usize,
        /// Flags of `TUNGETIFF`.
        flags: u16,
        /// `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR` and, if there are several, `IFF_MULTI_QUEUE`.
        needed: u16,
    },
    /// Queues of two interfaces.
    #[error("queue {queue} is of another interface than the first")]
    Other {
        /// Index of the descriptor.
        queue: usize,
    },
    /// `FIONBIO`.
    #[error("making a queue of a tap interface non-blocking")]
    NonBlocking(#[source] io::Error),
    /// No descriptor at all.
    #[error("an interface without queues")]
    Empty,
}

/// One queue of an interface.
pub(super) trait Port: AsRawFd + Send {
    /// Sets what all queues of the interface have in common: headers of [`HEADER_BYTES`], and what
    /// the guest does itself.
    fn configure(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Takes the queue into use, or out of it.
    fn set_attached(&mut self, attached: bool) -> io::Result<()>;

    /// Reads one packet, with its header, into `vectors`; `WouldBlock` if there is none.
    ///
    /// # Safety
    ///
    /// The memory that the vectors name is mapped, and such that the kernel may write it.
    unsafe fn receive(&mut self, vectors: &IoVectors) -> io::Result<usize>;

    /// Writes one packet, with its header, from `vectors`.
    ///
    /// # Safety
    ///
    /// The memory that the vectors name is mapped.
    unsafe fn send(&mut self, vectors: &IoVectors) -> io::Result<()>;
}

/// The queues of one interface, ready for a device.
pub struct Backend {
    pub(super) ports: Vec<Box<dyn Port>>,
}

impl Backend {
    /// Takes over open queues of one tap interface, which were attached with `IFF_TAP`, `IFF_NO_PI`,
    /// `IFF_VNET_HDR` and, if there are several, `IFF_MULTI_QUEUE`. Makes them non-blocking.
    pub fn new(queues: Vec<OwnedFd>) -> Result<Self, BackendError> {
        let several = queues.len() > 1;
        let mut ports: Vec<Box<dyn Port>> = Vec::with_capacity(queues.len());
        let mut first = None;
        for (queue, fd) in queues.into_iter().enumerate() {
            let name = inspect(&fd, queue, several)?;
            if *first.get_or_insert(name) != name {
                return Err(BackendError::Other { queue });
            }
            ports.push(Box::new(Tap::new(fd).map_err(BackendError::NonBlocking)?));
        }
        if ports.is_empty() { Err(BackendError::Empty) } else { Ok(Self { ports }) }
    }
}

/// The name of the interface that `fd` is a queue of, if it has the flags that a device needs.
fn inspect(
    fd: &OwnedFd,
    queue: usize,
    several: bool,
) -> Result<[libc::c_char; libc::IFNAMSIZ], BackendError> {
    let mut request = interface_request();
    ioctl(fd, libc::TUNGETIFF, (&raw mut request).cast())
        .map_err(|source| BackendError::Interface { queue, source })?;
    // SAFETY: TUNGETIFF fills the flags; every value is valid.
    let flags = unsafe { request.ifr_ifru.ifru_flags }.cast_unsigned();
    let multi_queue = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let needed = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi_queue) as u16;
    if flags & needed == needed {
        Ok(request.ifr_name)
    } else {
        Err(BackendError::Flags { queue, flags, needed })
    }
}

/// A queue of a tap interface.
struct Tap {
    fd: OwnedFd,
    attached: bool,
}

impl Tap {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut yes: libc::c_int = 1;
        ioctl(&fd, libc::FIONBIO, (&raw mut yes).cast())?;
        Ok(Self { fd, attached: true })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Port for Tap {
    fn configure(&mut self, offloads: Offloads) -> io::Result<()> {
        let mut header_bytes = HEADER_BYTES as libc::c_int;
        ioctl(&self.fd, libc::TUNSETVNETHDRSZ, (&raw mut header_bytes).cast())?;
        // This one takes its argument by value.
        let flags = offloads.of_tap() as usize;
        ioctl(&self.fd, libc::TUNSETOFFLOAD, std::ptr::without_provenance_mut(flags))
    }

    fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        if self.attached == attached {
            return Ok(());
        }
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        let mut request = interface_request();
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        ioctl(&self.fd, libc::TUNSETQUEUE, (&raw mut request).cast())?;
        self.attached = attached;
        Ok(())
    }

    unsafe fn receive(&mut self, vectors: &IoVectors) -> io::Result<usize> {
        let (vectors, count) = raw(vectors);
        // SAFETY: the caller says that the memory is mapped and may be written.
        let result = unsafe { libc::readv(self.fd.as_raw_fd(), vectors, count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    unsafe fn send(&mut self, vectors: &IoVectors) -> io::Result<()> {
        let (vectors, count) = raw(vectors);
        // SAFETY: the caller says that the memory is mapped.
        match unsafe { libc::writev(self.fd.as_raw_fd(), vectors, count) } {
            -1 => Err(io::Error::last_os_error()),
            // A tap takes a packet as a whole.
            _ => Ok(()),
        }
    }
}

fn raw(vectors: &IoVectors) -> (*const libc::iovec, libc::c_int) {
    let vectors = vectors.as_slice();
    // More than the kernel takes is refused by the kernel.
    (vectors.as_ptr(), libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX))
}

/// An empty `struct ifreq`.
fn interface_request() -> libc::ifreq {
    libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    }
}

/// A request whose argument is `argument`, or what it points to.
fn ioctl(fd: &OwnedFd, request: libc::Ioctl, argument: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: the callers pass what each request takes: a number, or a pointer to a structure of
    // theirs of the request's size.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
