//! `delete`.

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::Global;
use crate::failure::Failure;
use crate::state::delete;

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// Kill the container if it runs; succeed if there is none.
    #[arg(short, long)]
    pub force: bool,
    /// Name of the container.
    pub id: ContainerId,
}

pub(super) fn run(global: &Global, args: DeleteArgs) -> Result<u8, Failure> {
    delete(&global.store(), &args.id, args.force)?;
    Ok(0)
}
