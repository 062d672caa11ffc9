//! The last bytes of the guest's console: hostile, bounded, shown only when something failed.

use std::collections::VecDeque;

use bulkhead_protocol::limits::CONSOLE_TAIL;

/// A ring of the last [`CONSOLE_TAIL`] bytes.
#[derive(Debug, Default)]
pub(super) struct ConsoleTail {
    bytes: VecDeque<u8>,
}

impl ConsoleTail {
    /// Adds what the guest wrote.
    pub fn push(&mut self, bytes: &[u8]) {
        let new = &bytes[bytes.len().saturating_sub(CONSOLE_TAIL)..];
        let excess = (self.bytes.len() + new.len()).saturating_sub(CONSOLE_TAIL);
        self.bytes.drain(..excess);
        self.bytes.extend(new);
    }

    /// The text, with nothing in it but printable characters and ends of lines.
    pub fn text(&self) -> String {
        let (front, back) = self.bytes.as_slices();
        let bytes = [front, back].concat();
        let keep = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
        let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
        text.chars().map(keep).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_last_bytes_only() {
        let mut tail = ConsoleTail::default();
        tail.push(b"first");
        tail.push(&vec![b'x'; CONSOLE_TAIL - 2]);
        tail.push(b"yz");
        assert_eq!(tail.text().len(), CONSOLE_TAIL);
        assert!(tail.text().ends_with("xyz") && !tail.text().contains("first"));
        tail.push(&vec![b'a'; 3 * CONSOLE_TAIL]);
        assert_eq!(tail.text(), "a".repeat(CONSOLE_TAIL));
    }

    #[test]
    fn tail_shows_no_control_characters() {
        let mut tail = ConsoleTail::default();
        tail.push(b"a\x1b[2J\r\nb\xff\n");
        assert_eq!(tail.text(), "a [2J\nb\u{fffd}\n");
    }
}
