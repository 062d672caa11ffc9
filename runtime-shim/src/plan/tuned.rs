//! What a container's annotations and the operator's policy together make of a microVM.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use bulkhead_protocol::limits::{MEM_MIB_MAX, MEM_MIB_MIN, VCPUS_MAX};

use super::PlanError;
use super::annotations::{Annotation, BOOT_TIMEOUT_MAX_S, Key, PREFIX, field, find};
use super::net_limits::NetLimits;
use super::policy::{Policy, PolicyError, RawPolicy, is_parameter};

/// Longest list of kernel parameters: the command line has to hold those of every device, too.
const PARAMETERS_MAX: usize = 256;

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
    /// Words for the guest kernel's command line: the operator's, then the container's.
    pub kernel_parameters: Vec<String>,
    /// Let the guest kernel talk.
    pub debug_console: bool,
    /// Limits of network interfaces.
    pub net_limits: NetLimits,
}

impl TryFrom<RawPolicy> for Policy {
    type Error = PolicyError;

    fn try_from(raw: RawPolicy) -> Result<Self, PolicyError> {
        let policy = Self::new(raw)?;
        // Else every container would be refused for what it does not carry.
        let own = policy.complete(None).and_then(|all| plan(&all, &policy));
        own.map(|_| policy).map_err(PolicyError::Default)
    }
}

/// Reads bulkhead's annotations; one that it does not know, or that would have more than the
/// operator allows, is refused.
pub(super) fn plan(
    annotations: &HashMap<String, String>,
    policy: &Policy,
) -> Result<Tuned, PlanError> {
    let mut tuned =
        Tuned { kernel_parameters: policy.added_parameters().to_vec(), ..Tuned::default() };
    for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        let Some(annotation) = find(key) else { return Err(unknown(key)) };
        let number = |range, most| number(annotation, (key, value), range, most);
        let vcpus = || number(1..=VCPUS_MAX, policy.vcpus());
        let mem_mib = || number(MEM_MIB_MIN..=MEM_MIB_MAX, policy.mem_mib());
        match annotation.key {
            Key::Vcpus => tuned.vcpus = Some(vcpus()?),
            Key::VcpusMax => tuned.vcpus_max = Some(vcpus()?),
            Key::MemMib => tuned.mem_mib = Some(mem_mib()?),
            Key::MemMaxMib => tuned.mem_max_mib = Some(mem_mib()?),
            Key::BootTimeoutS => {
                let seconds = number(1..=BOOT_TIMEOUT_MAX_S, policy.boot_timeout_s())?;
                tuned.boot_limit = Some(Duration::from_secs(seconds.into()));
            }
            Key::KernelParameters => tuned.kernel_parameters.extend(words(key, value, policy)?),
            Key::DebugConsole => {
                let invalid = |_| PlanError::invalid(field(key), value, annotation.value);
                tuned.debug_console = value.parse().map_err(invalid)?;
            }
            Key::Net => tuned.net_limits.take(key, value)?,
            Key::Disk | Key::Sandbox => {}
        }
    }
    Ok(tuned)
}

fn unknown(key: &str) -> PlanError {
    PlanError::refused(
        field(key),
        "io.bulkhead.vcpus, .vcpus.max, .memory-mib, .memory.max, .boot-timeout-s, \
         .kernel-parameters, .debug-console, .root, .block.NAME, .net, .net.NAME and .sandbox are \
         known",
    )
}

/// The words of a list of kernel parameters.
fn words(key: &str, value: &str, policy: &Policy) -> Result<Vec<String>, PlanError> {
    let invalid = |reason| Err(PlanError::invalid(field(key), value, reason));
    if value.len() > PARAMETERS_MAX {
        return invalid("at most 256 bytes fit into the command line");
    }
    let mut words = vec![];
    for word in value.split_ascii_whitespace() {
        let name = word.split('=').next().unwrap_or_default();
        if !is_parameter(word) {
            return invalid("words as NAME or NAME=VALUE without quotes are wanted");
        }
        if !policy.allows_parameter(name) {
            let reason = "this host's operator does not allow the kernel parameter";
            return Err(PlanError::forbidden(field(key), name, reason));
        }
        words.push(word.to_owned());
    }
    Ok(words)
}

