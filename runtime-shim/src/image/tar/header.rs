//! The 512-byte header block: V7, ustar, GNU and star. Input: untrusted bytes of fixed length.

use super::{BLOCK, TarError};

/// A header block whose checksum is right.
pub struct Header<'a> {
    block: &'a [u8; BLOCK],
    at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    /// Checks the checksum of `block`, which stands at byte `at` of the archive.
    pub fn new(block: &'a [u8; BLOCK], at: u64) -> Result<Self, TarError> {
        let stored = number(&block[148..156]).ok_or(TarError::Checksum(at))?;
        // The sum takes its own field as spaces. Old writers summed signed bytes.
        let bytes = || block[..148].iter().chain([b' '; 8].iter()).chain(&block[156..]);
        let unsigned: i64 = bytes().map(|&b| i64::from(b)).sum();
        let signed: i64 = bytes().map(|&b| i64::from(b.cast_signed())).sum();
        if stored != unsigned && stored != signed {
            return Err(TarError::Checksum(at));
        }
        Ok(Self { block, at })
    }

    fn format(&self) -> Format {
        match (&self.block[257..263], &self.block[263..265]) {
            (b"ustar\0", _) if &self.block[508..512] == b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::V7,
        }
    }

    pub fn flag(&self) -> u8 {
        self.block[156]
    }

    /// Path, joined from prefix and name where the format has a prefix.
    pub fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.format() {
            Format::Ustar => text(&self.block[345..500]),
            Format::Star => text(&self.block[345..476]),
            Format::Gnu | Format::V7 => b"",
        };
        match prefix {
            b"" => name.to_vec(),
            _ => [prefix, b"/", name].concat(),
        }
    }

    pub fn link(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    pub fn mode(&self) -> Result<u32, TarError> {
        // The file type that old writers put above the permission bits means nothing here.
        self.field("mode", 100..108).map(|mode| (mode & 0o7777) as u32)
    }

    pub fn uid(&self) -> Result<u64, TarError> {
        self.unsigned("uid", 108..116)
    }

    pub fn gid(&self) -> Result<u64, TarError> {
        self.unsigned("gid", 116..124)
    }

    pub fn size(&self) -> Result<u64, TarError> {
        self.unsigned("size", 124..136)
    }

    pub fn mtime(&self) -> Result<i64, TarError> {
        self.field("mtime", 136..148)
    }

    /// Major and minor number; V7 has none.
    pub fn device(&self) -> Result<(u32, u32), TarError> {
        if self.format() == Format::V7 {
            return Ok((0, 0));
        }
        let part = |field, range| {
            let value = self.unsigned(field, range)?;
            u32::try_from(value).map_err(|_| self.bad(field))
        };
        Ok((part("devmajor", 329..337)?, part("devminor", 337..345)?))
    }

    /// The four sparse slots of an old GNU sparse header, whether more blocks follow, and the
    /// file's real length.
    pub fn gnu_sparse(&self) -> Result<(&'a [u8], bool, u64), TarError> {
        if self.format() != Format::Gnu {
            return Err(TarError::Sparse(self.at));
        }
        let real = self.unsigned("realsize", 483..495)?;
        Ok((&self.block[386..482], self.block[482] != 0, real))
    }

    fn field(&self, field: &'static str, range: std::ops::Range<usize>) -> Result<i64, TarError> {
        number(&self.block[range]).ok_or_else(|| self.bad(field))
    }

    fn unsigned(
        &self,
        field: &'static str,
        range: std::ops::Range<usize>,
    ) -> Result<u64, TarError> {
        u64::try_from(self.field(field, range)?).map_err(|_| self.bad(field))
    }

    fn bad(&self, field: &'static str) -> TarError {
        TarError::Number { at: self.at, field }
    }
}

/// Bytes before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A numeric field: octal digits between spaces and NULs (empty is zero), or GNU's base-256,
/// big-endian two's complement with the top bit of the first byte set and not counted.
pub fn number(field: &[u8]) -> Option<i64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return base256(field);
    }
    let is_pad = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !is_pad(b)).unwrap_or(field.len());
    let end = field.iter().rposition(|b| !is_pad(b)).map_or(start, |last| last + 1);
    // A NUL ends the digits; what some writers leave behind it does not count.
    text(&field[start..end]).iter().take_while(|b| **b != b' ').try_fold(0_i64, |value, &digit| {
        match digit {
            b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
            _ => None,
        }
    })
}

fn base256(field: &[u8]) -> Option<i64> {
    let first = field[0];
    let negative = first & 0x40 != 0;
    let start = if negative { i64::from(first.cast_signed()) } else { i64::from(first & 0x3f) };
    field[1..]
        .iter()
        .try_fold(start, |value, &byte| value.checked_mul(256)?.checked_add(i64::from(byte)))
}
