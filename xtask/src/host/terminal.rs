//! Terminals: a pair for a command inside the host, and raw mode of the caller's own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{
    OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use super::job::WindowSize;

/// Both sides of a new terminal.
pub struct Pair {
    /// The side that we hold.
    pub main: OwnedFd,
    /// The side of the command.
    pub user: OwnedFd,
}

/// A new terminal of this size.
pub fn open(size: WindowSize) -> Result<Pair> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let main = openpt(flags).context("cannot open a terminal")?;
    grantpt(&main).context("cannot take over the terminal")?;
    unlockpt(&main).context("cannot unlock the terminal")?;
    let user = ioctl_tiocgptpeer(&main, flags).context("cannot open the terminal's user side")?;
    resize(main.as_fd(), size)?;
    Ok(Pair { main, user })
}

/// Start `command` as the leader of a session on the terminal.
pub fn spawn(command: &mut Command, pair: &Pair) -> Result<Child> {
    command.stdin(Stdio::from(pair.user.try_clone()?));
    command.stdout(Stdio::from(pair.user.try_clone()?));
    command.stderr(Stdio::from(pair.user.try_clone()?));
    // SAFETY: the closure makes two system calls and allocates nothing, which is allowed between
    // fork and exec; standard input is the terminal by then.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
    }
    Ok(command.spawn()?)
}

/// Set the size of a terminal.
pub fn resize(terminal: BorrowedFd<'_>, size: WindowSize) -> Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).context("cannot set the terminal's size")
}

/// The caller's terminal, if standard input and output are one.
pub struct Caller {
    saved: Termios,
}

impl Caller {
    /// Size of the caller's terminal; none if it has none.
    pub fn size() -> Option<WindowSize> {
        if !isatty(io::stdin()) || !isatty(io::stdout()) {
            return None;
        }
        let size = tcgetwinsize(io::stdout()).ok()?;
        Some(WindowSize { rows: size.ws_row, columns: size.ws_col })
    }

    /// Pass every key on as it is, until this is dropped.
    pub fn raw() -> Result<Self> {
        let saved = tcgetattr(io::stdin()).context("cannot read the terminal's mode")?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)
            .context("cannot set the terminal's mode")?;
        Ok(Self { saved })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // The terminal may have gone; there is nobody to tell.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.saved);
    }
}
