//! `--console-socket`: a new pseudoterminal whose master is sent to a client, as runc sends it:
//! one message with the file's name as text and the descriptor attached.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::tcgetattr;

use super::{ConsoleError, make_raw};
use crate::fd_message;

/// Name that goes with the master; runc sends the name of the multiplexer, too.
const MASTER_NAME: &[u8] = b"/dev/ptmx";

/// Makes a pseudoterminal, sends its master to the socket at `path`, and keeps the other end in
/// raw mode. If the caller leads a session without a terminal, this becomes its terminal, so
/// that changes of the window size arrive as `SIGWINCH`.
pub fn open_and_send(path: &Path) -> Result<OwnedFd, ConsoleError> {
    let connect = |e| ConsoleError::Connect(path.to_owned(), e);
    let socket = UnixStream::connect(path).map_err(connect)?;
    let (master, slave) = open()?;
    fd_message::send(&socket, MASTER_NAME, &[master.as_fd()])
        .map_err(|e| ConsoleError::Send(path.to_owned(), e))?;
    match rustix::process::ioctl_tiocsctty(&slave) {
        // The caller leads no session, or one that has a terminal.
        Ok(()) | Err(Errno::PERM) => Ok(slave),
        Err(e) => Err(ConsoleError::Mode(e.into())),
    }
}

fn open() -> Result<(OwnedFd, OwnedFd), ConsoleError> {
    let made = |e: Errno| ConsoleError::Make(e.into());
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).map_err(made)?;
    unlockpt(&master).map_err(made)?;
    let slave = ioctl_tiocgptpeer(&master, flags).map_err(made)?;
    let modes = tcgetattr(&slave).map_err(|e| ConsoleError::Mode(e.into()))?;
    make_raw(&slave, modes)?;
    Ok((master, slave))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::console;

    #[test]
    fn master_arrives_at_the_socket_and_carries_bytes_verbatim() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let slave = open_and_send(&path).unwrap();
        let (client, _) = listener.accept().unwrap();
        let mut name = [0; 64];
        let (length, mut fds) = fd_message::receive(&client, &mut name).unwrap();
        assert_eq!((&name[..length], fds.len()), (MASTER_NAME, 1));
        let mut master = File::from(fds.remove(0));
        let mut slave = File::from(slave);
        slave.write_all(b"a\n").unwrap();
        let mut bytes = [0; 2];
        master.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"a\n", "output must not be processed");
        master.write_all(b"\x03x").unwrap();
        slave.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"\x03x", "input must not be edited");
    }

    #[test]
    fn size_set_on_the_master_is_read_from_the_slave() {
        let (master, slave) = open().unwrap();
        assert_eq!(console::size(&slave), None);
        let mut size = rustix::termios::tcgetwinsize(&master).unwrap();
        (size.ws_row, size.ws_col) = (24, 80);
        rustix::termios::tcsetwinsize(&master, size).unwrap();
        assert_eq!(console::size(&slave), Some((24, 80)));
    }

    #[test]
    fn absent_console_socket_is_named() {
        let shown = open_and_send(Path::new("/nowhere/s")).unwrap_err().to_string();
        assert_eq!(shown, "console socket /nowhere/s");
    }
}
