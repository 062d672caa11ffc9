//! `create` and `run`.

use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::Global;
use crate::bundle;
use crate::failure::Failure;
use crate::request::{ConsoleMode, RootSource, SandboxOptions, SandboxRequest};
use crate::supervisor::{run_detached, run_foreground};

/// Flags that `create` and `run` share.
#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    /// Directory of the bundle.
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// UNIX socket that receives the master of the container's terminal.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File that receives the pid of the container's supervisor.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted as runc's: the guest has a root of its own, which needs no pivot.
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted as runc's: the guest has keyrings of its own.
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Refused above 0: no descriptor of the host reaches the guest.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub preserve_fds: u32,
    /// Refused: a process of the guest has no pidfd on the host.
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Name of the container.
    pub id: ContainerId,
}

/// Arguments of `create`.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    pub bundle: BundleArgs,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub bundle: BundleArgs,
    /// Return as soon as the container runs.
    #[arg(short, long)]
    pub detach: bool,
    /// Leave the container's state when it has ended.
    #[arg(long)]
    pub keep: bool,
    /// Accepted as runc's: no process of the container is one of the host.
    #[arg(long)]
    pub no_subreaper: bool,
}

pub(super) fn create(global: &Global, args: CreateArgs) -> Result<u8, Failure> {
    run_detached(request(global, args.bundle, false, true)?).map(|_| 0)
}

pub(super) fn run(global: &Global, args: RunArgs) -> Result<u8, Failure> {
    let keep = args.keep || args.detach;
    let request = request(global, args.bundle, true, keep)?;
    match args.detach {
        true => run_detached(request).map(|_| 0),
        false => run_foreground(request),
    }
}

fn request(
    global: &Global,
    args: BundleArgs,
    start: bool,
    keep: bool,
) -> Result<SandboxRequest, Failure> {
    refuse_descriptors(args.preserve_fds, args.pidfd_socket.is_some())?;
    let bundle = bundle::resolve(&args.bundle)?;
    let spec = bundle::read_spec(&bundle)?;
    let options = SandboxOptions {
        id: args.id,
        state_root: global.state_root()?,
        bundle,
        spec,
        console: match args.console_socket {
            Some(path) => ConsoleMode::Socket(path),
            None => ConsoleMode::Inherit,
        },
        start,
        keep,
        scratch: None,
        uplink: None,
        pid_file: args.pid_file,
        systemd_cgroup: global.systemd_cgroup,
        debug: global.debug,
    };
    Ok(SandboxRequest { options, root: RootSource::Bundle })
}

/// Descriptors of the host mean nothing in a virtual machine.
pub(super) fn refuse_descriptors(preserve: u32, pidfd_socket: bool) -> Result<(), Failure> {
    let refused = |cause: &str, fix| Err(Failure::new("reading the command line", cause, fix));
    if preserve > 0 {
        let cause = "--preserve-fds: descriptors of the host cannot be given to a microVM";
        return refused(cause, "leave it out, or give 0");
    }
    if pidfd_socket {
        let cause = "--pidfd-socket: a process of a microVM has no pidfd on the host";
        return refused(cause, "leave it out");
    }
    Ok(())
}
