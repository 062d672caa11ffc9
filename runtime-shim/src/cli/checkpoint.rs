//! `checkpoint` and `restore`: runc's flags are read, and then both are refused by name. What CRIU
//! is told means nothing to a microVM; snapshots of microVMs are not made by this version.

use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use clap::Args;

use super::Global;
use crate::failure::Failure;

/// Flags that `checkpoint` and `restore` share.
#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// Directory of the image.
    #[arg(long, value_name = "DIR")]
    pub image_path: Option<PathBuf>,
    /// Directory of working files and logs.
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Keep TCP connections.
    #[arg(long)]
    pub tcp_established: bool,
    /// Keep connections to UNIX sockets outside.
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Keep a terminal that is not the container's.
    #[arg(long)]
    pub shell_job: bool,
    /// Keep file locks.
    #[arg(long)]
    pub file_locks: bool,
    /// How cgroups are handled: soft, full, strict or ignore.
    #[arg(long, value_name = "MODE")]
    pub manage_cgroups_mode: Option<String>,
    /// Namespace that is made empty.
    #[arg(long, value_name = "NAMESPACE")]
    pub empty_ns: Vec<String>,
    /// Leave out memory that a parent image has.
    #[arg(long)]
    pub auto_dedup: bool,
    /// Restore memory as it is used.
    #[arg(long)]
    pub lazy_pages: bool,
}

/// Arguments of `checkpoint`.
#[derive(Debug, Args)]
pub(super) struct CheckpointArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// Directory of the image that this one continues.
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<PathBuf>,
    /// Let the container run on.
    #[arg(long)]
    pub leave_running: bool,
    /// Leave out TCP connections that are being made.
    #[arg(long)]
    pub tcp_skip_in_flight: bool,
    /// Keep files that have no name any more.
    #[arg(long)]
    pub link_remap: bool,
    /// Descriptor that is told when memory can be fetched.
    #[arg(long, value_name = "FD", default_value_t = -1, allow_negative_numbers = true)]
    pub status_fd: i32,
    /// Server that takes memory.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub page_server: Option<String>,
    /// Write memory alone.
    #[arg(long)]
    pub pre_dump: bool,
    /// Name of the container.
    pub id: ContainerId,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// UNIX socket that receives the master of the container's terminal.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Directory of the bundle.
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// Return as soon as the container runs.
    #[arg(short, long)]
    pub detach: bool,
    /// File that receives the pid of the container's supervisor.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Do not adopt orphans.
    #[arg(long)]
    pub no_subreaper: bool,
    /// Do not use pivot_root.
    #[arg(long)]
    pub no_pivot: bool,
    /// Security profile, as TYPE:NAME.
    #[arg(long, value_name = "PROFILE")]
    pub lsm_profile: Option<String>,
    /// Security context of mounts.
    #[arg(long, value_name = "CONTEXT")]
    pub lsm_mount_context: Option<String>,
    /// Name of the container.
    pub id: ContainerId,
}

pub(super) fn checkpoint(global: &Global, args: CheckpointArgs) -> Result<u8, Failure> {
    global.store().view(&args.id)?;
    Err(unsupported("checkpoint"))
}

pub(super) fn restore() -> Result<u8, Failure> {
    Err(unsupported("restore"))
}

fn unsupported(command: &str) -> Failure {
    let cause = format!("{command} is not supported yet");
    let fix = "stop the container and create it anew";
    Failure::new("reading the command line", cause, fix)
}
