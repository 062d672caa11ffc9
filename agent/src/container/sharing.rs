//! Namespaces that containers of one guest share.
//!
//! The host says which container's; the specification says which kinds. A shared namespace is that
//! of the other container's init, which must live: only then its pid is its own.

use std::sync::Arc;

use bulkhead_protocol::agent::server as api;
use rustix::process::Signal;
use serde_json::Value;

use super::{Container, ContainerError, Containers, Result, State};

/// The kinds that can be shared: their names in a specification and in /proc/PID/ns are the same.
const KINDS: [&str; 3] = ["pid", "ipc", "uts"];

impl Containers {
    /// Gives the namespaces of `spec` that are to be shared the path of the other container's.
    pub(super) fn share_namespaces(
        &self,
        spec: &mut Value,
        shared: &[api::SharedNamespace],
    ) -> Result<()> {
        for namespace in shared {
            let other = self.find(&namespace.container_id)?;
            if other.init.has_ended() {
                return Err(other.refuse("share a namespace with", State::Stopped));
            }
            let kind = &namespace.type_;
            let refused = || ContainerError::SharedNamespace(kind.clone());
            if !KINDS.contains(&kind.as_str()) {
                return Err(refused());
            }
            let list = spec.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
            let mut list = list.into_iter().flatten();
            let entry = list.find(|entry| entry["type"] == kind.as_str()).ok_or_else(refused)?;
            entry["path"] = format!("/proc/{}/ns/{kind}", other.init.pid()).into();
        }
        Ok(())
    }
}

/// Whether the pid namespace is another container's.
pub(super) fn shares_pids(shared: &[api::SharedNamespace]) -> bool {
    shared.iter().any(|namespace| namespace.type_ == "pid")
}

/// Ends all processes of a container with its init, as the kernel does where init has a pid
/// namespace of its own: else one that holds an output would keep it open for ever.
pub(super) fn end_with_init(container: Arc<Container>) {
    tokio::spawn(async move {
        container.init.reaped().await;
        // Fails when the container has been deleted meanwhile, and its processes with it.
        let _ = container.cgroup.signal(Signal::KILL);
    });
}
