//! `resize-disk`.

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::Global;
use super::pause::ask_live;
use crate::control::ControlRequest;
use crate::failure::Failure;

/// Arguments of `resize-disk`.
#[derive(Debug, Args)]
pub(super) struct ResizeDiskArgs {
    /// Name of the container.
    pub id: ContainerId,
    /// Name of the disk: NAME of its annotation io.bulkhead.block.NAME, `bulkhead-root` for the
    /// root's.
    pub disk: String,
}

pub(super) fn run(global: &Global, args: ResizeDiskArgs) -> Result<u8, Failure> {
    let view = global.store().view(&args.id)?;
    let request = ControlRequest::ResizeDisk { name: args.disk };
    ask_live(&view, "resizing the disk", "container not running", &request)?;
    Ok(0)
}
