//! `exec`.

use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::Global;
use crate::announce::Announcement;
use crate::bundle;
use crate::exec::{ExecOptions, ProcessChanges, UserChange, exec_attached, exec_detached};
use crate::failure::{EXIT_EXEC, Failure};
use crate::preserved;
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
    /// Give the process the descriptors 3 to 2 + N: pipes and connected stream sockets.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub preserve_fds: u32,
    /// UNIX socket that receives a pidfd of the process of the host that ends with this one.
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Run the process in an existing part of the container's cgroup, as a path below it.
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
    // Before anything is opened, which could take their numbers.
    let preserved = preserved::take(args.preserve_fds)?;
    let cgroup = part_of_cgroup(&args.cgroup)?;
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
        cgroup,
        console: match args.console_socket {
            Some(path) => ConsoleMode::Socket(path),
            None => ConsoleMode::Inherit,
        },
        announcement: Announcement { pid_file: args.pid_file, pidfd_socket: args.pidfd_socket },
    };
    match detach {
        true => exec_detached(options, &preserved).map(|_| 0),
        false => exec_attached(options, preserved),
    }
}

/// The part of the container's cgroup that `--cgroup PATH` names, if it is not the whole. runc's
/// CONTROLLERS:PATH are of cgroup v1, and there may be several of those only.
fn part_of_cgroup(cgroups: &[String]) -> Result<Option<String>, Failure> {
    let refuse = |cause: &str, fix: &str| Err(Failure::new("reading the command line", cause, fix));
    let path = match cgroups {
        [] => return Ok(None),
        [path] => path,
        _ => return refuse("--cgroup is given twice", "name one path"),
    };
    if path.contains(':') {
        return refuse("--cgroup: controllers are of cgroup v1", "give the path without them");
    }
    if path.split('/').any(|part| part == "..") {
        return refuse("--cgroup: it leads out of the container's cgroup", "leave out `..`");
    }
    Ok(Some(path.trim_matches('/').to_owned()).filter(|path| !path.is_empty()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_is_one_path_below_the_containers() {
        let part = |cgroups: &[&str]| {
            part_of_cgroup(&cgroups.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        for whole in [&[][..], &[""], &["/"]] {
            assert_eq!(part(whole).unwrap(), None, "{whole:?}");
        }
        assert_eq!(part(&["/a/b/"]).unwrap().as_deref(), Some("a/b"));
        for refused in [&["a", "b"][..], &["memory:a"], &[".."], &["a/../.."]] {
            assert!(part(refused).unwrap_err().cause.contains("--cgroup"), "{refused:?}");
        }
    }
}
