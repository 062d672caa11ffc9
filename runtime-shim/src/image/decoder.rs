//! Decompression, chosen by content. Input: untrusted bytes; memory is bounded by the formats
//! and by the window limit here, the output only by who reads it.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Largest window a zstd stream may ask for, as a power of two (128 MiB, zstd's own default
/// limit): it is memory that the image chooses.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Undoes whatever compression a stream has.
pub enum Decoder<R: BufRead> {
    /// None.
    Plain(R),
    /// gzip, all its members.
    Gzip(Box<MultiGzDecoder<R>>),
    /// zstd, all its frames.
    Zstd(Box<zstd::Decoder<'static, R>>),
}

impl<R: BufRead> Decoder<R> {
    /// Chooses by the first bytes of the stream.
    pub fn new(reader: R, magic: &[u8]) -> io::Result<Self> {
        Ok(match magic {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(reader))),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                let mut decoder = zstd::Decoder::with_buffer(reader)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Self::Zstd(Box::new(decoder))
            }
            _ => Self::Plain(reader),
        })
    }

    /// Whether the stream is compressed.
    pub fn is_compressed(magic: &[u8]) -> bool {
        matches!(magic, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd])
    }

    /// The stream, after whatever was read ahead of the decompressed bytes.
    pub fn into_inner(self) -> R {
        match self {
            Self::Plain(reader) => reader,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}
