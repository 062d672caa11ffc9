//! The loopback interface of a network namespace.

use std::{io, os::fd::AsRawFd};

use rustix::net::{AddressFamily, SocketType, socket};

/// Brings `lo` up in this process's network namespace; the kernel gives it its addresses.
pub fn loopback_up() -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            // IFF_UP and IFF_RUNNING fit a c_short by definition (netdevice(7)).
            ifru_flags: (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from as libc::c_char;
    }
    // SAFETY: the socket is open and `request` is a valid ifreq that the kernel only reads.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
