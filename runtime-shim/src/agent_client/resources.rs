//! The calls about what a container may use and does use.
//!
//! Figures come from a guest that may lie about them; their form is checked, so that nothing but
//! numbers under the names of runc's events gets out.

use bulkhead_protocol::agent::client as api;
use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use super::calls::{container, decode, encode};
use super::wire::Call;
use super::{AgentClient, AgentError};

/// Fields of runc's figures (its package `types`).
const FIELDS: [&str; 8] =
    ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"];
/// Objects in objects that figures have at most.
const DEPTH_MAX: u32 = 5;
/// Longest name of a figure, a device or an interface, in bytes.
const NAME_MAX: usize = 64;

impl AgentClient<'_> {
    /// Freezes the container; returns when it stands still.
    pub fn pause(&self, id: &ContainerId) -> Result<(), AgentError> {
        self.call::<api::Empty>("Pause", &container(id)).map(drop)
    }

    /// Lets it run again.
    pub fn unpause(&self, id: &ContainerId) -> Result<(), AgentError> {
        self.call::<api::Empty>("Resume", &container(id)).map(drop)
    }

    /// Changes the limits that `resources` names; all stay if one cannot be changed.
    pub fn update(&self, id: &ContainerId, resources: &LinuxResources) -> Result<(), AgentError> {
        let mut request = api::UpdateContainerRequest::new();
        request.container_id = id.to_string();
        request.resources_json = serde_json::to_vec(resources)
            .map_err(|e| AgentError::Send { method: "UpdateContainer", source: e.into() })?;
        self.call::<api::Empty>("UpdateContainer", &request).map(drop)
    }

    /// Figures of the container's cgroup, in the form of runc's events.
    pub fn stats(&self, id: &ContainerId) -> Result<Map<String, Value>, AgentError> {
        let reply: api::StatsResponse = self.call("Stats", &container(id))?;
        let what = "it has not the form of runc's figures";
        figures(&reply.stats_json).ok_or(AgentError::Garbage { method: "Stats", what })
    }

    /// Begins to wait until more of the container's processes than `seen` were killed for want of
    /// memory; [`oom_reply`] reads what comes.
    pub fn wait_oom(&self, id: &ContainerId, seen: u64) -> Result<Call, AgentError> {
        let mut request = api::OomRequest::new();
        request.container_id = id.to_string();
        request.seen = seen;
        let payload = encode("WaitOom", &request)?;
        Call::send(self.connect()?, "WaitOom", payload, None)
    }
}

/// How many were killed, or no more than were seen if the container has ended.
pub fn oom_reply(payload: &[u8]) -> Result<u64, AgentError> {
    decode::<api::OomResponse>("WaitOom", payload).map(|reply| reply.kills)
}

fn figures(json: &[u8]) -> Option<Map<String, Value>> {
    let Ok(Value::Object(figures)) = serde_json::from_slice(json) else {
        return None;
    };
    let known = |(name, value): (&String, &Value)| {
        FIELDS.contains(&name.as_str()) && is_figure(value, DEPTH_MAX)
    };
    figures.iter().all(known).then_some(figures)
}

/// Numbers and short names in bounded depth.
fn is_figure(value: &Value, depth: u32) -> bool {
    match value {
        Value::Null | Value::Number(_) => true,
        Value::String(name) => is_name(name),
        Value::Array(list) => depth > 0 && list.iter().all(|v| is_figure(v, depth - 1)),
        Value::Object(map) => {
            depth > 0 && map.iter().all(|(name, v)| is_name(name) && is_figure(v, depth - 1))
        }
        Value::Bool(_) => false,
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= NAME_MAX && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn figures_of_runcs_form_pass_and_others_do_not() {
        let good = br#"{"cpu":{"usage":{"total":1}},"network_interfaces":[{"Name":"eth0"}]}"#;
        assert_eq!(figures(good).unwrap()["cpu"]["usage"]["total"], 1);
        for bad in [
            &b"[]"[..],
            br#"{"host":{"memory_bytes":1}}"#,
            br#"{"cpu":"a\u001b[2J"}"#,
            br#"{"cpu":{"a\nb":1}}"#,
            br#"{"cpu":[[[[[[1]]]]]]}"#,
            br#"{"cpu":true}"#,
        ] {
            assert_eq!(figures(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn figures_of_any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (figures(&bytes), oom_reply(&bytes));
        }
    }
}