/// A number in a range, and at most what the operator allows.
fn number(
    annotation: &Annotation,
    (key, value): (&str, &str),
    range: RangeInclusive<u32>,
    most: Option<u32>,
) -> Result<u32, PlanError> {
    let number: u32 = value
        .parse()
        .ok()
        .filter(|n| range.contains(n))
        .ok_or_else(|| PlanError::invalid(field(key), value, annotation.value))?;
    match most {
        Some(most) if number > most => {
            let bound = annotation.bound;
            let reason = format!("this host's operator allows at most {most} by {bound}");
            Err(PlanError::forbidden(field(key), value, reason))
        }
        _ => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::super::annotations::{ANNOTATIONS, ANY};
    use super::super::policy::parse;
    use super::*;

    fn tuned(policy: &str, pairs: &[(&str, &str)]) -> Result<Tuned, PlanError> {
        let policy = parse(policy).unwrap();
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let all = policy.complete(Some(&pairs.collect()))?;
        plan(&all, &policy)
    }

    #[test]
    fn every_known_annotation_is_named_to_who_uses_an_unknown_one() {
        let shown = tuned("", &[("io.bulkhead.vcpu", "1")]).unwrap_err().to_string();
        for annotation in &ANNOTATIONS {
            let short = annotation.name.trim_start_matches("io.bulkhead");
            assert!(shown.contains(short), "{short}: {shown}");
        }
    }

    #[test]
    fn annotation_whose_name_begins_like_a_known_one_is_unknown() {
        for key in ["io.bulkhead.network", "io.bulkhead.vcpus.min", "io.bulkhead.blocks.a"] {
            let shown = tuned("", &[(key, "1")]).unwrap_err().to_string();
            assert!(shown.contains("are known"), "{key}: {shown}");
        }
    }

    #[test]
    fn annotation_never_has_more_than_the_operator_allows() {
        let policy = "[limits]\nvcpus = 4\nmemory_mib = 512\nboot_timeout_s = 30\n";
        for (key, good, bad) in [
            ("io.bulkhead.vcpus", "4", "5"),
            ("io.bulkhead.vcpus.max", "4", "5"),
            ("io.bulkhead.memory-mib", "512", "513"),
            ("io.bulkhead.memory.max", "512", "513"),
            ("io.bulkhead.boot-timeout-s", "30", "31"),
        ] {
            tuned(policy, &[(key, good)]).unwrap();
            tuned("", &[(key, bad)]).unwrap();
            let shown = tuned(policy, &[(key, bad)]).unwrap_err().to_string();
            assert!(shown.starts_with(&format!("annotations[{key:?}]: {bad:?} is not")), "{shown}");
            assert!(shown.contains("operator allows at most"), "{shown}");
        }
    }

    #[test]
    fn annotation_that_is_not_on_the_list_is_refused_by_name() {
        let policy = "annotations = [\"io.bulkhead.vcpus\", \"io.bulkhead.block.*\"]\n";
        tuned(policy, &[("io.bulkhead.vcpus", "1"), ("io.bulkhead.block.a", "/a")]).unwrap();
        tuned("annotations = [\"io.bulkhead.block.NAME\"]", &[("io.bulkhead.block.a", "/a")])
            .unwrap();
        let one = "annotations = [\"io.bulkhead.block.a\"]\n";
        tuned(one, &[("io.bulkhead.block.a", "/a")]).unwrap();
        tuned(one, &[("io.bulkhead.block.b", "/b")]).unwrap_err();
        tuned("annotations = []", &[("org.example", "x")]).unwrap();
        for annotation in &ANNOTATIONS {
            let key = annotation.name.replace(ANY, "a");
            let shown = tuned("annotations = []", &[(&key, "1")]).unwrap_err().to_string();
            assert!(shown.starts_with(&format!("annotations[{key:?}]: \"1\" is not")), "{shown}");
        }
        let shown = tuned(policy, &[("io.bulkhead.root", "/r")]).unwrap_err().to_string();
        assert!(shown.contains("does not allow the annotation"), "{shown}");
    }

    #[test]
    fn kernel_parameters_are_those_that_the_operator_names() {
        let key = "io.bulkhead.kernel-parameters";
        let policy =
            "[kernel_parameters]\nallow = [\"mitigations\", \"a_b\"]\nalways = [\"x=1\"]\n";
        let words = |value| tuned(policy, &[(key, value)]).map(|tuned| tuned.kernel_parameters);
        assert_eq!(words(" mitigations=off\ta-b ").unwrap(), ["x=1", "mitigations=off", "a-b"]);
        assert_eq!(tuned(policy, &[]).unwrap().kernel_parameters, ["x=1"]);
        for (value, why) in [
            ("rdinit=/bin/sh", "does not allow"),
            ("mitigations=off init=/x", "does not allow"),
            ("mitigations=\"a", "without quotes"),
            ("--", "without quotes"),
            ("mitigations=é", "without quotes"),
            (&"a_b ".repeat(65), "256 bytes"),
        ] {
            let shown = words(value).unwrap_err().to_string();
            assert!(shown.starts_with(&format!("annotations[{key:?}]: ")), "{shown}");
            assert!(shown.contains(why), "{value}: {shown}");
        }
        assert!(tuned("", &[(key, "mitigations=off")]).is_err());
        assert!(tuned("", &[("io.bulkhead.debug-console", "yes")]).is_err());
        assert!(tuned("", &[("io.bulkhead.debug-console", "true")]).unwrap().debug_console);
    }

    #[test]
    fn defaults_of_the_operator_stand_where_the_container_says_nothing() {
        let policy = "annotations = []\n[defaults]\n\"io.bulkhead.vcpus\" = \"2\"\n";
        assert_eq!(tuned(policy, &[]).unwrap().vcpus, Some(2));
        let policy = "[defaults]\n\"io.bulkhead.vcpus\" = \"2\"\n";
        assert_eq!(tuned(policy, &[("io.bulkhead.vcpus", "1")]).unwrap().vcpus, Some(1));
    }

    #[test]
    fn policy_that_cannot_hold_is_refused() {
        for (text, why) in [
            ("annotations = [\"io.bulkhead.cpu\"]", "annotations: \"io.bulkhead.cpu\""),
            ("annotations = [\"*\"]", "annotations: \"*\""),
            ("[limits]\nmemory_mib = 1", "limits.memory_mib: 1 is not from 48"),
            ("[limits]\ndisk_iops = 0", "limits.disk_iops: 0"),
            ("[kernel_parameters]\nallow = [\"rdinit\"]", "bulkhead's own"),
            ("[kernel_parameters]\nalways = [\"virtio-mmio.device=1\"]", "bulkhead's own"),
            ("[kernel_parameters]\nallow = [\"a=b\"]", "not a name alone"),
            ("[kernel_parameters]\nalways = [\"a b\"]", "no word"),
            ("[defaults]\n\"x\" = \"1\"", "defaults: \"x\""),
            ("[defaults]\n\"io.bulkhead.vcpus\" = \"x\"", "1 to 32"),
            ("[defaults]\n\"io.bulkhead.sandbox\" = \"x\"", "says so itself"),
            (
                "[limits]\nvcpus = 1\n[defaults]\n\"io.bulkhead.vcpus\" = \"2\"",
                "operator allows at most 1",
            ),
        ] {
            let shown = parse(text).unwrap_err();
            assert!(shown.contains(why), "{text}: {shown}");
        }
    }
}
