//! Properties of the scope that a container asks for by annotations `org.systemd.property.NAME`, as
//! runc's: read with `--systemd-cgroup` only. Pure.
//!
//! The attack: a property that takes the sandbox out of its limits, lets it live on when it is
//! stopped, or runs something. So a few are free, within bounds; those of limits and of the place
//! are refused, since `linux.resources` and `linux.cgroupsPath` are for them; any other needs the
//! operator's word.

use std::collections::HashMap;

use super::{PlanError, Policy, annotations};
use crate::cgroup::{Property, Value, parse_value};

const PREFIX: &str = "org.systemd.property.";
/// Longest time that a stop may take, in microseconds: systemd waits for it when the host shuts
/// down.
const STOP_MAX_US: u64 = 600 * 1_000_000;
const SECOND_US: u64 = 1_000_000;

/// Where properties of limits and of the place begin. None of them can be allowed.
const OURS: [&str; 21] = [
    "Allowed",
    "BPF",
    "BlockIO",
    "CPU",
    "Controller",
    "Delegate",
    "Description",
    "Device",
    "Disable",
    "IO",
    "IP",
    "Managed",
    "Memory",
    "NFTSet",
    "PIDs",
    "RestrictNetworkInterfaces",
    "Scope",
    "Slice",
    "SocketBind",
    "Startup",
    "Tasks",
];

/// Whether a property is bulkhead's to set.
pub(super) fn is_ours(name: &str) -> bool {
    OURS.iter().any(|ours| name.starts_with(ours))
}

/// Whether it can be the name of a property; runc's rule.
pub(super) fn is_name(name: &str) -> bool {
    name.len() >= 3 && name.bytes().all(|b| b.is_ascii_alphabetic())
}

/// The properties that `annotations` ask for, in the order of their names.
pub fn unit_properties(
    annotations: Option<&HashMap<String, String>>,
    policy: &Policy,
) -> Result<Vec<Property>, PlanError> {
    let mut asked: Vec<(&String, &str, &String)> = annotations
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key, key.strip_prefix(PREFIX)?, value)))
        .collect();
    asked.sort_unstable();
    asked.into_iter().map(|(key, name, value)| property(key, name, value, policy)).collect()
}

fn property(key: &str, name: &str, text: &str, policy: &Policy) -> Result<Property, PlanError> {
    let field = || annotations::field(key);
    if !is_name(name) {
        return Err(PlanError::invalid(field(), name, "a property has a name of letters"));
    }
    if is_ours(name) {
        let reason = "linux.resources and linux.cgroupsPath say what the scope has";
        return Err(PlanError::refused(field(), reason));
    }
    let value = parse_value(text);
    let value = value.ok_or_else(|| {
        PlanError::invalid(field(), text, "a value in GVariant's text format is wanted")
    })?;
    let (name, value) = in_microseconds(name, value)
        .ok_or_else(|| PlanError::invalid(field(), text, "a number of seconds is wanted"))?;
    match free(&name, &value) {
        Some(Ok(value)) => Ok(Property { name, value }),
        Some(Err(reason)) => Err(PlanError::invalid(field(), text, reason)),
        None if policy.allows_unit_property(&name) => Ok(Property { name, value }),
        None => {
            let reason = "this host's operator does not allow the property (unit_properties)";
            Err(PlanError::forbidden(field(), text, reason))
        }
    }
}

/// As runc: a property of seconds is told as one of microseconds.
fn in_microseconds(name: &str, value: Value) -> Option<(String, Value)> {
    match name.strip_suffix("Sec").filter(|start| !start.ends_with('U')) {
        Some(start) => {
            let us = unsigned(&value)?.checked_mul(SECOND_US)?;
            Some((format!("{start}USec"), Value::Uint64(us)))
        }
        None => Some((name.to_owned(), value)),
    }
}

/// The value of a property that every container may set, or why it may not be that; none for
/// others.
fn free(name: &str, value: &Value) -> Option<Result<Value, &'static str>> {
    let time = || unsigned(value).ok_or("microseconds are wanted");
    Some(match name {
        "CollectMode" => match value {
            Value::Text(mode) if ["inactive", "inactive-or-failed"].contains(&mode.as_str()) => {
                Ok(value.clone())
            }
            _ => Err("'inactive' or 'inactive-or-failed' is wanted"),
        },
        "DefaultDependencies" => match value {
            Value::Bool(_) => Ok(value.clone()),
            _ => Err("true or false is wanted"),
        },
        "KillSignal" => match unsigned(value).and_then(|n| i32::try_from(n).ok()) {
            Some(signal @ 1..=64) => Ok(Value::Int32(signal)),
            _ => Err("a number of a signal is wanted"),
        },
        "RuntimeMaxUSec" => time().map(Value::Uint64),
        "TimeoutStopUSec" => match time() {
            Ok(us @ ..=STOP_MAX_US) => Ok(Value::Uint64(us)),
            Ok(_) => Err("at most ten minutes are allowed"),
            Err(reason) => Err(reason),
        },
        _ => return None,
    })
}

