//! `pause` and `resume`.

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::Global;
use crate::control::{ControlAnswer, ControlRequest, ask};
use crate::failure::Failure;
use crate::state::{CONTROL_SOCKET, Status, View};

/// Arguments of `pause` and of `resume`.
#[derive(Debug, Args)]
pub(super) struct PauseArgs {
    /// Name of the container.
    pub id: ContainerId,
}

pub(super) fn pause(global: &Global, args: PauseArgs) -> Result<u8, Failure> {
    let view = global.store().view(&args.id)?;
    // The words are runc's.
    let refused = "container not running";
    ask_live(&view, "pausing the container", refused, &ControlRequest::Pause)?;
    Ok(0)
}

pub(super) fn resume(global: &Global, args: PauseArgs) -> Result<u8, Failure> {
    let view = global.store().view(&args.id)?;
    let refused = "container not paused";
    ask_live(&view, "resuming the container", refused, &ControlRequest::Resume)?;
    Ok(0)
}

/// Asks the supervisor of a container that lives; one that has ended, or ends meanwhile, is
/// `refused`.
pub(super) fn ask_live(
    view: &View,
    phase: &str,
    refused: &str,
    request: &ControlRequest,
) -> Result<ControlAnswer, Failure> {
    let failure = || Failure::new(phase, refused, "`bulkhead list` shows states");
    if view.status() == Status::Stopped {
        return Err(failure());
    }
    match ask(&view.path(CONTROL_SOCKET), request) {
        Ok(reply) => reply,
        Err(e) if e.is_end() => Err(failure()),
        Err(e) => Err(e.into()),
    }
}
