//! Where entropy comes from: the host kernel's generator.

use std::io;

/// The generator behind getrandom(2).
///
/// The guest gets what every process of the host gets; nothing that it reads tells about what
/// others have read.
#[derive(Debug, Default)]
pub(super) struct Entropy;

impl Entropy {
    /// Fills `data`.
    pub(super) fn fill(&mut self, data: &mut [u8]) -> io::Result<()> {
        let mut rest = data;
        while !rest.is_empty() {
            // SAFETY: the pointer and the length describe one exclusively borrowed slice.
            let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
            match usize::try_from(count) {
                Ok(count) => rest = &mut rest[count..],
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}
