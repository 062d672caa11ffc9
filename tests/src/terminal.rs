//! A terminal for a program under test: a pty whose other end the test holds.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::LIMIT;

/// A script that ends with 5 once its terminal had two sizes and a line; engines set the first one
/// only after the start.
pub const SIZES: &str = "\
    size() { until stty size | grep -q \"$1\"; do sleep 0.1; done; echo \"size $1\"; }
    tty; size '33 77'; size '44 88'; read line; echo \"got $line\"; exit 5";

/// Runs `command`, which runs [`SIZES`] in a container, and gives it what that waits for.
#[track_caller]
pub fn resized(command: Command) {
    let mut terminal = OnTerminal::start(command, 33, 77);
    terminal.wait_for("size 33 77");
    terminal.resize(44, 88);
    terminal.wait_for("size 44 88");
    terminal.type_in("abc\n");
    let (code, shown) = terminal.finish();
    assert!(
        code == 5 && shown.contains("/dev/pts/") && shown.contains("got abc"),
        "{code} {shown}"
    );
}

/// A program on a terminal.
pub struct OnTerminal {
    /// The program.
    pub child: Child,
    screen: Screen,
}

/// The end of a terminal that its user has, and what it has shown.
pub struct Screen {
    master: File,
    seen: Vec<u8>,
}

impl OnTerminal {
    /// Starts `command` as the leader of a session whose terminal has `rows` and `columns`.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        use std::os::unix::process::CommandExt;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).expect("a pty");
        rustix::pty::grantpt(&master).expect("grantpt");
        rustix::pty::unlockpt(&master).expect("unlockpt");
        let name = rustix::pty::ptsname(&master, Vec::new()).expect("ptsname");
        let slave: OwnedFd = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("the name of a pty is ASCII"))
            .expect("the pty's other end")
            .into();
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&slave, size).expect("window size");
        let copy = || Stdio::from(slave.try_clone().expect("dup"));
        command.stdin(copy()).stdout(copy()).stderr(copy());
        // SAFETY: setsid and ioctl are async-signal-safe, and nothing else happens here.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(std::io::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().expect("the program starts");
        // The command holds the other end too, and would keep the terminal from ending.
        drop(command);
        Self { child, screen: Screen { master: master.into(), seen: Vec::new() } }
    }

    /// Types `text`.
    pub fn type_in(&mut self, text: &str) {
        self.screen.master.write_all(text.as_bytes()).expect("writing to the terminal");
    }

    /// Changes the window size, as a terminal emulator does.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.screen.master, size).expect("window size");
    }

    /// As [`Screen::wait_for`].
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        self.screen.wait_for(text);
    }

    /// What was shown so far.
    pub fn shown(&self) -> String {
        self.screen.shown()
    }

    /// Reads to the end and gives the exit code.
    pub fn finish(mut self) -> (i32, String) {
        while self.screen.read_some() {}
        let code = self.child.wait().expect("waiting").code().unwrap_or(-1);
        (code, self.shown())
    }
}

impl Screen {
    /// The one that comes over a socket of `--console-socket`.
    #[track_caller]
    pub fn received(socket: &UnixListener) -> Self {
        let (connection, _) = socket.accept().expect("a connection");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut name)];
        recvmsg(&connection, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .expect("a message");
        let mut fds = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let master = fds.next().expect("a descriptor");
        Self { master: master.into(), seen: Vec::new() }
    }

    /// Reads until what was shown contains `text`; fails at the terminal's end, and when nothing
    /// comes for [`LIMIT`].
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        while !self.shown().contains(text) {
            assert!(self.read_some(), "the terminal ended without {text:?}: {}", self.shown());
        }
    }

    /// Reads what there is, or waits for it; `false` at the end.
    #[track_caller]
    fn read_some(&mut self) -> bool {
        let mut watched = [PollFd::new(&self.master, PollFlags::IN)];
        let limit = Timespec::try_from(LIMIT).expect("a limit of minutes");
        let ready =
            rustix::event::poll(&mut watched, Some(&limit)).expect("waiting for the terminal");
        assert!(ready > 0, "nothing comes from the terminal for {LIMIT:?}: {}", self.shown());
        let mut bytes = [0; 4096];
        // A pty whose other end is closed reads as EIO.
        let count = self.master.read(&mut bytes).unwrap_or(0);
        self.seen.extend_from_slice(&bytes[..count]);
        count > 0
    }

    /// What was shown so far.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}