fn unsigned(value: &Value) -> Option<u64> {
    match value {
        Value::Int32(n) => u64::try_from(*n).ok(),
        Value::Int64(n) => u64::try_from(*n).ok(),
        Value::Uint32(n) => Some((*n).into()),
        Value::Uint64(n) => Some(*n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy;
    use super::*;

    fn planned(name: &str, value: &str, policy: &Policy) -> Result<Vec<Property>, PlanError> {
        let annotations = [
            (format!("{PREFIX}{name}"), value.to_owned()),
            ("io.bulkhead.vcpus".to_owned(), "2".to_owned()),
        ];
        unit_properties(Some(&annotations.into()), policy)
    }

    #[test]
    fn free_properties_are_set_in_the_type_that_they_have() {
        let text = |text: &str| Value::Text(text.to_owned());
        for (name, value, expected, property) in [
            ("KillSignal", "15", "KillSignal", Value::Int32(15)),
            ("KillSignal", "uint64 9", "KillSignal", Value::Int32(9)),
            ("TimeoutStopUSec", "uint64 90000000", "TimeoutStopUSec", Value::Uint64(90_000_000)),
            ("TimeoutStopSec", "600", "TimeoutStopUSec", Value::Uint64(STOP_MAX_US)),
            (
                "RuntimeMaxUSec",
                "@t 18446744073709551615",
                "RuntimeMaxUSec",
                Value::Uint64(u64::MAX),
            ),
            ("CollectMode", "'inactive'", "CollectMode", text("inactive")),
            ("DefaultDependencies", "true", "DefaultDependencies", Value::Bool(true)),
        ] {
            let found = planned(name, value, &Policy::default()).unwrap();
            assert_eq!(found, [Property::new(expected, property)], "{name} {value}");
        }
        assert_eq!(unit_properties(None, &Policy::default()).unwrap(), []);
    }

    #[test]
    fn value_that_a_property_cannot_have_is_refused() {
        for (name, value) in [
            ("KillSignal", "0"),
            ("KillSignal", "'TERM'"),
            ("TimeoutStopUSec", "uint64 600000001"),
            ("TimeoutStopSec", "-1"),
            ("TimeoutStopSec", "@t 18446744073709551615"),
            ("CollectMode", "'never'"),
            ("DefaultDependencies", "'yes'"),
            ("DefaultDependencies", "yes"),
            ("a", "true"),
            ("Kill-Signal", "15"),
            ("", "15"),
        ] {
            let refused = planned(name, value, &Policy::default()).unwrap_err().to_string();
            assert!(refused.contains(PREFIX), "{name} {value}: {refused}");
        }
    }

    #[test]
    fn others_need_the_operators_word_and_limits_have_none() {
        let allowed = policy::parse("unit_properties = [\"Before\", \"SendSIGHUP\"]").unwrap();
        let found = planned("Before", "['a.service']", &allowed).unwrap();
        assert_eq!(found, [Property::new("Before", Value::Texts(vec!["a.service".to_owned()]))]);
        for (name, value, policy) in [
            ("Before", "['a.service']", &Policy::default()),
            ("SendSIGKILL", "false", &allowed),
            ("OnFailure", "['x.service']", &allowed),
            ("MemoryMax", "@t 18446744073709551615", &allowed),
            ("MemoryHigh", "@t 5", &allowed),
            ("Slice", "'x.slice'", &allowed),
            ("Delegate", "false", &allowed),
            ("PIDs", "1", &allowed),
            ("CPUQuotaPerSecSec", "1", &allowed),
            ("DevicePolicy", "'auto'", &allowed),
        ] {
            assert!(planned(name, value, policy).is_err(), "{name}");
        }
        for name in ["MemoryMax", "Slice", "x", "a b c", "DisableControllers"] {
            let refused = policy::parse(&format!("unit_properties = [{name:?}]")).unwrap_err();
            assert!(refused.contains("unit_properties"), "{name}: {refused}");
        }
    }
}
