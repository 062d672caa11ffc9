//! Where the files of an image lie: in a directory, or in an archive that is read in place.
//!
//! Input: untrusted. A file of an image is a [`Blob`], a range of an open file; names are
//! resolved here and nowhere else.

mod archive;
mod directory;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::Errno;
use thiserror::Error;

pub use archive::{Archive, expand};
pub use directory::Directory;

use super::tar::TarError;

/// Why a file of an image cannot be opened.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The directory or archive itself.
    #[error("opening {path:?}")]
    Open {
        /// The path given.
        path: String,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A file of the image.
    #[error("opening {name:?} of the image")]
    File {
        /// Its name in the image.
        name: String,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A file of the image that is a directory, device or pipe.
    #[error("{0:?} of the image is not a regular file")]
    NotRegular(String),
    /// The archive cannot be read.
    #[error("reading the archive {path:?}")]
    Archive {
        /// The path given.
        path: String,
        /// What is wrong with it.
        #[source]
        source: TarError,
    },
    /// An archive with two files of one name: readers would disagree about what is in it.
    #[error("the archive holds {0:?} twice")]
    Twice(String),
    /// Far more members than an image archive has.
    #[error("the archive has more than {0} members: it is a file system, not an image")]
    Members(usize),
    /// Decompressing the archive failed.
    #[error("decompressing the archive {path:?}")]
    Expand {
        /// The path given.
        path: String,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// The archive is larger than an image may be.
    #[error("the archive {path:?} is larger than {limit} bytes when decompressed")]
    Large {
        /// The path given.
        path: String,
        /// The limit.
        limit: u64,
    },
}

/// The files of one image on disk.
pub enum Source {
    /// A layout directory.
    Directory(Directory),
    /// An archive.
    Archive(Archive),
}

impl Source {
    /// Opens the file `name`, or `None` if there is none.
    pub fn open(&self, name: &str) -> Result<Option<Blob>, SourceError> {
        match self {
            Self::Directory(directory) => directory.open(name),
            Self::Archive(archive) => Ok(archive.open(name)),
        }
    }
}

/// A file of an image: part of an open file. Reading it does not move a shared position.
#[derive(Debug, Clone)]
pub struct Blob {
    file: Arc<File>,
    offset: u64,
    size: u64,
}

impl Blob {
    /// `size` bytes of `file` from `offset`.
    pub fn new(file: Arc<File>, offset: u64, size: u64) -> Self {
        Self { file, offset, size }
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A reader from the first byte.
    pub fn reader(&self) -> BlobReader {
        let end = self.offset.saturating_add(self.size);
        BlobReader { file: Arc::clone(&self.file), position: self.offset, end }
    }

    /// The first bytes, at most four; fewer only if the file is shorter.
    pub fn magic(&self) -> io::Result<Vec<u8>> {
        let mut magic = Vec::new();
        self.reader().take(4).read_to_end(&mut magic)?;
        Ok(magic)
    }
}

/// Reads a [`Blob`].
pub struct BlobReader {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl BlobReader {
    /// Moves on without reading.
    pub fn advance(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.end - self.position {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += bytes;
        Ok(())
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.position)?;
        if read == 0 && most != 0 {
            // The file was cut while it is read.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        Ok(read)
    }
}

fn open_error(path: &std::path::Path, error: Errno) -> SourceError {
    SourceError::Open { path: path.display().to_string(), source: error.into() }
}
