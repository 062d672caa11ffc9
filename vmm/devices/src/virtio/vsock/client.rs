//! A client of the listening socket that has not yet said which guest port it wants.
//!
//! Input: bytes of a host process, `CONNECT <port>\n`. Trust: the client may do anything to its
//! own connection; it costs one table entry without buffers until its line is complete.

use std::io;
use std::os::unix::net::UnixStream;

use super::socket;

/// Longest line, the newline included.
const MAX_LINE_BYTES: usize = 32;

/// The line of a client as far as it has come.
#[derive(Debug, Default)]
struct Line {
    bytes: [u8; MAX_LINE_BYTES],
    len: usize,
}

/// A line that is not `CONNECT <port>`, or too long.
#[derive(Debug, PartialEq, Eq)]
struct BadLine;

impl Line {
    /// Takes bytes up to the end of the line; tells how many, and the port if the line is whole.
    fn feed(&mut self, bytes: &[u8]) -> Result<(usize, Option<u32>), BadLine> {
        for (index, &byte) in bytes.iter().enumerate() {
            if byte == b'\n' {
                let port = parse_port(&self.bytes[..self.len]).ok_or(BadLine)?;
                return Ok((index + 1, Some(port)));
            }
            // The last place is the newline's.
            if self.len + 1 == MAX_LINE_BYTES {
                return Err(BadLine);
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok((bytes.len(), None))
    }
}

fn parse_port(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    // `parse` alone would take a sign.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// How far a client has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// The line is not complete.
    Waiting,
    /// The client wants this guest port; its next byte belongs to the guest.
    Connect(u32),
    /// The client is gone or talks nonsense.
    Refused,
}

/// An accepted client.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    line: Line,
}

impl Client {
    /// A client that has said nothing yet.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, line: Line::default() }
    }

    /// Reads as much of the line as is there, and not a byte beyond it.
    pub fn advance(&mut self) -> Progress {
        let mut bytes = [0; MAX_LINE_BYTES];
        loop {
            let seen = match socket::receive_own(&self.stream, &mut bytes, true) {
                Ok(0) => return Progress::Refused,
                Ok(seen) => seen,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Progress::Waiting;
                }
                Err(_) => return Progress::Refused,
            };
            let Ok((taken, port)) = self.line.feed(&bytes[..seen]) else {
                return Progress::Refused;
            };
            if socket::receive_own(&self.stream, &mut bytes[..taken], false).is_err() {
                return Progress::Refused;
            }
            if let Some(port) = port {
                return Progress::Connect(port);
            }
        }
    }

    /// The socket, to wait for.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Gives up the socket.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read, Write};

    fn feed(line: &[u8]) -> Result<(usize, Option<u32>), BadLine> {
        Line::default().feed(line)
    }

    #[test]
    fn line_gives_port_and_leaves_what_follows() {
        assert_eq!(feed(b"CONNECT 1024\nrest"), Ok((13, Some(1024))));
        assert_eq!(feed(b"CONNECT 4294967295\n"), Ok((19, Some(u32::MAX))));
        assert_eq!(feed(b"CONNECT 10"), Ok((10, None)));
    }

    #[test]
    fn line_that_is_no_request_is_bad() {
        for line in [
            &b"\n"[..],
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT +1\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 1 \n",
            b"CONNECT 1\r\n",
            b"connect 1\n",
            b"CONNECT 000000000000000000000001\n",
        ] {
            assert_eq!(feed(line), Err(BadLine), "{}", line.escape_ascii());
        }
        assert_eq!(feed(&[b'C'; MAX_LINE_BYTES]), Err(BadLine));
    }

    #[test]
    fn client_byte_by_byte_connects_and_keeps_the_next_bytes() {
        let (mut host, device) = UnixStream::pair().unwrap();
        let mut client = Client::new(device);
        assert_eq!(client.advance(), Progress::Waiting);
        for byte in b"CONNECT 77" {
            host.write_all(&[*byte]).unwrap();
            assert_eq!(client.advance(), Progress::Waiting);
        }
        host.write_all(b"\nhello").unwrap();
        assert_eq!(client.advance(), Progress::Connect(77));
        let mut next = [0; 5];
        client.into_stream().read_exact(&mut next).unwrap();
        assert_eq!(&next, b"hello");
    }

    #[test]
    fn client_that_leaves_is_refused() {
        let (mut host, device) = UnixStream::pair().unwrap();
        let mut client = Client::new(device);
        host.write_all(b"CONN").unwrap();
        drop(host);
        assert_eq!(client.advance(), Progress::Refused);
    }

    proptest! {
        #[test]
        fn line_in_pieces_is_as_in_one(port in any::<u32>(), cut in 0usize..32, tail in any::<[u8; 8]>()) {
            let mut bytes = format!("CONNECT {port}\n").into_bytes();
            let whole = bytes.len();
            bytes.extend(tail);
            let cut = cut.min(whole - 1);
            let mut line = Line::default();
            prop_assert_eq!(line.feed(&bytes[..cut]), Ok((cut, None)));
            prop_assert_eq!(line.feed(&bytes[cut..]), Ok((whole - cut, Some(port))));
        }

        #[test]
        fn line_of_any_bytes_stays_in_bounds(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok((taken, _)) = feed(&bytes) {
                prop_assert!(taken <= bytes.len().min(MAX_LINE_BYTES));
            }
        }
    }
}
