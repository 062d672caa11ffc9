//! Signals: names and numbers as `kill` takes them, and the mask of the supervisor.
//!
//! A supervisor and an attached `exec` block every signal that can be forwarded before they
//! start a thread, and read them from a signalfd; no handler runs anywhere.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

/// Largest signal number of Linux.
pub const SIGNAL_MAX: u32 = 64;

/// Signals by name, without `SIG`.
const NAMES: [(&str, i32); 35] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
    ("RTMIN", 34),
];

/// Reads a signal as `kill` takes it: a number, or a name with or without `SIG`.
pub fn parse(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=SIGNAL_MAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = NAMES.iter().find(|(known, _)| *known == name);
    named.and_then(|(_, number)| u32::try_from(*number).ok())
}

/// Exit code of a process that `signal` ended, as shells and runc have it.
pub fn exit_code(signal: u32) -> u8 {
    128 + (signal & 0x7f) as u8
}

/// Signals that are forwarded to the workload. Not those that cannot be blocked, those that
/// report a fault of this process itself, and those that the kernel sends about our children
/// and descriptors.
fn is_forwarded(number: i32) -> bool {
    !matches!(
        number,
        libc::SIGKILL
            | libc::SIGSTOP
            | libc::SIGSEGV
            | libc::SIGBUS
            | libc::SIGILL
            | libc::SIGFPE
            | libc::SIGTRAP
            | libc::SIGABRT
            | libc::SIGSYS
            | libc::SIGPIPE
            | libc::SIGCHLD
            | libc::SIGURG
            | libc::SIGTTIN
            | libc::SIGTTOU
    )
}

/// Whether a program without a handler would end by `signal`.
pub fn ends_a_program(signal: u32) -> bool {
    let kept = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH, libc::SIGTSTP];
    !kept.iter().any(|kept| u32::try_from(*kept) == Ok(signal))
}

/// Gives a child the signals of a fresh program: none blocked, SIGPIPE not ignored. System calls
/// only, so it may be called between fork and exec.
pub fn reset() -> io::Result<()> {
    // SAFETY: an all-zero set is the empty one on Linux.
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `empty` is a valid set, and no old one is asked for.
    let masked = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &empty, std::ptr::null_mut()) };
    // SAFETY: installs a default disposition, no handler.
    let piped = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    match masked == 0 && piped != libc::SIG_ERR {
        true => Ok(()),
        false => Err(io::Error::last_os_error()),
    }
}

/// The blocked signals of this process, readable one by one.
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Blocks every forwarded signal in the calling thread, and so in each that it starts.
    pub fn block() -> io::Result<Self> {
        let set = forwarded_set();
        // SAFETY: `set` is an initialised signal set; no old set is asked for.
        let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        // SAFETY: `set` is an initialised signal set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Self { file })
    }

    /// The next signal that has come, if any.
    pub fn take(&mut self) -> Option<u32> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        self.file.read_exact(&mut info).ok()?;
        // `ssi_signo` is the first field (signalfd(2)).
        Some(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn forwarded_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is to memory of the right size, which sigemptyset fills.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset has initialised it.
    let mut set = unsafe { set.assume_init() };
    for number in (1..=SIGNAL_MAX as i32).filter(|n| is_forwarded(*n)) {
        // SAFETY: `set` is initialised; a number that libc keeps for itself is refused by it.
        unsafe { libc::sigaddset(&mut set, number) };
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_by_name_and_number_is_read() {
        for (text, number) in
            [("KILL", 9), ("SIGTERM", 15), ("sigusr1", 10), ("9", 9), ("64", 64), ("RTMIN", 34)]
        {
            assert_eq!(parse(text), Some(number), "{text}");
        }
    }

    #[test]
    fn signal_that_does_not_exist_is_refused() {
        for text in ["0", "65", "-1", "SIG", "", "SIGSIGKILL", "4294967305", "FOO"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn exit_code_of_a_signal_is_128_more() {
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(64), 192);
    }

    #[test]
    fn faults_and_child_signals_are_not_forwarded() {
        for number in [libc::SIGSEGV, libc::SIGCHLD, libc::SIGPIPE, libc::SIGURG] {
            assert!(!is_forwarded(number));
        }
        for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGWINCH, libc::SIGCONT] {
            assert!(is_forwarded(number));
        }
    }
}
