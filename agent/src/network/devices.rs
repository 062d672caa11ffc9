//! The guest's network devices: virtio-mmio slots, some of which are filled while it runs.
//!
//! The kernel looks at a slot once. One that was empty is looked at again by binding its driver,
//! which fails with ENODEV for those that are still empty; one that is to be emptied is unbound.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use netlink_packet_core::{NLA_HEADER_SIZE, NlasIterator};
use netlink_packet_route::link::LinkMessage;
use rustix::io::Errno;

use super::{NetworkError, netlink::Netlink, wanted::Mac};

const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
const DEVICES: &str = "/sys/bus/platform/devices";
/// Begins the name of a slot.
const SLOT: &str = "virtio-mmio.";
/// `IFLA_PERM_ADDRESS` of the kernel's headers.
const IFLA_PERM_ADDRESS: u16 = 54;

/// An interface of the guest.
#[derive(Debug)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Its hardware address now.
    address: Option<Mac>,
    /// That of its device, whatever has been set since.
    permanent: Option<Mac>,
}

impl Link {
    /// Whether this is the device of that address.
    pub fn has(&self, mac: &Mac) -> bool {
        self.permanent.as_ref().or(self.address.as_ref()) == Some(mac)
    }
}

/// All interfaces, by index: an interface on top of another, with the same address, comes later.
pub fn links(netlink: &Netlink) -> Result<Vec<Link>, NetworkError> {
    let mut links = Vec::new();
    netlink
        .dump(libc::RTM_GETLINK, &LinkMessage::default(), |payload| links.extend(link(payload)))
        .map_err(|e| NetworkError::Netlink("list interfaces", e))?;
    links.sort_by_key(|link: &Link| link.index);
    Ok(links)
}

/// `struct ifinfomsg`: family, type, index, flags, change mask; 16 bytes.
fn link(payload: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(*payload.get(4..)?.first_chunk()?);
    let mut link = Link { index, name: String::new(), address: None, permanent: None };
    for attribute in NlasIterator::new(payload.get(16..)?).map_while(Result::ok) {
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        let value = attribute.into_inner().get(NLA_HEADER_SIZE..length)?;
        match kind {
            libc::IFLA_IFNAME => {
                let name = value.strip_suffix(&[0]).unwrap_or(value);
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            libc::IFLA_ADDRESS => link.address = value.try_into().ok(),
            IFLA_PERM_ADDRESS => link.permanent = value.try_into().ok(),
            _ => {}
        }
    }
    Some(link)
}

/// Looks again into every slot that was empty.
pub fn fill_slots() -> Result<(), NetworkError> {
    let entries = match fs::read_dir(DEVICES) {
        Ok(entries) => entries,
        // No bus, no slots.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(device("list", DEVICES.into(), source)),
    };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with(SLOT) || entry.path().join("driver").exists() {
            continue;
        }
        match fs::write(Path::new(DRIVER).join("bind"), &name) {
            Ok(()) => {}
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NODEV) => {}
            Err(source) => return Err(device("bind", name, source)),
        }
    }
    Ok(())
}

/// Gives the device of an interface up, if it is in a slot.
pub fn empty_slot(link: &Link) -> Result<(), NetworkError> {
    let Some(slot) = slot(&link.name) else {
        return Ok(());
    };
    match fs::write(Path::new(DRIVER).join("unbind"), &slot) {
        Ok(()) => Ok(()),
        // Gone meanwhile.
        Err(e) if Errno::from_io_error(&e) == Some(Errno::NODEV) => Ok(()),
        Err(source) => Err(device("unbind", slot, source)),
    }
}

/// The slot of an interface: its device is the slot's only child.
fn slot(interface: &str) -> Option<String> {
    let device: PathBuf = ["/sys/class/net", interface, "device"].iter().collect();
    let device = fs::canonicalize(device).ok()?;
    let slot = device.parent()?.file_name()?.to_str()?;
    slot.starts_with(SLOT).then(|| slot.to_owned())
}

fn device(step: &'static str, device: String, source: io::Error) -> NetworkError {
    NetworkError::Device { step, device, source }
}
