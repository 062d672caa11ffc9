//! The process that lives as long as a sandbox: it makes the sandbox, connects the workload to
//! the host, and ends with the workload's exit code.
//!
//! [`run_foreground`] is the supervisor in the calling process; [`run_detached`] starts one in a
//! process of its own, which is the process of the pid file.

mod claim;
mod container;
mod detach;
mod ending;
mod joined;
mod leader;
mod lifecycle;
mod members;
mod membership;
mod network;
mod oom;
pub mod relay;
mod requests;
mod terminal;
mod update;
mod workload;

use crate::announce;
use crate::failure::Failure;
use crate::request::{ConsoleMode, SandboxRequest};

pub use detach::{SUPERVISE, run_detached, serve, serve_detached, start};
pub use leader::{Leader, lead};
pub use terminal::Terminal;
pub use workload::start_failure;

/// Runs one container in the foreground, of a process whose first thread is `leader`, and gives
/// its exit code.
pub fn run_foreground(request: SandboxRequest, leader: &Leader) -> Result<u8, Failure> {
    check_console(&request, false)?;
    let announcement = request.options.announcement.clone();
    lifecycle::supervise(request, leader, |pid| announcement.make(pid, announce::CONTAINER))
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
}
