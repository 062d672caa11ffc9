//! Questions of names (DNS messages) on their way from a guest to the resolver that an engine
//! serves in the container's network namespace on the host, and the answers on their way back.
//!
//! Both go in frames over one stream: a header of [`Header::SIZE`] bytes - a number, whether the
//! message came over TCP, its length - and the message. An answer has the number of its question;
//! one of no bytes means that there is none. The host takes nothing of a guest's message for
//! granted, and hands it to the resolver as it is.

use std::net::Ipv4Addr;

/// Where the resolver of a network that Docker's user has made is found, in the network namespace
/// of each of its containers.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Its port, UDP and TCP (RFC 1035, section 4.2).
pub const PORT: u16 = 53;
/// Questions that wait for an answer at once.
pub const OPEN_MAX: usize = 64;
/// Seconds after which a question has no answer any more.
pub const LIMIT_S: u64 = 15;

/// What stands before a message in its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Tells the questions that wait from each other; the guest's choice.
    pub number: u32,
    /// Asked over TCP, by which an answer may be longer than by UDP.
    pub tcp: bool,
    /// Bytes of the message, without the length that precedes it on TCP.
    pub length: u16,
}

impl Header {
    /// Bytes of a header.
    pub const SIZE: usize = 7;

    /// The header as it is sent: number and length in little-endian order.
    pub fn bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.number.to_le_bytes());
        bytes[4] = self.tcp.into();
        bytes[5..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// A header that was received; `None` if it is none.
    pub fn read(bytes: [u8; Self::SIZE]) -> Option<Self> {
        let [a, b, c, d, tcp, low, high] = bytes;
        let tcp = match tcp {
            0 => false,
            1 => true,
            _ => return None,
        };
        let length = u16::from_le_bytes([low, high]);
        Some(Self { number: u32::from_le_bytes([a, b, c, d]), tcp, length })
    }
}

/// The frame of a message; `None` if that is longer than a DNS message can be.
pub fn frame(number: u32, tcp: bool, message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    let mut frame = Vec::with_capacity(Header::SIZE + message.len());
    frame.extend(Header { number, tcp, length }.bytes());
    frame.extend(message);
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_read_as_it_was_sent() {
        let header = Header { number: 0x0102_0304, tcp: true, length: 0x0506 };
        assert_eq!(header.bytes(), [4, 3, 2, 1, 1, 6, 5]);
        assert_eq!(Header::read(header.bytes()), Some(header));
        assert_eq!(Header::read([0, 0, 0, 0, 2, 0, 0]), None);
    }

    #[test]
    fn message_longer_than_a_length_can_say_has_no_frame() {
        assert_eq!(frame(7, false, b"ab").unwrap(), [7, 0, 0, 0, 0, 2, 0, b'a', b'b']);
        assert_eq!(frame(7, true, &vec![0; 65_535]).unwrap().len(), Header::SIZE + 65_535);
        assert_eq!(frame(7, true, &vec![0; 65_536]), None);
    }
}
