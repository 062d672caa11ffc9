//! The command line of `bulkhead`: runc's commands and flags, and a few for people.
//!
//! Parsing only; each command's own module turns its arguments into calls of the library.

mod checkpoint;
mod completion;
mod create;
mod dashes;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod launch;
mod list;
mod pause;
mod ps;
mod resize_disk;
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
use clap::{Arg, ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::exec::EXEC_PROCESS;
use crate::failure::Failure;
use crate::logging::{Log, LogFormat};
use crate::state::Store;
use crate::supervisor::SUPERVISE;

/// Where containers' state is kept unless `--root` says otherwise.
pub const DEFAULT_ROOT: &str = "/run/bulkhead";

/// `bulkhead`.
#[derive(Debug, Parser)]
#[command(
    name = "bulkhead",
    about = "Runs OCI containers, each in its own microVM",
    disable_version_flag = true,
    arg_required_else_help = true,
    infer_long_args = false,
    args_override_self = true
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
    /// Let systemd make the cgroup, as a scope; linux.cgroupsPath is slice:prefix:name.
    #[arg(long)]
    systemd_cgroup: bool,
    /// auto or false; true is refused, since microVMs are run by root and obey cgroups.
    #[arg(long, default_value = "auto", value_name = "BOOL")]
    rootless: String,
    /// Obsolete, as with runc: nothing uses CRIU.
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
}

impl Global {
    fn store(&self) -> Store {
        Store::new(&self.root)
    }

    fn log(&self) -> Log {
        Log::open(self.log.as_deref(), self.log_format, self.debug)
    }

    /// Directory of the containers' state, whatever the working directory of a later process is.
    pub fn state_root(&self) -> Result<PathBuf, Failure> {
        std::path::absolute(&self.root).map_err(|e| {
            let cause = format!("--root {}: {e}", self.root.display());
            Failure::new("reading the command line", cause, "give an absolute path")
        })
    }

    /// Refuses a state directory that would be the whole machine; the words are runc's.
    fn check_root(&self) -> Result<(), Failure> {
        let root = self.state_root()?;
        // `.` and `..` lead to it, too; a directory that does not exist yet does not.
        let root = root.canonicalize().unwrap_or(root);
        if root.parent().is_some() {
            return Ok(());
        }
        let cause = "Option --root argument should not be set to /";
        Err(Failure::new("reading the command line", cause, "give a directory below /run"))
    }

    /// Where a container is made, `--rootless` is read as runc reads it.
    fn check_rootless(&self) -> Result<(), Failure> {
        let given = self.rootless.to_ascii_lowercase();
        let rootless = match given.as_str() {
            "" | "auto" => Ok(false),
            text => go_boolean(text),
        };
        let cause = match rootless {
            Ok(false) => return Ok(()),
            Ok(true) => "microVMs are run by root, whose cgroups are not optional".to_owned(),
            Err(reason) => reason,
        };
        let cause = format!("--rootless={}: {cause}", self.rootless);
        Err(Failure::new("reading the command line", cause, "leave it out, or give auto or false"))
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
    /// Not supported yet: write a container to an image.
    Checkpoint(checkpoint::CheckpointArgs),
    /// Not supported yet: create a container from an image that `checkpoint` wrote.
    Restore(checkpoint::RestoreArgs),
    /// Tell the guest that the file or device of a disk has another size.
    ResizeDisk(resize_disk::ResizeDiskArgs),
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
    /// Print the completion of a shell, to be sourced by it.
    Completion(completion::CompletionArgs),
    /// Write the manual pages.
    Man(completion::ManArgs),
}

/// The processes that bulkhead starts of itself: no part of its command line.
#[derive(Debug, Parser)]
enum Internal {
    /// A detached container's supervisor.
    Supervise(InternalArgs),
    /// A detached exec's process.
    ExecProcess(InternalArgs),
}

impl Internal {
    /// None for the command line of somebody else.
    fn of(arguments: &[OsString]) -> Option<Self> {
        let name = arguments.get(1)?;
        let internal = [SUPERVISE, EXEC_PROCESS].iter().any(|own| name == own);
        internal.then(|| Self::try_parse_from(arguments).ok())?
    }

