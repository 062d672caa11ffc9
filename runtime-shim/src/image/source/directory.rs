//! A layout directory.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Blob, SourceError, open_error};
use crate::image::unpack::tree::open_racy;

/// An open directory. Links inside it may lead anywhere inside it, but not out: an image that
/// came as a directory must not make us read a file of the host.
pub struct Directory {
    fd: OwnedFd,
}

impl Directory {
    /// Opens `path`.
    pub fn open_at(path: &Path) -> Result<Self, SourceError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty()).map_err(|error| open_error(path, error))?;
        Ok(Self { fd })
    }

    /// Opens the regular file `name`; a pipe or device is refused without waiting for it.
    pub fn open(&self, name: &str) -> Result<Option<Blob>, SourceError> {
        let failed =
            |error: Errno| SourceError::File { name: name.to_owned(), source: error.into() };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = match open_racy(self.fd.as_fd(), name.as_bytes(), flags, resolve) {
            Err(Errno::NOENT) => return Ok(None),
            result => result.map_err(failed)?,
        };
        let stat = fs::fstat(&fd).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(SourceError::NotRegular(name.to_owned()));
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Some(Blob::new(Arc::new(File::from(fd)), 0, size)))
    }
}
