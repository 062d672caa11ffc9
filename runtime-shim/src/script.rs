//! Programs for tests: shell scripts that can be run at once.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes `path` a shell script of these lines.
///
/// A process of its own writes it: a child that another test forks meanwhile would hold this
/// process's descriptor until it has become its program, and what is open for writing cannot be
/// run (`ETXTBSY`).
pub fn write(path: &Path, lines: &str) {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "cat > \"$0\"; chmod 755 \"$0\""]).arg(path);
    let mut shell = shell.stdin(Stdio::piped()).spawn().unwrap();
    let text = format!("#!/bin/sh\n{lines}\n");
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}
