//! Tells a caller which process of the host stands for a workload: by its pid in a file, and by a
//! pidfd over a UNIX socket.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::fd_message;

/// What comes with the pidfd of a container's process; runc's word.
pub const CONTAINER: &str = "standard";
/// What comes with the pidfd of a process of `exec`; runc's word.
pub const EXEC: &str = "setns";

/// Where the process is told.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Announcement {
    /// File that receives the pid.
    pub pid_file: Option<PathBuf>,
    /// UNIX socket that receives a pidfd, as one message with `SCM_RIGHTS`.
    pub pidfd_socket: Option<PathBuf>,
}

impl Announcement {
    /// Tells `pid`, a process that ends with the workload; it is a `kind` of process.
    pub fn make(&self, pid: u32, kind: &str) -> Result<(), Failure> {
        if let Some(path) = &self.pidfd_socket {
            send_pidfd(path, pid, kind).map_err(|e| {
                let cause = format!("--pidfd-socket {}: {e}", path.display());
                Failure::new("sending the pidfd", cause, "give a socket that somebody listens to")
            })?;
        }
        match &self.pid_file {
            Some(path) => write_pid_file(path, pid),
            None => Ok(()),
        }
    }
}

/// Sends a pidfd of `pid`, which is this process or a child that nobody has waited for.
fn send_pidfd(path: &Path, pid: u32, kind: &str) -> io::Result<()> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = raw.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let socket = UnixStream::connect(path)?;
    fd_message::send(&socket, kind.as_bytes(), &[pidfd.as_fd()]).map(drop)
}

/// Writes `pid` so that a reader finds all of it or no file.
fn write_pid_file(path: &Path, pid: u32) -> Result<(), Failure> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

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

    #[test]
    fn pidfd_of_the_process_arrives_with_runcs_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let announcement = Announcement { pidfd_socket: Some(path), ..Announcement::default() };
        announcement.make(std::process::id(), CONTAINER).unwrap();
        let (client, _) = listener.accept().unwrap();
        let mut word = [0; 16];
        let (length, fds) = fd_message::receive(&client, &mut word).unwrap();
        assert_eq!((&word[..length], fds.len()), (&b"standard"[..], 1));
        let info = std::os::fd::AsRawFd::as_raw_fd(&fds[0]);
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{info}")).unwrap();
        let pid = format!("Pid:\t{}\n", std::process::id());
        assert!(info.contains(&pid), "{info}");
    }

    #[test]
    fn socket_that_nobody_listens_to_is_named() {
        let pidfd_socket = Some("/nowhere/s".into());
        let announcement = Announcement { pidfd_socket, ..Announcement::default() };
        let failed = announcement.make(std::process::id(), EXEC).unwrap_err();
        assert!(failed.cause.starts_with("--pidfd-socket /nowhere/s: "), "{failed}");
    }
}
