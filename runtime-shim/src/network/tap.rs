//! Tap interfaces in this thread's network namespace. A tap ends with its last descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rustix::io::Errno;

use super::NetworkError;
use super::netlink::Netlink;

const DEVICE: &str = "/dev/net/tun";
/// The kernel puts the first free number there, so that no name is taken twice.
const NAME: &[u8; 5] = b"bh%d\0";
/// Largest MTU of a tap, in bytes (tun.c: 65535 less the Ethernet header).
pub(super) const MTU_MAX: u32 = 65_521;

/// A tap interface.
#[derive(Debug)]
pub(super) struct Tap {
    /// Its index.
    pub index: u32,
    /// One descriptor for each queue pair.
    pub queues: Vec<OwnedFd>,
}

/// Makes a tap interface of `pairs` queue pairs: down, without addresses.
pub(super) fn open(pairs: usize) -> Result<Tap, NetworkError> {
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(NAME) {
        *to = *from as libc::c_char;
    }
    let mut queues = Vec::with_capacity(pairs);
    for _ in 0..pairs {
        let queue = open_device().map_err(NetworkError::TapDevice)?;
        name = attach(&queue, name, pairs > 1).map_err(NetworkError::Tap)?;
        queues.push(queue);
    }
    // SAFETY: the kernel has ended the name with a NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    match index {
        0 => Err(NetworkError::Tap(io::Error::last_os_error())),
        index => Ok(Tap { index, queues }),
    }
}

/// Sets the MTU of an interface.
pub(super) fn set_mtu(netlink: &mut Netlink, index: u32, mtu: u16) -> Result<(), Errno> {
    let mut message = message(index);
    message.attributes.push(LinkAttribute::Mtu(u32::from(mtu).min(MTU_MAX)));
    netlink.execute(libc::RTM_NEWLINK, 0, &message)
}

/// Brings a tap up that nobody on the host uses: it gets no address.
pub(super) fn bring_up(netlink: &mut Netlink, index: u32) -> Result<(), Errno> {
    let mut quiet = message(index);
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let spec = vec![AfSpecUnspec::Inet6(vec![none])];
    quiet.attributes.push(LinkAttribute::AfSpecUnspec(spec));
    match netlink.execute(libc::RTM_NEWLINK, 0, &quiet) {
        // A host without IPv6.
        Ok(()) | Err(Errno::AFNOSUPPORT) => {}
        Err(e) => return Err(e),
    }
    let mut up = message(index);
    (up.header.flags, up.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    netlink.execute(libc::RTM_NEWLINK, 0, &up)
}

fn message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn open_device() -> io::Result<OwnedFd> {
    let flags = libc::O_NONBLOCK;
    Ok(File::options().read(true).write(true).custom_flags(flags).open(DEVICE)?.into())
}

/// Makes a queue of the tap `name`, and gives its real name.
fn attach(
    queue: &OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
    several: bool,
) -> io::Result<[libc::c_char; libc::IFNAMSIZ]> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        // The flags of a tap are 16 bits wide, of which the highest is one.
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    // SAFETY: the descriptor is open, and `request` is a valid ifreq that outlives the call.
    match unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } {
        0 => Ok(request.ifr_name),
        _ => Err(io::Error::last_os_error()),
    }
}
