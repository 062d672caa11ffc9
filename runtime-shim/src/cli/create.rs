//! `create` and `run`.

use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::Global;
use crate::announce::Announcement;
use crate::bundle::{self, Config};
use crate::failure::{Failure, printable};
use crate::preserved;
use crate::request::{ConsoleMode, RootSource, SandboxOptions, SandboxRequest};
use crate::supervisor::{lead, run_detached, run_foreground};

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
    /// Give the process the descriptors 3 to 2 + N: pipes and connected stream sockets.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub preserve_fds: u32,
    /// UNIX socket that receives a pidfd of the container's supervisor.
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
        false => lead(|leader| run_foreground(request, leader)),
    }
}

fn request(
    global: &Global,
    args: BundleArgs,
    start: bool,
    keep: bool,
) -> Result<SandboxRequest, Failure> {
    // Before anything is opened, which could take their numbers.
    let preserved = preserved::take(args.preserve_fds)?;
    refuse_activation(|name| std::env::var(name).ok())?;
    global.check_rootless()?;
    let bundle = bundle::resolve(&args.bundle)?;
    let Config { spec, unknown } = bundle::read_spec(&bundle)?;
    if global.debug {
        for field in unknown {
            let field = printable(&field);
            eprintln!("bulkhead: {field} is ignored: the specification has no such field");
        }
    }
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
        announcement: Announcement { pid_file: args.pid_file, pidfd_socket: args.pidfd_socket },
        systemd_cgroup: global.systemd_cgroup,
        debug: global.debug,
    };
    Ok(SandboxRequest { options, root: RootSource::Bundle, preserved })
}

/// Sockets that systemd has opened for this process (sd_listen_fds(3)), which runc passes on.
pub(super) fn refuse_activation(variable: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
    let number = |name| variable(name).and_then(|text| text.parse::<u32>().ok());
    let ours = number("LISTEN_PID") == Some(std::process::id());
    if ours && number("LISTEN_FDS").is_some_and(|count| count > 0) {
        let cause = "LISTEN_FDS: a listening socket of the host cannot be given to a microVM";
        let fix = "run it without socket activation";
        return Err(Failure::new("reading the environment", cause, fix));
    }
    Ok(())
}
