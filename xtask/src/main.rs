//! `cargo xtask`: builds, hosts, tests, shows and measures bulkhead.
//!
//! Trusts its caller, the checkout and the Debian archive.

mod archive;
mod bench;
mod cargo;
mod checkout;
mod debian;
mod demo;
mod dist;
mod host;
mod kernel;
mod packages;
mod process;
mod progress;
mod suites;
mod tools;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, host, test, demo and benchmark driver")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the guest kernel into target/guest/
    Kernel {
        /// Keep the unpacked source and the objects for the next build
        #[arg(long)]
        keep_tree: bool,
    },
    /// Build the static binaries into target/dist/ and the agent's initrd into target/guest/
    Build,
    /// Install the Debian packages that building and testing need
    Packages,
    /// Run the test suites and print one summary
    Test {
        /// Only this suite; may be given several times
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// Print the names of the suites
        #[arg(long)]
        list: bool,
        /// Long forms: a thousand kills, a GiB each way through a network, every variation
        #[arg(long)]
        full: bool,
    },
    /// Measure bulkhead and its peers in instructions
    Bench {
        /// What to measure
        #[command(subcommand)]
        what: Bench,
    },
    /// Show real containers in microVMs; builds and installs what is missing
    Demo,
    /// Run a command, or a shell, on a host with usable KVM: this one or an emulated one
    Host {
        /// Emulate a clock that counts instructions: 1 ms is 1 M instructions
        #[arg(long)]
        icount: bool,
        /// Seconds until the command is ended (exit status 124); 0 is no limit
        #[arg(long, default_value_t = 3600)]
        timeout: u64,
        /// The command; a shell if there is none
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// First process of the emulated host
    #[command(hide = true)]
    HostInside,
    /// A test program, in a host
    #[command(hide = true)]
    SuiteInside {
        /// Its suite
        name: String,
        /// Where it is
        program: String,
    },
    /// First process of a command on this machine
    #[command(hide = true)]
    HostNativeInside {
        /// The command
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// Cold starts: target/bench/boot.json
    Boot {
        /// Rounds after the warm-up
        #[arg(long, default_value_t = 3)]
        rounds: u32,
    },
    /// state, list and exec of a running container: target/bench/commands.json
    Commands {
        /// Rounds after the warm-up
        #[arg(long, default_value_t = 3)]
        rounds: u32,
    },
    /// TCP through a tap: target/bench/net.json
    Net {
        /// Rounds after the warm-up
        #[arg(long, default_value_t = 3)]
        rounds: u32,
    },
    /// Random requests to a disk: target/bench/block.json
    Block {
        /// Rounds after the warm-up
        #[arg(long, default_value_t = 3)]
        rounds: u32,
    },
    /// Files of a share: target/bench/fs.json
    Fs {
        /// Rounds after the warm-up
        #[arg(long, default_value_t = 3)]
        rounds: u32,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<u8> {
    match task {
        Task::Kernel { keep_tree } => kernel::kernel(keep_tree).map(|_| 0),
        Task::Build => dist::build().map(|()| 0),
        Task::Packages => packages::ensure(&[&packages::BUILD, &packages::TESTS]).map(|()| 0),
        Task::Test { list: true, .. } => {
            suites::list();
            Ok(0)
        }
        Task::Test { only, full, .. } => suites::test(&suites::Selection { only, full }),
        Task::SuiteInside { name, program } => suites::inside(&name, &program),
        Task::Bench { what: Bench::Boot { rounds } } => bench::boot(rounds),
        Task::Bench { what: Bench::Commands { rounds } } => bench::commands(rounds),
        Task::Bench { what: Bench::Net { rounds } } => bench::device(bench::Suite::Net, rounds),
        Task::Bench { what: Bench::Block { rounds } } => bench::device(bench::Suite::Block, rounds),
        Task::Bench { what: Bench::Fs { rounds } } => bench::device(bench::Suite::Fs, rounds),
        Task::Demo => demo::demo(),
        Task::Host { icount, timeout, command } => {
            let shell = command.is_empty();
            host::host(&host::Request {
                command: if shell { vec!["/bin/bash".to_owned()] } else { command },
                icount,
                timeout: (timeout > 0 && !shell).then(|| Duration::from_secs(timeout)),
            })
        }
        Task::HostInside => host::inside().map(|()| 0),
        Task::HostNativeInside { command } => host::native_inside(&command).map(|()| 0),
    }
}
