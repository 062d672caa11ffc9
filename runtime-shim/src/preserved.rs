//! Descriptors of the caller behind the standard streams (`--preserve-fds N`: 3 to 2 + N) that
//! become those of the process in the guest.
//!
//! Only what is a stream of bytes can pass into a microVM: ends of pipes and FIFOs, and connected
//! stream sockets. Everything else is refused by its number and by what it is. Descriptors come
//! from the caller, who is trusted; what they are is asked of the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bulkhead_protocol::limits::PRESERVED_MAX;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use thiserror::Error;

use crate::failure::Explain;

/// The first descriptor behind the standard streams.
const FIRST: RawFd = 3;

/// Which way the bytes of a descriptor go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reading end of a pipe: from the host into the guest.
    Reader,
    /// Writing end of a pipe: out of the guest.
    Writer,
    /// A connected stream socket: both.
    Socket,
}

/// One descriptor and which way its bytes go.
#[derive(Debug)]
pub struct Preserved {
    /// The host's end.
    pub fd: OwnedFd,
    /// What it is.
    pub kind: Kind,
}

/// Why a descriptor cannot be given to the guest.
#[derive(Debug, Error)]
pub enum PreserveError {
    /// Too many.
    #[error("--preserve-fds: {0} descriptors are more than {PRESERVED_MAX}")]
    Many(u32),
    /// Not open.
    #[error("--preserve-fds: descriptor {0} is not open")]
    Closed(RawFd),
    /// The kernel does not say what it is.
    #[error("--preserve-fds: looking at descriptor {0}")]
    Look(RawFd, #[source] io::Error),
    /// Not a stream of bytes.
    #[error("--preserve-fds: descriptor {number} is {what}, which cannot be given to a microVM")]
    NoStream {
        /// Its number.
        number: RawFd,
        /// What it is.
        what: String,
        /// What can be done in its place.
        fix: &'static str,
    },
}

impl Explain for PreserveError {
    fn phase(&self) -> &'static str {
        "taking the caller's descriptors"
    }

    fn fix(&self) -> String {
        match self {
            Self::Many(_) | Self::Closed(_) => {
                "give the number of descriptors that are open from 3 on".to_owned()
            }
            Self::Look(..) => String::new(),
            Self::NoStream { fix, .. } => (*fix).to_owned(),
        }
    }
}

/// Takes the descriptors 3 to 2 + `count` out of this process. To be called before anything else
/// is opened, once.
pub fn take(count: u32) -> Result<Vec<Preserved>, PreserveError> {
    let many = |_| PreserveError::Many(count);
    let length = usize::try_from(count).map_err(many)?;
    if length > PRESERVED_MAX {
        return Err(PreserveError::Many(count));
    }
    let numbers = (FIRST..).take(length);
    // All are looked at before the first is owned: a failure closes none of the caller's.
    for number in numbers.clone() {
        // SAFETY: only looks whether the number is that of an open descriptor.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            return Err(PreserveError::Closed(number));
        }
    }
    let own = |number| {
        // SAFETY: it is open, the caller has left it for this, and nothing else here knows it.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    numbers.map(|number| classified(number, own(number))).collect()
}

/// Those that another process of this program has taken, and has sent.
pub fn sent(fds: Vec<OwnedFd>) -> Result<Vec<Preserved>, PreserveError> {
    (FIRST..).zip(fds).map(|(number, fd)| classified(number, fd)).collect()
}

/// The descriptors, to be sent.
pub fn borrowed(all: &[Preserved]) -> Vec<BorrowedFd<'_>> {
    all.iter().map(|preserved| preserved.fd.as_fd()).collect()
}

