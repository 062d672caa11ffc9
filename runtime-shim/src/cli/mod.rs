//! The command line of `bulkhead`: runc's commands and flags, and a few for people.
//!
//! Parsing only; each command's own module turns its arguments into calls of the library.

mod create;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod launch;
mod list;
mod pause;
mod ps;
mod spec;
mod start;
mod state;
mod stats;
#[cfg(test)]
mod tests;
mod update;
mod version;

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use bulkhead_protocol::id::ContainerId;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::failure::Failure;
use crate::logging::{Log, LogFormat};
use crate::state::Store;

/// Where containers' state is kept unless `--root` says otherwise.
pub const DEFAULT_ROOT: &str = "/run/bulkhead";

/// `bulkhead`.
#[derive(Debug, Parser)]
#[command(
    name = "bulkhead",
    about = "Runs OCI containers, each in its own microVM",
    disable_version_flag = true,
    arg_required_else_help = true,
    infer_long_args = false
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    /// Print the version.
    #[arg(short = 'v', long)]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Flags in front of the command.
#[derive(Debug, Args)]
pub struct Global {
    /// Directory of the containers' state.
    #[arg(long, default_value = DEFAULT_ROOT, value_name = "DIR")]
    root: PathBuf,
    /// File that receives errors.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Form of the entries in that file.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
    /// Let the guest kernel talk, and show its console when something fails.
    #[arg(long)]
    debug: bool,
    /// Refused: scopes of systemd are not made by this version.
    #[arg(long)]
    systemd_cgroup: bool,
    /// Accepted as runc's and ignored: microVMs are run by root.
    #[arg(long, value_name = "BOOL")]
    rootless: Option<String>,
    /// Accepted as runc's and ignored.
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
}

impl Global {
    fn store(&self) -> Store {
        Store::new(&self.root)
    }

    fn log(&self) -> Log {
        Log { path: self.log.clone(), format: self.log_format, debug: self.debug }
    }

    /// Directory of the containers' state, whatever the working directory of a later process is.
    pub fn state_root(&self) -> Result<PathBuf, Failure> {
        std::path::absolute(&self.root).map_err(|e| {
            let cause = format!("--root {}: {e}", self.root.display());
            Failure::new("reading the command line", cause, "give an absolute path")
        })
    }

    /// Whether `--debug` was given.
    pub fn debug(&self) -> bool {
        self.debug
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a container; `start` lets it run.
    Create(create::CreateArgs),
    /// Create a container and run it.
    Run(create::RunArgs),
    /// Let a created container run.
    Start(start::StartArgs),
    /// Run a command in a new container from an image, as `docker run` does.
    Launch(launch::LaunchArgs),
    /// Print the state of a container.
    State(state::StateArgs),
    /// Send a signal to a container.
    Kill(kill::KillArgs),
    /// Remove what a container holds.
    Delete(delete::DeleteArgs),
    /// List containers.
    List(list::ListArgs),
    /// Run another process in a container.
    Exec(exec::ExecArgs),
    /// List the processes of a container.
    Ps(ps::PsArgs),
    /// Freeze the processes of a container.
    Pause(pause::PauseArgs),
    /// Let the processes of a paused container run.
    Resume(pause::PauseArgs),
    /// Change the limits of a container.
    Update(update::UpdateArgs),
    /// Print figures and OOM events of a container.
    Events(events::EventsArgs),
    /// Print what sandboxes use of the host.
    Stats(stats::StatsArgs),
    /// Write a new config.json.
    Spec(spec::SpecArgs),
    /// Print what this runtime can do, as JSON.
    Features,
    /// Tell whether this machine can run microVMs.
    Doctor,
    /// A detached container's supervisor.
    #[command(hide = true)]
    Supervise(InternalArgs),
    /// A detached exec's process.
    #[command(hide = true)]
    ExecProcess(InternalArgs),
}

/// Arguments of the processes that bulkhead starts of itself.
#[derive(Debug, Args)]
struct InternalArgs {
    /// The container, for `ps`.
    _id: ContainerId,
    /// The inherited socket.
    channel: RawFd,
}

/// Runs `bulkhead` with `arguments`, and gives its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return tell_usage(&error, &arguments),
    };
    let log = cli.global.log();
    let reported = matches!(cli.command, Some(Command::Supervise(_) | Command::ExecProcess(_)));
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            // A detached process has told its parent; its standard error is the workload's.
            if !reported {
                log.failure(&failure);
            }
            failure.code
        }
    }
}

/// Exit code for arguments that cannot be parsed: that of the command they were for.
fn usage_code(arguments: &[OsString]) -> u8 {
    let command = Cli::command().ignore_errors(true).try_get_matches_from(arguments);
    match command.as_ref().ok().and_then(|matches| matches.subcommand_name()) {
        Some("launch") => crate::failure::EXIT_LAUNCH,
        _ => crate::failure::EXIT_FAILURE,
    }
}

/// Help goes to standard output as it is; an error becomes one line like every other.
fn tell_usage(error: &clap::Error, arguments: &[OsString]) -> u8 {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return if error.use_stderr() { usage_code(arguments) } else { 0 };
    }
    Log::default().failure(&usage_failure(error));
    usage_code(arguments)
}

/// The first paragraph of what clap says; the rest is hints and usage.
fn usage_failure(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().skip_while(|w| *w == "error:").collect();
    Failure::new("reading the command line", words.join(" "), "--help shows what is understood")
}

fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let global = &cli.global;
    if cli.version {
        return version::run();
    }
    match cli.command {
        None => version::run(),
        Some(Command::Create(args)) => create::create(global, args),
        Some(Command::Run(args)) => create::run(global, args),
        Some(Command::Start(args)) => start::run(global, args),
        Some(Command::Launch(args)) => launch::run(global, args),
        Some(Command::State(args)) => state::run(global, args),
        Some(Command::Kill(args)) => kill::run(global, args),
        Some(Command::Delete(args)) => delete::run(global, args),
        Some(Command::List(args)) => list::run(global, args),
        Some(Command::Exec(args)) => exec::run(global, args),
        Some(Command::Ps(args)) => ps::run(global, args),
        Some(Command::Pause(args)) => pause::pause(global, args),
        Some(Command::Resume(args)) => pause::resume(global, args),
        Some(Command::Update(args)) => update::run(global, args),
        Some(Command::Events(args)) => events::run(global, args),
        Some(Command::Stats(args)) => stats::run(global, args),
        Some(Command::Spec(args)) => spec::run(args),
        Some(Command::Features) => features::run(),
        Some(Command::Doctor) => crate::doctor::run(),
        Some(Command::Supervise(args)) => crate::supervisor::serve_detached(args.channel),
        Some(Command::ExecProcess(args)) => crate::exec::serve_detached(args.channel),
    }
}

/// Writes `text` to standard output; a reader that has gone is a failure.
fn print(text: &str) -> Result<u8, Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map(|()| 0)
        .map_err(|e| Failure::new("writing the output", e.to_string(), ""))
}

/// Writes `value` as indented JSON.
fn print_json(value: &impl serde::Serialize) -> Result<u8, Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new("writing the output", e.to_string(), ""))?;
    print(&(text + "\n"))
}
