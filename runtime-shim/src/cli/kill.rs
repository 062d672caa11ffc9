//! `kill`.

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::Global;
use crate::control::{ControlRequest, ask};
use crate::failure::Failure;
use crate::signal;
use crate::state::{CONTROL_SOCKET, Status};

/// Arguments of `kill`.
#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// To every process of the container, not its first alone.
    #[arg(short, long)]
    pub all: bool,
    /// Name of the container.
    pub id: ContainerId,
    /// Number, or name with or without SIG.
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

pub(super) fn run(global: &Global, args: KillArgs) -> Result<u8, Failure> {
    let view = global.store().view(&args.id)?;
    let signal = signal::parse(&args.signal).ok_or_else(|| {
        let cause = format!("unknown signal {:?}", args.signal);
        Failure::new("sending the signal", cause, "give a number from 1 to 64, or a name")
    })?;
    if view.status() == Status::Stopped {
        // As runc: nothing is left that --all could miss.
        return if args.all { Ok(0) } else { Err(not_running()) };
    }
    let request = ControlRequest::Kill { signal, all: args.all };
    match ask(&view.path(CONTROL_SOCKET), &request) {
        Ok(reply) => reply.map(|_| 0),
        // It ended between the look and the question.
        Err(e) if e.is_end() => Err(not_running()),
        Err(e) => Err(e.into()),
    }
}

/// runc's words, which its clients take for "already gone".
fn not_running() -> Failure {
    Failure::new("sending the signal", "container not running", "")
}
