//! Images: from a layout directory, an OCI archive or a Docker archive to the root file system
//! of a container.
//!
//! An image is hostile. It is read here by the host's root, so every size is bounded, every
//! byte is verified by the digest that names it before it counts, and no path of an image is
//! resolved outside the directory it belongs to. The way of the data: [`reference`] says what
//! is meant, [`source`] finds files, [`manifest`] and [`docker`] make an [`Image`] of them,
//! [`store`] unpacks each layer once ([`layer`], [`tar`], [`unpack`]), [`overlay`] mounts the
//! layers as one directory, and [`rootfs`] looks into it.

mod copy;
mod decoder;
pub mod digest;
mod docker;
pub mod erofs;
pub mod layer;
pub mod manifest;
pub mod overlay;
pub mod reference;
pub mod remove;
pub mod rootfs;
pub mod source;
pub mod store;
mod tar;
pub mod unpack;

use std::io;
use std::path::Path;

use thiserror::Error;

pub use manifest::Image;
pub use reference::Reference;
pub use store::Store;

use self::decoder::Decoder;
use self::manifest::ManifestError;
use self::reference::{Selector, Transport};
use self::source::{Archive, Blob, Directory, Source, SourceError};
use crate::failure::{EXIT_LAUNCH, Explain};

/// Why an image cannot be read.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Its files.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Its documents.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The first bytes of an archive cannot be read.
    #[error("reading {path:?}")]
    Read {
        /// The path given.
        path: String,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// Not an image at all.
    #[error("{0:?} is not an image: it has neither oci-layout and index.json nor manifest.json")]
    NotAnImage(String),
}

impl Explain for ImageError {
    fn phase(&self) -> &'static str {
        "reading the image"
    }

    fn fix(&self) -> String {
        match self {
            Self::NotAnImage(_) | Self::Source(SourceError::Members(_)) => {
                "make one with `skopeo copy docker://NAME oci-archive:FILE` or `docker save`; \
                 a bundle runs with `bulkhead run`"
            }
            Self::Manifest(ManifestError::Ambiguous(_)) => "append it to the path, as PATH:NAME",
            Self::Manifest(ManifestError::Digest { .. } | ManifestError::Size { .. }) => {
                "the image is damaged or was tampered with; fetch it again"
            }
            _ => "",
        }
        .to_owned()
    }

    fn code(&self) -> u8 {
        EXIT_LAUNCH
    }
}

/// Opens the image that `reference` means. A compressed archive is expanded into a nameless
/// file in `scratch`, at most `limit` bytes.
pub fn open(reference: &Reference, scratch: &Path, limit: u64) -> Result<Image, ImageError> {
    let path = reference.path.as_path();
    let is_directory = match reference.transport {
        Some(transport) => transport == Transport::Directory,
        None => path.is_dir(),
    };
    let source = if is_directory {
        Source::Directory(Directory::open_at(path)?)
    } else {
        Source::Archive(Archive::index(&open_archive(path, scratch, limit)?, path)?)
    };
    let has = |name| source.open(name).map(|file| file.is_some());
    let oci = has("oci-layout")? && has("index.json")?;
    let docker = !is_directory && has("manifest.json")?;
    let selector = &reference.selector;
    match (reference.transport, oci, docker) {
        (Some(Transport::DockerArchive), _, true) | (None, false, true) => {
            Ok(docker::read(&source, selector)?)
        }
        (None, true, true) => read_either(&source, selector),
        (Some(Transport::Directory | Transport::OciArchive) | None, true, _) => {
            Ok(manifest::read(&source, selector)?)
        }
        _ => Err(ImageError::NotAnImage(path.display().to_string())),
    }
}

/// An archive of `docker save` since version 25 is both; a name may be in one index only.
fn read_either(source: &Source, selector: &Selector) -> Result<Image, ImageError> {
    match manifest::read(source, selector) {
        Err(ManifestError::NoSuchImage { .. }) => Ok(docker::read(source, selector)?),
        result => Ok(result?),
    }
}

fn open_archive(path: &Path, scratch: &Path, limit: u64) -> Result<Blob, ImageError> {
    let file = Archive::open_at(path)?;
    let failed = |source| ImageError::Read { path: path.display().to_string(), source };
    if Decoder::<&[u8]>::is_compressed(&file.magic().map_err(failed)?) {
        return Ok(source::expand(&file, path, scratch, limit)?);
    }
    Ok(file)
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
