//! Connections to ports of the guest through the VMM's listening socket `vsock.sock`: the
//! client writes `CONNECT <port>\n` and reads `OK <host port>\n`.
//!
//! What follows the handshake comes from the guest.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use thiserror::Error;

/// Longest answer: `OK `, a port and the end of the line.
const ANSWER_MAX: usize = 16;

/// Why no connection came about.
#[derive(Debug, Error)]
pub enum VsockError {
    /// The VMM's socket.
    #[error("connecting to the VMM")]
    Connect(#[source] io::Error),
    /// Talking to the VMM.
    #[error("asking the VMM for guest port {0}")]
    Ask(u32, #[source] io::Error),
    /// The VMM or the guest refuses: nothing listens there.
    #[error("guest port {0} refuses the connection")]
    Refused(u32),
    /// The answer is not the one agreed on.
    #[error("the VMM answers with other words than OK for guest port {0}")]
    Answer(u32),
    /// No answer in time.
    #[error("guest port {0} does not answer")]
    Silent(u32),
}

/// Connects to `port` of the guest, before `deadline`.
pub fn connect(socket: &Path, port: u32, deadline: Instant) -> Result<UnixStream, VsockError> {
    let mut stream = UnixStream::connect(socket).map_err(VsockError::Connect)?;
    let asked = |e| VsockError::Ask(port, e);
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).map_err(asked)?;
    let mut answer = [0u8; ANSWER_MAX];
    let mut length = 0;
    // Byte by byte: what comes behind the line belongs to the stream.
    while length < ANSWER_MAX {
        if !await_readable(&stream, deadline).map_err(asked)? {
            return Err(VsockError::Silent(port));
        }
        match recv(&stream, &mut answer[length..=length], RecvFlags::empty()) {
            Ok((_, 0)) => return Err(VsockError::Refused(port)),
            Ok(_) if answer[length] == b'\n' => {
                return check_answer(&answer[..length], port, stream);
            }
            Ok(_) => length += 1,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Err(VsockError::Refused(port)),
            Err(e) => return Err(asked(e.into())),
        }
    }
    Err(VsockError::Answer(port))
}

fn check_answer(line: &[u8], port: u32, stream: UnixStream) -> Result<UnixStream, VsockError> {
    let number = line.strip_prefix(b"OK ").and_then(|n| std::str::from_utf8(n).ok());
    match number.map(str::parse::<u32>) {
        Some(Ok(_)) => Ok(stream),
        _ => Err(VsockError::Answer(port)),
    }
}

/// Waits until `stream` can be read; false if `deadline` comes first.
pub(crate) fn await_readable(stream: &UnixStream, deadline: Instant) -> io::Result<bool> {
    loop {
        let mut fds = [PollFd::new(stream, PollFlags::IN)];
        match poll(&mut fds, Some(&until(deadline))) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Time left until `deadline`, none if it is past.
pub(crate) fn until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;

    /// Connects to a VMM that answers with `answer` and keeps or closes the connection.
    fn connect_to(answer: &'static [u8], keep: bool) -> Result<Vec<u8>, VsockError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let limit = if keep { Duration::from_millis(50) } else { Duration::from_secs(120) };
        std::thread::scope(|scope| {
            let vmm = scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 13];
                stream.read_exact(&mut asked).unwrap();
                assert_eq!(&asked, b"CONNECT 1024\n");
                // A client whose limit has passed has hung up.
                let _ = stream.write_all(answer);
                keep.then_some(stream)
            });
            let connected = connect(&path, 1024, Instant::now() + limit);
            drop(vmm.join().unwrap());
            connected.map(|mut stream| {
                let mut rest = vec![];
                stream.read_to_end(&mut rest).unwrap();
                rest
            })
        })
    }

    #[test]
    fn bytes_behind_the_answer_belong_to_the_stream() {
        assert_eq!(connect_to(b"OK 1073741824\nhello", false).unwrap(), b"hello");
    }

    #[test]
    fn other_answers_are_errors() {
        assert!(matches!(connect_to(b"", false), Err(VsockError::Refused(1024))));
        assert!(matches!(connect_to(b"OK 1", false), Err(VsockError::Refused(_))));
        for answer in [&b"NO\n"[..], b"OK\n", b"OK x\n", b"OK 1 1\n", b"OK 00000000000000000000\n"]
        {
            assert!(matches!(connect_to(answer, false), Err(VsockError::Answer(_))), "{answer:?}");
        }
    }

    #[test]
    fn silent_vmm_is_given_up_at_the_deadline() {
        assert!(matches!(connect_to(b"OK", true), Err(VsockError::Silent(_))));
    }
}
