//! The process that lives as long as a sandbox: it makes the sandbox, connects the workload to
//! the host, and ends with the workload's exit code.
//!
//! [`run_foreground`] is the supervisor in the calling process; [`run_detached`] starts one in a
//! process of its own, which is the process of the pid file.

mod claim;
mod detach;
mod ending;
mod lifecycle;
mod network;
mod oom;
pub mod relay;
mod requests;
mod terminal;
mod update;
mod workload;

use std::path::Path;

use crate::failure::Failure;
use crate::request::{ConsoleMode, SandboxRequest};

pub use detach::{SUPERVISE, run_detached, serve, serve_detached, start};
pub use terminal::Terminal;
pub use workload::start_failure;

/// Runs one container in the foreground and gives its exit code.
pub fn run_foreground(request: SandboxRequest) -> Result<u8, Failure> {
    check_console(&request, false)?;
    let pid_file = request.options.pid_file.clone();
    lifecycle::supervise(request, |pid| match &pid_file {
        Some(path) => write_pid_file(path, pid),
        None => Ok(()),
    })
}

/// Writes `pid` so that a reader finds all of it or no file.
pub fn write_pid_file(path: &Path, pid: u32) -> Result<(), Failure> {
    let write = || {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let unfinished = path.with_file_name(name);
        let written = std::fs::write(&unfinished, pid.to_string());
        written.and_then(|()| std::fs::rename(&unfinished, path)).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = std::fs::remove_file(&unfinished);
        })
    };
    write().map_err(|e| {
        let cause = format!("{}: {e}", path.display());
        Failure::new("writing the pid file", cause, "give a writable path with --pid-file")
    })
}

/// Terminal and console socket must fit; the words are runc's.
fn check_console(request: &SandboxRequest, detached: bool) -> Result<(), Failure> {
    let process = request.options.spec.process().as_ref();
    let terminal = process.and_then(|p| p.terminal()).unwrap_or(false);
    check_terminal(terminal, detached, &request.options.console)
}

/// Terminal and console socket must fit; the words are runc's.
pub fn check_terminal(
    terminal: bool,
    detached: bool,
    console: &ConsoleMode,
) -> Result<(), Failure> {
    let socket = matches!(console, ConsoleMode::Socket(_));
    let phase = "allocating the terminal";
    if detached && terminal && !socket {
        let cause = "cannot allocate tty if bulkhead will detach without setting console socket";
        return Err(Failure::new(phase, cause, "give --console-socket, or do not detach"));
    }
    if socket && !(detached && terminal) {
        let cause = "cannot use console socket if bulkhead will not detach or allocate tty";
        return Err(Failure::new(phase, cause, "leave out --console-socket"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_and_console_socket_must_fit() {
        let socket = || ConsoleMode::Socket("/s".into());
        for (terminal, detached, console, fits) in [
            (false, false, ConsoleMode::Inherit, true),
            (true, false, ConsoleMode::Inherit, true),
            (false, true, ConsoleMode::Inherit, true),
            (true, true, socket(), true),
            (true, true, ConsoleMode::Inherit, false),
            (true, false, socket(), false),
            (false, true, socket(), false),
        ] {
            let checked = check_terminal(terminal, detached, &console);
            assert_eq!(checked.is_ok(), fits, "{terminal} {detached} {console:?}");
        }
    }

    #[test]
    fn pid_file_is_written_whole_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        write_pid_file(&path, 42).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "42");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let failed = write_pid_file(&dir.path().join("a/b"), 42).unwrap_err();
        assert!(failed.to_string().starts_with("writing the pid file: "));
        let taken = dir.path().join("directory");
        std::fs::create_dir(&taken).unwrap();
        write_pid_file(&taken, 42).unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
