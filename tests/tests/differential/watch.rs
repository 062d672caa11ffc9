//! Names the variation that does not end: whoever looks at a suite that hangs sees nothing else.

use std::process::{Command, exit};
use std::sync::mpsc::{Receiver, RecvTimeoutError};

use bulkhead_tests::LIMIT;

use crate::compare::say;

/// Receives the name of each variation as it begins, and ends this process when the next one does
/// not come: the variation runs in this process, which has no way to give it up.
pub fn watch(names: &Receiver<String>) {
    let mut last = String::from("the microVM that variations share");
    loop {
        match names.recv_timeout(LIMIT) {
            Ok(name) => last = name,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    say(&format!("\n{last}: not ended after {} s\n", LIMIT.as_secs()));
    let processes = Command::new("ps").args(["-eo", "pid,ppid,stat,wchan:24,args"]).output();
    if let Ok(output) = processes {
        say(&String::from_utf8_lossy(&output.stdout));
    }
    exit(1);
}
