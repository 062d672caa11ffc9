//! One layer of an image as a stream: decompressed, counted, and verified on the way.
//!
//! What is read from a layer is not to be trusted before [`LayerStream::finish`] has said that
//! all of it had the digests that manifest and configuration promise; until then it may only go
//! to a place from which it can be thrown away.

use std::io::{self, BufReader, Read};

use thiserror::Error;

use super::decoder::Decoder;
use super::digest::{Hashing, Sha256Digest};
use super::source::{Blob, BlobReader};
use super::tar::SkipRead;
use super::unpack::budget::{Budget, Exceeded};

/// How much is read from a file at a time.
const READ_SIZE: usize = 128 << 10;

/// A layer: its bytes, and what they should be.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The layer as stored, perhaps compressed.
    pub blob: Blob,
    /// Digest of the stored bytes, where the image states one.
    pub digest: Option<Sha256Digest>,
    /// Digest of the uncompressed tar stream, from the image configuration.
    pub diff_id: Sha256Digest,
}

/// Why a layer is not what the image says.
#[derive(Debug, Error)]
pub enum LayerError {
    /// Reading or decompressing failed.
    #[error("reading the layer")]
    Read(#[source] io::Error),
    /// The stored bytes are not those of the manifest.
    #[error("the layer's bytes have digest {found:?} instead of {expected:?}")]
    Digest {
        /// What the manifest says.
        expected: Sha256Digest,
        /// What was read.
        found: Sha256Digest,
    },
    /// The uncompressed bytes are not those of the configuration.
    #[error("the uncompressed layer has digest {found:?} instead of {expected:?}")]
    DiffId {
        /// What the configuration says.
        expected: Sha256Digest,
        /// What was read.
        found: Sha256Digest,
    },
    /// The image is too large.
    #[error(transparent)]
    Budget(#[from] Exceeded),
}

/// Counts against the budget.
struct Metered<'a, R> {
    inner: R,
    budget: &'a Budget,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.budget.take_bytes(read as u64).map_err(io::Error::other)?;
        Ok(read)
    }
}

/// Reports the bytes that pass.
struct Reporting<'a> {
    inner: BlobReader,
    report: &'a (dyn Fn(u64) + Sync),
}

impl Read for Reporting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        (self.report)(read as u64);
        Ok(read)
    }
}

type Stored<'a> = BufReader<Hashing<Reporting<'a>>>;

/// The uncompressed bytes of a layer.
pub struct LayerStream<'a> {
    stream: Hashing<Metered<'a, Decoder<Stored<'a>>>>,
    digest: Option<Sha256Digest>,
    diff_id: Sha256Digest,
}

impl<'a> LayerStream<'a> {
    /// Opens `layer`; `report` is told about every stored byte that is read.
    pub fn open(
        layer: &Layer,
        budget: &'a Budget,
        report: &'a (dyn Fn(u64) + Sync),
    ) -> Result<Self, LayerError> {
        let stored = Hashing::new(Reporting { inner: layer.blob.reader(), report });
        let stored = BufReader::with_capacity(READ_SIZE, stored);
        let magic = layer.blob.magic().map_err(LayerError::Read)?;
        let decoder = Decoder::new(stored, &magic).map_err(LayerError::Read)?;
        Ok(Self {
            stream: Hashing::new(Metered { inner: decoder, budget }),
            digest: layer.digest,
            diff_id: layer.diff_id,
        })
    }

    /// Reads what is left and compares both digests.
    pub fn finish(mut self) -> Result<(), LayerError> {
        io::copy(&mut self.stream, &mut io::sink()).map_err(read_error)?;
        let (found, _) = self.stream.so_far();
        if found != self.diff_id {
            return Err(LayerError::DiffId { expected: self.diff_id, found });
        }
        let Some(expected) = self.digest else { return Ok(()) };
        let mut stored = self.stream.into_inner().inner.into_inner();
        io::copy(&mut stored, &mut io::sink()).map_err(LayerError::Read)?;
        let (found, _) = stored.into_inner().so_far();
        if found != expected {
            return Err(LayerError::Digest { expected, found });
        }
        Ok(())
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl SkipRead for LayerStream<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        super::tar::skip_by_reading(self, bytes)
    }
}

/// Finds a broken budget again behind the [`io::Error`] that carried it through the readers.
pub fn exceeded(error: &io::Error) -> Option<Exceeded> {
    error.get_ref()?.downcast_ref().copied()
}

fn read_error(error: io::Error) -> LayerError {
    exceeded(&error).map_or(LayerError::Read(error), LayerError::Budget)
}
