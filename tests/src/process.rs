//! Running programs and taking their outcome.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::io::fcntl_dupfd_cloexec;

/// Between two looks at what is waited for.
const STEP: Duration = Duration::from_millis(50);
/// Bytes of the log that a test which fails prints: a guest's last words, and more.
const LOG_TAIL: usize = 40 << 10;

/// How a program ended and what it wrote.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error as text.
    pub stderr: String,
}

impl Outcome {
    /// Standard output as text without the last line's end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Fails unless the program ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        let Self { code: ended, stderr, .. } = &self;
        assert_eq!(*ended, code, "stdout: {}\nstderr: {stderr}\n{}", self.text(), log_tail());
        self
    }
}

impl From<std::process::Output> for Outcome {
    fn from(output: std::process::Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        let code = status.code().or_else(|| status.signal().map(|n| 128 + n)).expect("ended");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { code, stdout: output.stdout, stderr }
    }
}

/// The `bulkhead` under test: `$BULKHEAD`, else the one that `cargo xtask build` made.
pub fn bulkhead() -> Command {
    let program = std::env::var_os("BULKHEAD")
        .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../target/dist/bulkhead").into());
    let mut command = Command::new(program);
    command.arg("--log").arg(log_file());
    command
}

/// Where it tells what is behind its failures, such as the end of a guest's console.
fn log_file() -> PathBuf {
    std::env::temp_dir().join(format!("bulkhead-tests-{}.log", std::process::id()))
}

/// The end of that, for whoever reads what a test that failed has printed.
pub(crate) fn log_tail() -> String {
    let bytes = std::fs::read(log_file()).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL)..]);
    format!("log: {}", text.replace("\\n", "\n"))
}

/// Writes a program to `path` that is the `bulkhead` under test for engines, which pass no variable
/// on.
pub fn runtime_script(path: &Path) {
    let mut script = "#!/bin/sh\n".to_owned();
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("BULKHEAD_")) {
        script += &format!("export {name}='{value}'\n");
    }
    let program = fs::canonicalize(bulkhead().get_program()).expect("bulkhead is built");
    script += &format!("exec '{}' \"$@\"\n", program.display());
    fs::write(path, script).expect("the program");
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("mode");
}

/// Runs a command to its end with an empty standard input.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    command.stdin(Stdio::null()).output().expect("the program starts").into()
}

/// Runs a command until it succeeds: what it needs may be in use for a moment longer.
#[track_caller]
pub fn run_until_done(command: &mut Command) -> Outcome {
    let begun = Instant::now();
    loop {
        let outcome = run(command);
        if outcome.code == 0 || begun.elapsed() > crate::LIMIT {
            return outcome.expect(0);
        }
        std::thread::sleep(STEP);
    }
}

/// Waits until `done`; `what` names it when it never comes.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < crate::LIMIT, "{what}: never\n{}", log_tail());
        std::thread::sleep(STEP);
    }
}

/// The text of `file` once that satisfies `found`: who writes it may be behind.
#[track_caller]
pub fn read_until(file: &Path, found: impl Fn(&str) -> bool) -> String {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if found(&text) {
            return text;
        }
        assert!(begun.elapsed() < crate::LIMIT, "{}: {text}", file.display());
        std::thread::sleep(STEP);
    }
}

/// Runs a command to its end with `input` on its standard input.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Outcome {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    std::thread::scope(|scope| {
        // A program may end without reading its input: EPIPE is its good right.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().expect("waiting for the program").into()
    })
}

/// Gives the program of `command` these as its descriptors from 3 on.
pub fn preserve(command: &mut Command, fds: Vec<OwnedFd>) {
    // Out of the way of the numbers that they get.
    let moved = |fd: OwnedFd| fcntl_dupfd_cloexec(fd, 64).expect("a descriptor");
    let fds: Vec<OwnedFd> = fds.into_iter().map(moved).collect();
    let take = move || {
        for (fd, number) in fds.iter().zip(3..) {
            // SAFETY: both are numbers; what is replaced is the child's own copy of a descriptor.
            if unsafe { libc::dup2(fd.as_raw_fd(), number) } == -1 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls and allocates nothing, which is allowed between fork
    // and exec.
    unsafe { command.pre_exec(take) };
}

/// An id that no other test of this process uses.
pub fn unique_id(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
