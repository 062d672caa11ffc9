//! `bulkhead-vmm`: the virtual machine monitor of one sandbox.
//!
//! It is started by the runtime as the first process of a PID namespace, with one socket as
//! descriptor 3. It receives a machine's configuration with open descriptors, enters its jail,
//! builds the machine, and then does as the runtime says until the guest or the runtime ends.

mod assemble;
mod control;
mod monitor;
mod threads;

use std::error::Error;
use std::process::ExitCode;

use bulkhead_protocol::control::{ExitReason, Reply};

use crate::control::Control;

fn main() -> ExitCode {
    one_arena();
    let control = match Control::inherit() {
        Ok(control) => control,
        Err(error) => {
            eprintln!("bulkhead-vmm: {}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let (reply, code) = match monitor::run(&control) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(reason)) => (Reply::Exited { reason }, ExitCode::SUCCESS),
        Err(error) => {
            let reason = ExitReason::Error { message: chain(&error) };
            (Reply::Exited { reason }, ExitCode::FAILURE)
        }
    };
    if let Err(error) = control.send(&reply) {
        // The runtime is gone, and with it whoever could read the reason from the socket.
        eprintln!("bulkhead-vmm: {}", chain(&error));
    }
    code
}

/// One heap for all threads. A thread's own heap would cost memory, and glibc reads a file of
/// `/proc` when it first shrinks one, which no thread's filter allows.
fn one_arena() {
    // SAFETY: mallopt takes integers; there is no other thread yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// An error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += ": ";
        text += &cause.to_string();
        source = cause.source();
    }
    text
}