fn classified(number: RawFd, fd: OwnedFd) -> Result<Preserved, PreserveError> {
    let look = |e: rustix::io::Errno| PreserveError::Look(number, e.into());
    // No other program that is started from here gets it.
    fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(look)?;
    let refuse = |what: &str, fix| {
        let what = what.to_owned();
        Err(PreserveError::NoStream { number, what, fix })
    };
    let flags = fcntl_getfl(&fd).map_err(look)?;
    if flags.contains(OFlags::PATH) {
        return refuse("a path (O_PATH)", MOUNT);
    }
    let kind = match FileType::from_raw_mode(fstat(&fd).map_err(look)?.st_mode) {
        FileType::Fifo => match flags & OFlags::RWMODE {
            OFlags::RDONLY => Kind::Reader,
            OFlags::WRONLY => Kind::Writer,
            _ => return refuse("a FIFO that is open in both directions", ONE_WAY),
        },
        FileType::Socket => match socket(&fd).map_err(look)? {
            None => Kind::Socket,
            Some((what, fix)) => return refuse(what, fix),
        },
        FileType::RegularFile => return refuse("a regular file", MOUNT),
        FileType::Directory => return refuse("a directory", MOUNT),
        FileType::CharacterDevice => return refuse("a character device", STREAM),
        FileType::BlockDevice => return refuse("a block device", DISK),
        _ => return refuse(&name(&fd), STREAM),
    };
    Ok(Preserved { fd, kind })
}

const MOUNT: &str = "mount it, or pass its content through a pipe";
const ONE_WAY: &str = "open it for reading or for writing";
const STREAM: &str = "pass a pipe or a connected stream socket";
const CONNECT: &str = "connect it before, or publish a port of the container's network";
const DISK: &str = "name it by linux.devices";

/// Why a socket is no stream of bytes, if it is none.
fn socket(fd: &OwnedFd) -> rustix::io::Result<Option<(&'static str, &'static str)>> {
    if socket_type(fd)? != SocketType::STREAM {
        return Ok(Some(("a socket of messages", STREAM)));
    }
    if socket_acceptconn(fd)? {
        return Ok(Some(("a listening socket", CONNECT)));
    }
    match rustix::net::getpeername(fd) {
        Ok(_) => Ok(None),
        Err(rustix::io::Errno::NOTCONN) => Ok(Some(("a socket that is not connected", CONNECT))),
        Err(e) => Err(e),
    }
}

/// What the kernel calls a descriptor without a file, such as `anon_inode:[eventfd]`.
fn name(fd: &OwnedFd) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map_or_else(|_| "of an unknown kind".to_owned(), |name| name.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    fn refusal(fd: impl Into<OwnedFd>) -> String {
        sent(vec![fd.into()]).unwrap_err().to_string()
    }

    #[test]
    fn streams_of_bytes_are_taken_with_their_direction() {
        let (reader, writer) = io::pipe().unwrap();
        let (unix, _peer) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let taken = sent(vec![reader.into(), writer.into(), unix.into(), tcp.into()]).unwrap();
        let kinds: Vec<_> = taken.iter().map(|preserved| preserved.kind).collect();
        assert_eq!(kinds, [Kind::Reader, Kind::Writer, Kind::Socket, Kind::Socket]);
    }

    #[test]
    fn everything_else_is_refused_by_number_and_kind() {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &str| std::fs::File::open(path).unwrap();
        let unix = UnixListener::bind(dir.path().join("s")).unwrap();
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        for (refused, what) in [
            (refusal(tempfile::tempfile().unwrap()), "a regular file"),
            (refusal(open("/")), "a directory"),
            (refusal(open("/dev/null")), "a character device"),
            (refusal(unix), "a listening socket"),
            (refusal(TcpListener::bind("127.0.0.1:0").unwrap()), "a listening socket"),
            (refusal(UdpSocket::bind("127.0.0.1:0").unwrap()), "a socket of messages"),
            (refusal(UnixDatagram::pair().unwrap().0), "a socket of messages"),
            (refusal(eventfd), "anon_inode:[eventfd]"),
        ] {
            let expected = format!(
                "--preserve-fds: descriptor 3 is {what}, which cannot be given to a microVM"
            );
            assert_eq!(refused, expected);
        }
    }

    #[test]
    fn more_than_the_limit_is_refused() {
        for count in [PRESERVED_MAX as u32 + 1, u32::MAX] {
            assert!(matches!(take(count), Err(PreserveError::Many(n)) if n == count));
        }
        assert!(take(0).unwrap().is_empty());
    }
}