    /// Its exit code. It has told its parent of a failure; its standard error is the workload's.
    fn run(self) -> u8 {
        let result = match self {
            Self::Supervise(args) => crate::supervisor::serve_detached(args.channel),
            Self::ExecProcess(args) => crate::exec::serve_detached(args.channel),
        };
        result.unwrap_or_else(|failure| failure.code)
    }
}

/// Arguments of an internal process.
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
    if let Some(internal) = Internal::of(&arguments) {
        // The kernel named this process `exe`, after the link by which it was executed. A name
        // that stays as it is harms nothing.
        let _ = rustix::thread::set_name(c"bulkhead");
        return internal.run();
    }
    let cli = match Cli::parse_as_runc(&arguments) {
        Ok(cli) => cli,
        Err(error) => return tell_usage(&error, &arguments),
    };
    let log = cli.global.log();
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            log.failure(&failure);
            failure.code
        }
    }
}

/// The definition of the whole command line.
pub fn command() -> clap::Command {
    go_flags(Cli::command())
}

impl Cli {
    fn parse_as_runc<T>(arguments: impl IntoIterator<Item = T>) -> Result<Self, clap::Error>
    where
        T: Into<OsString>,
    {
        let mut matches = matches(command(), arguments)?;
        Self::from_arg_matches_mut(&mut matches)
    }
}

/// The flags of a command line, in the spellings that runc takes.
fn matches<T: Into<OsString>>(
    command: clap::Command,
    arguments: impl IntoIterator<Item = T>,
) -> Result<ArgMatches, clap::Error> {
    let arguments = dashes::for_clap(&command, arguments);
    command.try_get_matches_from(arguments)
}

/// Flags without a value take one behind `=`, too, as those of a Go program do.
fn go_flags(command: clap::Command) -> clap::Command {
    let of_argument = |argument: Arg| match argument.get_action() {
        ArgAction::SetTrue => argument
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .hide_default_value(true)
            .value_name("BOOL")
            .value_parser(go_boolean),
        _ => argument,
    };
    command.mut_args(of_argument).mut_subcommands(go_flags)
}

/// A truth value in the spellings of Go's strconv.ParseBool.
fn go_boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("true or false is wanted".to_owned()),
    }
}

/// Exit code for arguments that cannot be parsed: that of the command they were for.
fn usage_code(error: &clap::Error, arguments: &[OsString]) -> u8 {
    let matches = matches(command().ignore_errors(true), arguments);
    match matches.as_ref().ok().and_then(|matches| matches.subcommand_name()) {
        Some("launch") => crate::failure::EXIT_LAUNCH,
        // runc reads the values of exec when it has begun.
        Some("exec") if error.kind() == ErrorKind::ValueValidation => crate::failure::EXIT_EXEC,
        _ => crate::failure::EXIT_FAILURE,
    }
}

/// Help goes to standard output as it is; an error becomes one line like every other.
fn tell_usage(error: &clap::Error, arguments: &[OsString]) -> u8 {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return if error.use_stderr() { usage_code(error, arguments) } else { 0 };
    }
    Log::default().failure(&usage_failure(error));
    usage_code(error, arguments)
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
    global.check_root()?;
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
        Some(Command::ResizeDisk(args)) => resize_disk::run(global, args),
        Some(Command::Events(args)) => events::run(global, args),
        Some(Command::Stats(args)) => stats::run(global, args),
        Some(Command::Spec(args)) => spec::run(args),
        Some(Command::Features) => features::run(),
        Some(Command::Doctor) => crate::doctor::run(),
        Some(Command::Checkpoint(args)) => checkpoint::checkpoint(global, args),
        Some(Command::Restore(_)) => checkpoint::restore(),
        Some(Command::Completion(args)) => completion::completion(args),
        Some(Command::Man(args)) => completion::man(args),
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
