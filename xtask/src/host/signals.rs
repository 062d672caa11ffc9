//! Signals of this process as readable events.

use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::ptr;

use anyhow::{Context, Result};

/// Signals that end the caller, and the one that tells of a new window size.
const WATCHED: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGWINCH];

/// The watched signals, blocked and turned into reads.
pub struct Signals {
    events: File,
}

impl Signals {
    /// Start watching. To be called before any thread is started: threads inherit the mask.
    pub fn watch() -> Result<Self> {
        let mut set = mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the set is a local that `sigemptyset` initialises.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: `sigemptyset` has initialised it; it cannot fail with a valid pointer.
        let mut set = unsafe { set.assume_init() };
        for signal in WATCHED {
            // SAFETY: the set is initialised and the number is a signal's.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: the set is initialised; the old mask is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let events = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if events < 0 {
            return Err(io::Error::last_os_error()).context("cannot watch signals");
        }
        // SAFETY: signalfd returned a new descriptor that nobody else owns.
        let events = unsafe { File::from_raw_fd(events) };
        Ok(Self { events })
    }

    /// To be polled for input.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The next signal; waits for one.
    pub fn next(&mut self) -> Result<libc::c_int> {
        let mut event = [0; mem::size_of::<libc::signalfd_siginfo>()];
        self.events.read_exact(&mut event).context("cannot read a signal")?;
        let [a, b, c, d, ..] = event;
        Ok(i32::from_ne_bytes([a, b, c, d]))
    }
}
