//! Reading tar streams of unknown origin: members, PAX records, GNU long names, sparse maps.
//!
//! Input: arbitrary bytes. Everything that is held in memory is bounded by the constants here
//! before it is read; nothing here touches a file system. The `tar` crate is not used for
//! reading because its long names and sparse maps are unbounded, and because its PAX parser
//! splits values at newlines, which binary extended attributes may contain.

mod header;
mod pax;
mod reader;
mod sparse;

use std::io::{self, Read};

use thiserror::Error;

pub use reader::TarReader;
pub use sparse::Extent;

/// Size of a header, and unit of every length in an archive (POSIX pax, "ustar interchange
/// format").
const BLOCK: usize = 512;
/// Largest PAX header or GNU long name, in bytes. Go's reader, which sees every image before
/// we do, has the same limit.
const EXTENSION_MAX: u64 = 1 << 20;
/// Longest path or link target, in bytes (Linux `PATH_MAX` less its terminator).
const PATH_MAX: usize = 4095;
/// Most data regions of one sparse file.
const EXTENTS_MAX: usize = 1 << 18;

/// A stream that can pass over bytes without handing them out.
pub trait SkipRead: Read {
    /// Passes over `bytes`; the stream ending before is an error.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// Passes over `bytes` by reading them, for streams that cannot seek.
pub fn skip_by_reading(reader: &mut impl Read, bytes: u64) -> io::Result<()> {
    let passed = io::copy(&mut reader.take(bytes), &mut io::sink())?;
    if passed < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Regular file with data.
    Regular,
    /// Another name for an earlier member.
    HardLink,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Directory.
    Directory,
    /// Named pipe.
    Fifo,
}

/// Time since the epoch; `nanos` counts upwards also before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Whole seconds.
    pub secs: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// One member of an archive, its extensions merged in. No field is trusted beyond its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Path as written, at most 4095 bytes, no NUL.
    pub path: Vec<u8>,
    /// Target of a link as written, at most 4095 bytes, no NUL.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Owner, never `u32::MAX`.
    pub uid: u32,
    /// Group, never `u32::MAX`.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Time,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes (`SCHILY.xattr.*`), name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of the file when unpacked, in bytes, holes included.
    pub size: u64,
    /// Regions of a sparse file that have data, in order; `None` for a plain file.
    pub extents: Option<Vec<Extent>>,
}

/// Why an archive cannot be read.
#[derive(Debug, Error)]
pub enum TarError {
    /// The stream failed or ended inside a member.
    #[error("reading the archive")]
    Read(#[source] io::Error),
    /// The checksum of a header is wrong: not an archive, or a damaged one.
    #[error("the header at byte {0} has a wrong checksum")]
    Checksum(u64),
    /// One block of zeros that is not the end.
    #[error("the archive goes on after an end mark at byte {0}")]
    End(u64),
    /// A numeric field does not hold a number, or one out of range.
    #[error("field {field} of the header at byte {at} is not a valid number")]
    Number {
        /// Position of the header.
        at: u64,
        /// Name of the field.
        field: &'static str,
    },
    /// A type flag that no image has.
    #[error("the member at byte {at} has unknown type {flag:#04x}")]
    Type {
        /// Position of the header.
        at: u64,
        /// The flag.
        flag: u8,
    },
    /// A PAX header or long name beyond the limit.
    #[error("the extension header at byte {at} has {size} bytes (at most {EXTENSION_MAX})")]
    ExtensionSize {
        /// Position of the header.
        at: u64,
        /// Its length.
        size: u64,
    },
    /// Two extension headers of one kind, or one without a member.
    #[error("the extension header at byte {0} is repeated or describes no member")]
    Extension(u64),
    /// A PAX record that breaks the format.
    #[error("the PAX header at byte {0} is malformed")]
    Pax(u64),
    /// A path or link target that is empty, too long or holds a NUL.
    #[error("the member at byte {0} has an empty, overlong or invalid name")]
    Name(u64),
    /// A sparse map that is out of order, overlaps or does not match the data.
    #[error("the sparse map of the member at byte {0} is inconsistent")]
    Sparse(u64),
}

#[cfg(test)]
mod tests;
