//! What the operator of the host lets containers ask of bulkhead by annotations, and the most
//! that a microVM may have. Pure: [`crate::config`] reads the file.
//!
//! Nothing that a container carries raises a limit of the operator.

use std::collections::{BTreeMap, HashMap};

use bulkhead_protocol::limits::{MEM_MIB_MAX, MEM_MIB_MIN, VCPUS_MAX};
use bulkhead_protocol::vm::{RawRateLimit, RawTokenBucket};
use serde::Deserialize;
use thiserror::Error;

use super::annotations::{self, PREFIX};
use super::membership::OWN as SANDBOX;
use super::{DiskPlan, PlanError, rates, unit_properties};

/// Where the operator's file is. Without it everything is as by default.
pub const POLICY_FILE: &str = "/etc/bulkhead/config.toml";

/// The operator's file, as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPolicy {
    annotations: Option<Vec<String>>,
    limits: RawLimits,
    kernel_parameters: RawParameters,
    unit_properties: Vec<String>,
    defaults: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    vcpus: Option<u32>,
    memory_mib: Option<u32>,
    boot_timeout_s: Option<u32>,
    disk_iops: Option<u64>,
    disk_bytes_per_s: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawParameters {
    allow: Vec<String>,
    always: Vec<String>,
}

/// Why a policy is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PolicyError {
    /// An annotation that bulkhead does not read.
    #[error("{key}: {name:?} is no annotation of bulkhead")]
    Annotation {
        /// Where it stands.
        key: &'static str,
        /// The annotation.
        name: String,
    },
    /// A number out of the range that a microVM can have.
    #[error("limits.{0}: {1} is not from {2} to {3}")]
    Limit(&'static str, u64, u64, u64),
    /// A kernel parameter that is no word, or is bulkhead's own.
    #[error("kernel_parameters: {0:?} {1}")]
    Parameter(String, &'static str),
    /// A property of units that is none, or is bulkhead's own.
    #[error("unit_properties: {0:?} {1}")]
    UnitProperty(String, &'static str),
    /// A sandbox for all containers.
    #[error("defaults: {SANDBOX}: a container that names a sandbox says so itself")]
    Sandbox,
    /// A default that no container could have.
    #[error("defaults")]
    Default(#[source] PlanError),
}

/// A checked policy. The default one allows everything but kernel parameters.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    allowed: Option<Vec<String>>,
    limits: RawLimits,
    parameters: Vec<String>,
    always: Vec<String>,
    unit_properties: Vec<String>,
    defaults: BTreeMap<String, String>,
}

impl Policy {
    /// Checks all but the defaults.
    pub(super) fn new(raw: RawPolicy) -> Result<Self, PolicyError> {
        for name in raw.annotations.iter().flatten() {
            if name.strip_suffix('*').is_none_or(|start| !start.starts_with(PREFIX)) {
                check_annotation("annotations", name)?;
            }
        }
        for name in raw.defaults.keys() {
            check_annotation("defaults", name)?;
        }
        if raw.defaults.contains_key(SANDBOX) {
            return Err(PolicyError::Sandbox);
        }
        check_limits(&raw.limits)?;
        for name in &raw.kernel_parameters.allow {
            check_parameter(name)?;
            if name.contains('=') {
                return Err(PolicyError::Parameter(name.clone(), "is not a name alone"));
            }
        }
        raw.kernel_parameters.always.iter().try_for_each(|word| check_parameter(word))?;
        raw.unit_properties.iter().try_for_each(|name| check_unit_property(name))?;
        Ok(Self {
            allowed: raw.annotations,
            limits: raw.limits,
            parameters: raw.kernel_parameters.allow,
            always: raw.kernel_parameters.always,
            unit_properties: raw.unit_properties,
            defaults: raw.defaults,
        })
    }

    /// The annotations of a container with the operator's defaults; one that it may not carry is
    /// refused.
    pub(super) fn complete(
        &self,
        carried: Option<&HashMap<String, String>>,
    ) -> Result<HashMap<String, String>, PlanError> {
        let mut all = HashMap::new();
        for (key, value) in carried.into_iter().flatten() {
            // One that is not known at all is refused as such.
            if annotations::find(key).is_some() && !self.allows(key) {
                let reason = "this host's operator does not allow the annotation";
                return Err(PlanError::forbidden(annotations::field(key), value, reason));
            }
            all.insert(key.clone(), value.clone());
        }
        for (key, value) in &self.defaults {
            all.entry(key.clone()).or_insert_with(|| value.clone());
        }
        Ok(all)
    }

    pub(super) fn allows(&self, key: &str) -> bool {
        let covers = |name: &String| match name.strip_suffix('*') {
            Some(start) => key.starts_with(start),
            // Of those that stand for many, the name of the table allows all, any other itself.
            None => {
                name == key || annotations::find(name).is_some_and(|a| a.name == name && a.is(key))
            }
        };
        self.allowed.as_ref().is_none_or(|list| list.iter().any(covers))
    }

    /// Most vCPUs of a microVM.
    pub(super) fn vcpus(&self) -> Option<u32> {
        self.limits.vcpus
    }

    /// Most memory of a microVM, in MiB.
    pub(super) fn mem_mib(&self) -> Option<u32> {
        self.limits.memory_mib
    }

    /// Longest start, in seconds.
    pub(super) fn boot_timeout_s(&self) -> Option<u32> {
        self.limits.boot_timeout_s
    }

    /// Whether a container may give the guest's kernel the parameter `name`.
    pub(super) fn allows_parameter(&self, name: &str) -> bool {
        self.parameters.iter().any(|allowed| same_parameter(allowed, name))
    }

    /// Parameters that every guest's kernel gets.
    pub(super) fn added_parameters(&self) -> &[String] {
        &self.always
    }

    /// Whether a container may set the property `name` of its scope.
    pub(super) fn allows_unit_property(&self, name: &str) -> bool {
        self.unit_properties.iter().any(|allowed| allowed == name)
    }

    /// Gives each disk the operator's rate, unless it has a lower one.
    pub(super) fn limit_disks(&self, disks: &mut [DiskPlan]) -> Result<(), PlanError> {
        let RawLimits { disk_iops, disk_bytes_per_s, .. } = self.limits;
        for disk in disks {
            let mut rate = disk.rate.unwrap_or_default();
            limit_rate(&disk.field, &mut rate.ops, disk_iops, "operations")?;
            limit_rate(&disk.field, &mut rate.bytes, disk_bytes_per_s, "bytes")?;
            disk.rate = Some(rate).filter(|rate| *rate != RawRateLimit::default());
        }
        Ok(())
    }
}

fn limit_rate(
    field: &str,
    bucket: &mut Option<RawTokenBucket>,
    most: Option<u64>,
    unit: &str,
) -> Result<(), PlanError> {
    let Some(most) = most else { return Ok(()) };
    match bucket {
        Some(bucket) if bucket.size > most => {
            let reason = format!("this host's operator allows {most} {unit} a second");
            Err(PlanError::forbidden(field, bucket.size, reason))
        }
        Some(_) => Ok(()),
        None => {
            *bucket = rates::bucket(Some(most));
            Ok(())
        }
    }
}

fn check_annotation(key: &'static str, name: &str) -> Result<(), PolicyError> {
    match annotations::find(name) {
        Some(_) => Ok(()),
        None => Err(PolicyError::Annotation { key, name: name.to_owned() }),
    }
}

fn check_limits(limits: &RawLimits) -> Result<(), PolicyError> {
    let number = |n: Option<u32>| n.map(u64::from);
    for (name, value, min, max) in [
        ("vcpus", number(limits.vcpus), 1, u64::from(VCPUS_MAX)),
        ("memory_mib", number(limits.memory_mib), MEM_MIB_MIN.into(), MEM_MIB_MAX.into()),
        (
            "boot_timeout_s",
            number(limits.boot_timeout_s),
            1,
            annotations::BOOT_TIMEOUT_MAX_S.into(),
        ),
        ("disk_iops", limits.disk_iops, 1, u64::MAX),
        ("disk_bytes_per_s", limits.disk_bytes_per_s, 1, u64::MAX),
    ] {
        if let Some(value) = value.filter(|value| !(min..=max).contains(value)) {
            return Err(PolicyError::Limit(name, value, min, max));
        }
    }
    Ok(())
}

/// Parameters by which bulkhead makes the guest what the host takes it for.
const OWN_PARAMETERS: [&str; 12] = [
    "acpi",
    "console",
    "dummy.numdummies",
    "earlyprintk",
    "init",
    "initrd",
    "maxcpus",
    "panic",
    "rdinit",
    "reboot",
    "root",
    "virtio_mmio.device",
];

/// The kernel takes `-` and `_` in a name for the same.
fn same_parameter(a: &str, b: &str) -> bool {
    a.replace('-', "_") == b.replace('-', "_")
}

/// Checks `NAME` or `NAME=VALUE`.
fn check_parameter(word: &str) -> Result<(), PolicyError> {
    let refused = |reason| Err(PolicyError::Parameter(word.to_owned(), reason));
    if !is_parameter(word) {
        return refused("is no word of a kernel command line");
    }
    let name = word.split('=').next().unwrap_or_default();
    match OWN_PARAMETERS.iter().any(|own| same_parameter(own, name)) {
        true => refused("is bulkhead's own"),
        false => Ok(()),
    }
}

fn check_unit_property(name: &str) -> Result<(), PolicyError> {
    let refused = |reason| Err(PolicyError::UnitProperty(name.to_owned(), reason));
    match (unit_properties::is_name(name), unit_properties::is_ours(name)) {
        (false, _) => refused("is no name of a property"),
        (true, true) => refused("is bulkhead's own"),
        (true, false) => Ok(()),
    }
}

/// Whether `word` is one parameter to the kernel and cannot end the line or quote.
pub(super) fn is_parameter(word: &str) -> bool {
    let name = word.split('=').next().unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    starts_well
        && name.bytes().all(plain)
        && word.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\".contains(&b))
}

#[cfg(test)]
pub(super) fn parse(text: &str) -> Result<Policy, String> {
    let raw: RawPolicy = toml::from_str(text).map_err(|e| e.to_string())?;
    Policy::try_from(raw).map_err(|e| crate::failure::chain(&e))
}
