//! What a hook prints: read so that it never blocks, and only the end of it kept.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::failure::printable;

/// How much of it is kept, in bytes; as much as one message shows.
const KEPT_MAX: usize = 512;

/// The reading end of a hook's standard output and error.
#[derive(Debug)]
pub(super) struct Output {
    pipe: Option<PipeReader>,
    kept: Vec<u8>,
}

impl Output {
    /// The output and the end that the hook gets.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (pipe, writer) = io::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok((Self { pipe: Some(pipe), kept: Vec::new() }, writer.into()))
    }

    /// What to wait for, until the pipe has ended.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Takes what is there, at most a bufferful: a hook that never stops to print must not keep
    /// its caller from its timeout.
    pub fn advance(&mut self) {
        let mut buffer = [0; 4096];
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.read(&mut buffer) {
            Ok(0) => self.pipe = None,
            Ok(count) => self.keep(&buffer[..count]),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.pipe = None,
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        let surplus = self.kept.len().saturating_sub(KEPT_MAX);
        self.kept.drain(..surplus);
    }

    /// The end of it as one line. Takes what a hook that has ended left in the pipe, without
    /// waiting for others who hold the pipe open.
    pub fn finish(mut self) -> String {
        // A pipe holds 64 KiB unless somebody enlarged it to at most a megabyte (pipe(7)).
        for _ in 0..256 {
            self.advance();
        }
        printable(String::from_utf8_lossy(&self.kept).trim())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn end_of_long_output_is_kept_and_printable() {
        let (mut output, writer) = Output::new().unwrap();
        let mut writer = File::from(writer);
        writer.write_all(&[b'x'; 2000]).unwrap();
        output.advance();
        writer.write_all(b"\x1b[2Jlast\nwords\n").unwrap();
        let text = output.finish();
        assert!(text.ends_with("x [2Jlast words"), "{text}");
        assert!(text.len() <= KEPT_MAX);
    }

    #[test]
    fn pipe_that_somebody_else_holds_open_is_not_waited_for() {
        let (output, writer) = Output::new().unwrap();
        assert_eq!(output.finish(), "");
        drop(writer);
    }
}
