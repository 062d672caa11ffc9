//! Tap interfaces.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};

/// `_IOW('T', 202, int)` of linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// Makes the tap `name` with virtio-net headers and gives its queue, or one more queue of a tap
/// that is to have `several`; it goes with its last descriptor.
pub fn open(name: &str, several: bool) -> Result<OwnedFd> {
    let tun =
        File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    let name = CString::new(name).context("an interface's name has no NUL")?;
    let bytes = name.as_bytes_with_nul();
    // SAFETY: all-zero bytes are a value of this C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(bytes.len() <= request.ifr_name.len(), "an interface's name is short");
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let queues = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq, which is live.
    match unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) } {
        0 => Ok(tun.into()),
        _ => Err(io::Error::last_os_error()).context("cannot make a tap"),
    }
}
