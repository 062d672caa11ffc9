//! Calls about what a container may use and does use.

use bulkhead_protocol::agent::server as api;
use libcontainer::oci_spec::runtime::LinuxResources;

use super::{Containers, Result, State, parse_head};
use crate::{cgroup::Cgroup, limits, stats};

impl Containers {
    /// Changes limits; those that the request does not name stay, and all stay if one cannot be
    /// changed.
    pub async fn update(&self, request: &api::UpdateContainerRequest) -> Result<()> {
        let container = self.find(&request.container_id)?;
        let resources: LinuxResources = parse_head(&request.resources_json)?;
        // One update at a time, so that each undoes no more than its own steps.
        let state = container.state.write().await;
        match container.current(*state) {
            State::Stopped => Err(container.refuse("update", State::Stopped)),
            _ => {
                let path = Cgroup::path_in_hierarchy(container.id.as_str());
                Ok(limits::update(&path, &resources)?)
            }
        }
    }

    /// What it uses, as JSON.
    pub fn stats(&self, id: &str) -> Result<Vec<u8>> {
        let container = self.find(id)?;
        let stats = stats::collect(container.cgroup.directory(), container.init.pid());
        serde_json::to_vec(&stats).map_err(super::ContainerError::Stats)
    }

    /// Waits until more of its processes were killed for want of memory than the caller has seen,
    /// or until it has ended; how many were.
    pub async fn wait_oom(&self, request: &api::OomRequest) -> Result<u64> {
        let container = self.find(&request.container_id)?;
        let cgroup = &container.cgroup;
        let kills = tokio::select! {
            biased;
            kills = cgroup.oom_kills_above(request.seen) => kills,
            // What killed its init, and its pid namespace with it, was counted before.
            () = container.init.reaped() => cgroup.oom_kills(),
        };
        match kills {
            // It goes when the container is deleted, perhaps before the end of init is noticed.
            Err(_) if !cgroup.directory().exists() => Ok(request.seen),
            kills => Ok(kills?),
        }
    }
}
