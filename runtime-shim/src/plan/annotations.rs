//! Annotations of the container that bulkhead itself reads: `io.bulkhead.*`.

use std::collections::HashMap;
use std::time::Duration;

use bulkhead_protocol::limits::{MEM_MIB_MAX, MEM_MIB_MIN, VCPUS_MAX};

use super::net_limits::NetLimits;
use super::{PlanError, disks};

/// Every annotation below this name is bulkhead's.
const PREFIX: &str = "io.bulkhead.";
/// vCPUs of the guest.
const VCPUS: &str = "io.bulkhead.vcpus";
/// Guest memory in MiB.
const MEM_MIB: &str = "io.bulkhead.memory-mib";
/// Most guest memory in MiB that an update may ask for.
const MEM_MAX_MIB: &str = "io.bulkhead.memory.max";
/// Most vCPUs that an update may ask for.
const VCPUS_MOST: &str = "io.bulkhead.vcpus.max";
/// Seconds that a silent guest may take to start.
const BOOT_TIMEOUT_S: &str = "io.bulkhead.boot-timeout-s";
/// Longest start-up limit, in seconds.
const BOOT_TIMEOUT_MAX_S: u32 = 3600;

/// What the annotations say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tuned {
    /// In place of the vCPUs that follow from the resources.
    pub vcpus: Option<u32>,
    /// In place of the memory that follows from the resources.
    pub mem_mib: Option<u32>,
    /// Most memory that an update may ask for, in place of the default.
    pub mem_max_mib: Option<u32>,
    /// Most vCPUs that an update may ask for, in place of the default.
    pub vcpus_max: Option<u32>,
    /// In place of the default start-up limit.
    pub boot_limit: Option<Duration>,
    /// Limits of network interfaces.
    pub net_limits: NetLimits,
}

/// Reads bulkhead's annotations; one that it does not know is refused.
pub(super) fn plan(annotations: Option<&HashMap<String, String>>) -> Result<Tuned, PlanError> {
    let mut tuned = Tuned::default();
    for (key, value) in annotations.into_iter().flatten() {
        match key.as_str() {
            VCPUS => tuned.vcpus = Some(number(key, value, 1, VCPUS_MAX)?),
            MEM_MIB => tuned.mem_mib = Some(number(key, value, MEM_MIB_MIN, MEM_MIB_MAX)?),
            MEM_MAX_MIB => {
                tuned.mem_max_mib = Some(number(key, value, MEM_MIB_MIN, MEM_MIB_MAX)?);
            }
            VCPUS_MOST => tuned.vcpus_max = Some(number(key, value, 1, VCPUS_MAX)?),
            BOOT_TIMEOUT_S => {
                let seconds = number(key, value, 1, BOOT_TIMEOUT_MAX_S)?;
                tuned.boot_limit = Some(Duration::from_secs(seconds.into()));
            }
            // Read where disks are planned.
            _ if key == disks::ROOT || key.starts_with(disks::BLOCK) => {}
            _ if tuned.net_limits.take(key, value)? => {}
            _ if key.starts_with(PREFIX) => {
                return Err(PlanError::refused(
                    format!("annotations[{key:?}]"),
                    "io.bulkhead.vcpus, .vcpus.max, .memory-mib, .memory.max, .boot-timeout-s, .root, \
                     .block.NAME, .net and .net.NAME are known",
                ));
            }
            _ => {}
        }
    }
    Ok(tuned)
}

fn number(key: &str, value: &str, min: u32, max: u32) -> Result<u32, PlanError> {
    let in_range = |n: &u32| (min..=max).contains(n);
    value.parse().ok().filter(in_range).ok_or_else(|| {
        let reason = match key {
            VCPUS | VCPUS_MOST => "1 to 32 vCPUs can be had",
            MEM_MIB | MEM_MAX_MIB => "48 to 1048576 MiB can be had",
            _ => "1 to 3600 seconds can be waited",
        };
        PlanError::invalid(format!("annotations[{key:?}]"), value, reason)
    })
}
