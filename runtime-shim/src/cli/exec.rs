//! `exec`.

use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::Global;
use super::create::refuse_descriptors;
use crate::announce::Announcement;
use crate::bundle;
use crate::exec::{ExecOptions, ProcessChanges, UserChange, exec_attached, exec_detached};
use crate::failure::{EXIT_EXEC, Failure};
use crate::request::ConsoleMode;
use crate::state::Status;

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// UNIX socket that receives the master of the process's terminal.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Working directory in the container.
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Set an environment variable.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Allocate a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// Run as this user.
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<UserChange>,
    /// Additional groups.
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File with an OCI `process` object.
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Return as soon as the process runs.
    #[arg(short, long)]
    pub detach: bool,
    /// File that receives the pid of a process of the host that ends with this one.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted as runc's and ignored: the guest kernel has no SELinux.
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// Accepted as runc's and ignored: the guest kernel has no AppArmor.
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Forbid the process to gain privileges.
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability.
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Refused above 0: no descriptor of the host reaches the guest.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub preserve_fds: u32,
    /// UNIX socket that receives a pidfd of the process of the host that ends with this one.
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Refused unless it names the container's own cgroup, /: a process is not put into another.
    #[arg(long, value_name = "CGROUP")]
    pub cgroup: Vec<String>,
    /// Refused for a paused container: a process cannot join it.
    #[arg(long)]
    pub ignore_paused: bool,
    /// Name of the container.
    pub id: ContainerId,
    /// Program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// As with runc, a process that does not run is told by one exit code.
pub(super) fn run(global: &Global, args: ExecArgs) -> Result<u8, Failure> {
    exec(global, args).map_err(|failure| failure.with_code(EXIT_EXEC))
}

fn exec(global: &Global, args: ExecArgs) -> Result<u8, Failure> {
    refuse_descriptors(args.preserve_fds)?;
    refuse_cgroup(&args.cgroup)?;
    let view = global.store().view(&args.id)?;
    if args.ignore_paused && view.status() == Status::Paused {
        let cause = "--ignore-paused: a process cannot join a microVM that is frozen";
        let fix = "`bulkhead resume` lets it run";
        return Err(Failure::new("looking up the container", cause, fix));
    }
    let process = match &args.process {
        Some(path) => bundle::read_process(path)?,
        None => changes(&args).apply(view.process()?)?,
    };
    let detach = args.detach;
    let options = ExecOptions {
        state_root: global.state_root()?,
        id: args.id,
        process,
        console: match args.console_socket {
            Some(path) => ConsoleMode::Socket(path),
            None => ConsoleMode::Inherit,
        },
        announcement: Announcement { pid_file: args.pid_file, pidfd_socket: args.pidfd_socket },
    };
    match detach {
        true => exec_detached(options).map(|_| 0),
        false => exec_attached(options),
    }
}

/// A cgroup is named as PATH or, for cgroup v1, as CONTROLLERS:PATH.
fn refuse_cgroup(cgroups: &[String]) -> Result<(), Failure> {
    let path = |cgroup: &String| cgroup.rsplit(':').next().unwrap_or_default().to_owned();
    match cgroups.iter().find(|cgroup| !matches!(path(cgroup).as_str(), "" | "/")) {
        Some(cgroup) => {
            let cause = format!("--cgroup {cgroup}: a process runs in its container's own cgroup");
            Err(Failure::new("reading the command line", cause, "leave it out, or give /"))
        }
        None => Ok(()),
    }
}

fn changes(args: &ExecArgs) -> ProcessChanges {
    ProcessChanges {
        args: args.command.clone(),
        cwd: args.cwd.clone(),
        env: args.env.clone(),
        terminal: args.tty,
        user: args.user,
        additional_gids: args.additional_gids.clone(),
        no_new_privileges: args.no_new_privs.then_some(true),
        capabilities: args.cap.clone(),
    }
}
