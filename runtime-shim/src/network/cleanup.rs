//! Removes what a killed supervisor has left in a namespace that outlives it: taps end with
//! their descriptors, redirections do not.

use netlink_packet_route::link::LinkMessage;
use rustix::io::Errno;

use super::NetworkError;
use super::namespace::NamespaceRecord;
use super::netlink::Netlink;
use super::redirect::remove;
use crate::process::ProcessId;

/// Removes what `owner` has left in the recorded namespace. One that is gone is clean.
pub fn clean_up(namespace: &NamespaceRecord, owner: ProcessId) -> Result<(), NetworkError> {
    // A thread of its own: the caller stays where it is.
    let cleaned = std::thread::scope(|scope| {
        let thread = scope.spawn(|| match namespace.enter()? {
            true => clean_here(owner).map_err(|e| NetworkError::Clean(e.into())),
            false => Ok(()),
        });
        thread.join()
    });
    cleaned.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn clean_here(owner: ProcessId) -> Result<(), Errno> {
    let mut netlink = Netlink::open()?;
    for payload in netlink.dump(libc::RTM_GETLINK, &LinkMessage::default())? {
        // struct ifinfomsg: family and type, then the index.
        let index = payload.get(4..).and_then(|rest| rest.first_chunk());
        let Some(index) = index.map(|bytes| u32::from_ne_bytes(*bytes)) else { continue };
        match remove(&mut netlink, index, owner) {
            // The interface went meanwhile.
            Ok(()) | Err(Errno::NODEV) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
