//! `linux.devices`: device nodes of the container are made in the guest, so only devices that
//! the guest kernel has itself can be had.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::{PlanError, check_path};

/// Character devices of the guest kernel that containers use, by number.
const GUEST_DEVICES: [(i64, i64); 9] = [
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (5, 0),    // tty
    (5, 1),    // console
    (5, 2),    // ptmx
    (10, 229), // fuse
];

/// Refuses devices of the host.
pub(super) fn check(devices: &[LinuxDevice]) -> Result<(), PlanError> {
    for (i, device) in devices.iter().enumerate() {
        let field = format!("linux.devices[{i}]");
        check_path(&field, device.path())?;
        if !device.path().is_absolute() {
            let path = device.path().display();
            return Err(PlanError::invalid(field, path, "an absolute path is wanted"));
        }
        let number = (device.major(), device.minor());
        match device.typ() {
            LinuxDeviceType::P => {}
            LinuxDeviceType::C | LinuxDeviceType::U if GUEST_DEVICES.contains(&number) => {}
            _ => {
                let field = format!("{field} ({})", device.path().display());
                return Err(PlanError::refused(
                    field,
                    "a device of the host cannot be given to the microVM",
                ));
            }
        }
    }
    Ok(())
}
