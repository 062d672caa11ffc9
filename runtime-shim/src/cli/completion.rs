//! `completion` and `man`: what a shell and man(1) show, from the definitions that the command
//! line is read by.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{command, print};
use crate::failure::Failure;

/// Shells whose completion can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    /// bash(1), with bash-completion.
    Bash,
    /// zsh(1).
    Zsh,
    /// fish(1).
    Fish,
}

/// Arguments of `completion`.
#[derive(Debug, Args)]
pub(super) struct CompletionArgs {
    /// Whose completion to print.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Directory that receives a page for each command, such as /usr/share/man/man1.
    pub directory: PathBuf,
}

pub(super) fn completion(args: CompletionArgs) -> Result<u8, Failure> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = vec![];
    clap_complete::generate(shell, &mut command(), "bulkhead", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub(super) fn man(args: ManArgs) -> Result<u8, Failure> {
    let directory = &args.directory;
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command(), directory));
    written.map(|()| 0).map_err(|e| {
        let cause = format!("{}: {e}", directory.display());
        Failure::new("writing the manual pages", cause, "give a directory that can be written to")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_a_completion() {
        let dir = tempfile::tempdir().unwrap();
        man(ManArgs { directory: dir.path().join("man1") }).unwrap();
        let mut script = vec![];
        let shell = clap_complete::Shell::Bash;
        clap_complete::generate(shell, &mut command(), "bulkhead", &mut script);
        let script = String::from_utf8(script).unwrap();
        for name in command().get_subcommands().map(clap::Command::get_name) {
            let page = dir.path().join(format!("man1/bulkhead-{name}.1"));
            let page = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(page.contains(".SH SYNOPSIS"), "{page}");
            assert!(script.contains(&format!("bulkhead,{name})")), "{name}");
        }
        assert!(dir.path().join("man1/bulkhead.1").is_file());
    }
}
