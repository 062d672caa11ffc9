//! `start`.

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::Global;
use crate::control::{ControlRequest, ask};
use crate::failure::Failure;
use crate::state::{CONTROL_SOCKET, Status};

/// Arguments of `start`.
#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// Name of the container.
    pub id: ContainerId,
}

pub(super) fn run(global: &Global, args: StartArgs) -> Result<u8, Failure> {
    let view = global.store().view(&args.id)?;
    let refused = |cause: &str| Err(Failure::new("starting the container", cause, ""));
    // The words are runc's.
    match view.status() {
        Status::Created => {}
        Status::Stopped => return refused("cannot start a container that has stopped"),
        Status::Running => return refused("cannot start an already running container"),
        Status::Creating => return refused("cannot start a container in the creating state"),
        Status::Paused => return refused("cannot start a container in the paused state"),
    }
    ask(&view.path(CONTROL_SOCKET), &ControlRequest::Start)??;
    Ok(0)
}
