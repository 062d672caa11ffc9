//! The standard streams of a container that nobody is connected to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};

fn null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}

/// Connects standard input to `/dev/null`: without `-i` a container reads nothing.
pub fn close_input() -> io::Result<()> {
    Ok(dup2_stdin(null()?)?)
}

/// Calls `work` with all three streams connected to `/dev/null`, for the processes that it
/// starts.
pub fn with_null<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let save = |fd| fcntl_dupfd_cloexec(fd, 3);
    let saved = [save(stdin())?, save(stdout())?, save(stderr())?];
    let null = OwnedFd::from(null()?);
    connect([&null, &null, &null])?;
    let result = work();
    connect(saved.each_ref())?;
    Ok(result)
}

fn connect([input, output, error]: [&OwnedFd; 3]) -> io::Result<()> {
    dup2_stdin(input)?;
    dup2_stdout(output)?;
    Ok(dup2_stderr(error)?)
}
