//! A request as bytes become checked arguments.
//!
//! Input: one message of the VMM, whose bytes come from the guest. Every taker moves through the
//! body once, checks bounds, and fails with the error number that the guest gets.

use std::ffi::CStr;

use rustix::io::Errno;
use zerocopy::FromBytes;

use crate::abi::InHeader;

/// Longest file name in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link in bytes (`PATH_MAX` without the terminator).
const TARGET_MAX: usize = 4095;

/// Header and unread rest of a request.
pub struct Request<'a> {
    /// The header, unchecked but for its length.
    pub header: InHeader,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    /// Takes the header off `message`. `None` if there is none, so that nobody can be answered.
    pub fn new(message: &'a [u8]) -> Option<Self> {
        let (header, body) = InHeader::read_from_prefix(message).ok()?;
        Some(Self { header, body })
    }

    /// Whether the header tells the length of the message that it came in.
    pub fn is_whole(&self) -> bool {
        self.header.len as usize == self.body.len() + size_of::<InHeader>()
    }

    /// Takes an object.
    pub fn take<T: FromBytes>(&mut self) -> Result<T, Errno> {
        let (object, rest) = T::read_from_prefix(self.body).map_err(|_| Errno::INVAL)?;
        self.body = rest;
        Ok(object)
    }

    /// Takes `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.body.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.body = rest;
        Ok(bytes)
    }

    fn c_str(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.body).map_err(|_| Errno::INVAL)?;
        self.body = &self.body[text.count_bytes() + 1..];
        Ok(text)
    }

    /// Takes the name of a directory entry: one path component that leads downwards.
    ///
    /// The attack: `..`, a slash or an absolute path would leave the tree that is served. A
    /// guest kernel never sends one; a hostile one does.
    pub fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.c_str()?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }

    /// Takes the name of an extended attribute.
    pub fn attribute_name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.c_str()?;
        match name.count_bytes() {
            0 => Err(Errno::INVAL),
            len if len > NAME_MAX => Err(Errno::RANGE),
            _ => Ok(name),
        }
    }

    /// Takes the target of a symbolic link, which the server never follows.
    pub fn target(&mut self) -> Result<&'a CStr, Errno> {
        let target = self.c_str()?;
        match target.count_bytes() {
            0 => Err(Errno::NOENT),
            len if len > TARGET_MAX => Err(Errno::NAMETOOLONG),
            _ => Ok(target),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut message = vec![0; size_of::<InHeader>()];
        message.extend_from_slice(name);
        let mut request = Request::new(&message).unwrap();
        request.name().map(|name| name.to_bytes().to_vec())
    }

    #[test]
    fn name_that_leads_elsewhere_is_refused() {
        for name in [&b".\0"[..], b"..\0", b"\0", b"a/b\0", b"/\0", b"../x\0", b"open"] {
            assert_eq!(named(name), Err(Errno::INVAL), "{name:?}");
        }
        assert_eq!(named(&[&[b'n'; 256][..], b"\0"].concat()), Err(Errno::NAMETOOLONG));
    }

    #[test]
    fn name_of_any_other_bytes_is_taken() {
        for name in [&b"a\0"[..], b"...\0", b"\xff\n\\ \0"] {
            assert_eq!(named(name).as_deref(), Ok(&name[..name.len() - 1]));
        }
    }

    #[test]
    fn header_that_is_cut_short_is_no_request() {
        assert!(Request::new(&[0; 39]).is_none());
    }
}
