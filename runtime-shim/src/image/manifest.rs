//! From an OCI image layout to one manifest and its configuration (OCI image specification,
//! "Image Layout", "Image Index", "Image Manifest").
//!
//! Input: untrusted. Only `oci-layout` and `index.json` are read on trust; every other file is
//! named by a digest and parsed after its bytes were found to have it. Sizes, nesting and the
//! number of documents are bounded.

mod select;

use std::io::{self, Read};

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout, Os,
};
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::digest::Sha256Digest;
use super::layer::Layer;
use super::reference::Selector;
use super::source::{Blob, Source, SourceError};

pub use self::select::normal_name;
use self::select::{choose, suits};

/// Largest manifest, index or configuration, in bytes; registries accept no larger ones.
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// Most layers of an image. Docker's limit is 127; overlayfs takes 500.
pub const LAYERS_MAX: usize = 256;
/// Deepest nesting of indexes below `index.json`.
const DEPTH_MAX: usize = 4;
/// Most nested indexes looked at.
const INDEXES_MAX: usize = 64;
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LAYERS: [&str; 4] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Why an image cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// A file of the image cannot be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file that the image names is not there.
    #[error("the image lacks {0}")]
    Missing(String),
    /// Reading a document failed.
    #[error("reading {name}")]
    Read {
        /// Which document.
        name: String,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A document is too large.
    #[error("{name} has {size} bytes (at most {DOCUMENT_MAX})")]
    Large {
        /// Which document.
        name: String,
        /// Its size.
        size: u64,
    },
    /// A document is not what the specification says.
    #[error("{name} is malformed")]
    Json {
        /// Which document.
        name: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A file's length is not the one of its descriptor.
    #[error("{name} has {found} bytes instead of {expected}")]
    Size {
        /// Which file.
        name: String,
        /// What the descriptor says.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// A document's bytes do not have the digest that names it.
    #[error("{name} has digest {found:?}")]
    Digest {
        /// Which document.
        name: String,
        /// What was read.
        found: Sha256Digest,
    },
    /// A digest of another algorithm than SHA-256.
    #[error("digest {0:?} is not a SHA-256 digest")]
    Algorithm(String),
    /// A layout of another major version.
    #[error("the image layout has version {0:?}, this is a reader of version 1")]
    Version(String),
    /// Something that is no layer, for example an encrypted one.
    #[error("layer {digest} has the unsupported media type {media_type:?}")]
    LayerType {
        /// The layer.
        digest: String,
        /// Its type.
        media_type: String,
    },
    /// Nothing of the name.
    #[error("the image {wanted:?} is not there; there are: {known}")]
    NoSuchImage {
        /// What was asked for.
        wanted: String,
        /// What can be asked for.
        known: String,
    },
    /// Several images and none chosen.
    #[error("there are several images, choose one: {0}")]
    Ambiguous(String),
    /// No image for this machine.
    #[error("the image has no variant for linux/{machine}; there are: {known}")]
    Platform {
        /// This machine's architecture.
        machine: String,
        /// What there is.
        known: String,
    },
    /// Indexes nested deeper or more of them than anything needs.
    #[error("the image's indexes are nested too deep or too many")]
    Nesting,
    /// More layers than [`LAYERS_MAX`].
    #[error("the image has {0} layers (at most {LAYERS_MAX})")]
    Layers(usize),
    /// Nothing to run.
    #[error("the image has no layers")]
    Empty,
    /// Manifest and configuration contradict each other.
    #[error("the manifest has {layers} layers and the configuration {diff_ids}")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Layers of the configuration.
        diff_ids: usize,
    },
}

/// Manifest and configuration of one image, verified; the layers are not read yet.
#[derive(Debug)]
pub struct Image {
    /// The image configuration.
    pub config: ImageConfiguration,
    /// Digest of the configuration: Docker's image id.
    pub id: Sha256Digest,
    /// The layers, base first.
    pub layers: Vec<Layer>,
}

impl Image {
    /// Puts together what was read, and checks that it fits.
    pub fn new(
        config: ImageConfiguration,
        id: Sha256Digest,
        blobs: Vec<(Blob, Option<Sha256Digest>)>,
    ) -> Result<Self, ManifestError> {
        if *config.os() != Os::Linux || *config.architecture() != Arch::default() {
            return Err(ManifestError::Platform {
                machine: Arch::default().to_string(),
                known: format!("{}/{}", config.os(), config.architecture()),
            });
        }
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != blobs.len() {
            let (layers, diff_ids) = (blobs.len(), diff_ids.len());
            return Err(ManifestError::LayerCount { layers, diff_ids });
        }
        let layers = diff_ids.iter().zip(blobs).map(|(diff_id, (blob, digest))| {
            let parsed = Sha256Digest::from_oci(diff_id);
            let diff_id = parsed.ok_or_else(|| ManifestError::Algorithm(diff_id.clone()))?;
            Ok(Layer { blob, digest, diff_id })
        });
        let layers = layers.collect::<Result<Vec<_>, ManifestError>>()?;
        match layers.len() {
            0 => Err(ManifestError::Empty),
            n if n > LAYERS_MAX => Err(ManifestError::Layers(n)),
            _ => Ok(Self { config, id, layers }),
        }
    }
}

/// Reads the image that `selector` means from a layout.
pub fn read(source: &Source, selector: &Selector) -> Result<Image, ManifestError> {
    let layout: OciLayout = parse("oci-layout", &required(source, "oci-layout")?)?;
    if !layout.image_layout_version().starts_with("1.") {
        return Err(ManifestError::Version(layout.image_layout_version().clone()));
    }
    let index: ImageIndex = parse("index.json", &required(source, "index.json")?)?;
    let chosen = choose(index.manifests(), selector)?;
    let mut platforms = Vec::new();
    let mut left = INDEXES_MAX;
    let manifest = find_platform(source, &chosen, DEPTH_MAX, &mut left, &mut platforms)?;
    let Some(manifest) = manifest else {
        return Err(ManifestError::Platform {
            machine: Arch::default().to_string(),
            known: platforms.join(", "),
        });
    };
    let manifest: ImageManifest = document(source, &manifest)?;
    if manifest.layers().len() > LAYERS_MAX {
        return Err(ManifestError::Layers(manifest.layers().len()));
    }
    let id = digest(manifest.config())?;
    let config = document(source, manifest.config())?;
    let blobs = manifest.layers().iter().map(|layer| {
        check_layer_type(layer)?;
        Ok((blob(source, layer)?, Some(digest(layer)?)))
    });
    Image::new(config, id, blobs.collect::<Result<_, ManifestError>>()?)
}

/// The first manifest for this machine in `descriptors` or in the indexes they name.
fn find_platform(
    source: &Source,
    descriptors: &[Descriptor],
    depth: usize,
    left: &mut usize,
    platforms: &mut Vec<String>,
) -> Result<Option<Descriptor>, ManifestError> {
    for descriptor in descriptors {
        if is_index(descriptor.media_type()) {
            *left = left.checked_sub(1).ok_or(ManifestError::Nesting)?;
            let depth = depth.checked_sub(1).ok_or(ManifestError::Nesting)?;
            let index: ImageIndex = document(source, descriptor)?;
            let found = find_platform(source, index.manifests(), depth, left, platforms)?;
            if found.is_some() {
                return Ok(found);
            }
        } else if is_manifest(descriptor.media_type()) && suits(descriptor) != Some(false) {
            return Ok(Some(descriptor.clone()));
        } else if let Some(platform) =
            descriptor.platform().as_ref().filter(|_| platforms.len() < 16)
        {
            platforms.push(format!("{}/{}", platform.os(), platform.architecture()));
        }
    }
    Ok(None)
}

fn is_index(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageIndex || media_type.as_ref() == DOCKER_LIST
}

fn is_manifest(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageManifest || media_type.as_ref() == DOCKER_MANIFEST
}

/// The compression is found out from the content; here it is only asked whether it is a layer.
fn check_layer_type(layer: &Descriptor) -> Result<(), ManifestError> {
    let known = matches!(
        layer.media_type(),
        MediaType::ImageLayer
            | MediaType::ImageLayerGzip
            | MediaType::ImageLayerZstd
            | MediaType::ImageLayerNonDistributable
            | MediaType::ImageLayerNonDistributableGzip
            | MediaType::ImageLayerNonDistributableZstd
    );
    if known || DOCKER_LAYERS.contains(&layer.media_type().as_ref()) {
        return Ok(());
    }
    Err(ManifestError::LayerType {
        digest: layer.digest().to_string(),
        media_type: layer.media_type().to_string(),
    })
}

fn digest(descriptor: &Descriptor) -> Result<Sha256Digest, ManifestError> {
    Sha256Digest::from_descriptor(descriptor.digest())
        .ok_or_else(|| ManifestError::Algorithm(descriptor.digest().to_string()))
}

/// The file that `descriptor` names, of the length it says.
fn blob(source: &Source, descriptor: &Descriptor) -> Result<Blob, ManifestError> {
    let name = format!("blobs/sha256/{}", digest(descriptor)?);
    let blob = source.open(&name)?.ok_or_else(|| ManifestError::Missing(name.clone()))?;
    let (expected, found) = (descriptor.size(), blob.size());
    if expected != found {
        return Err(ManifestError::Size { name, expected, found });
    }
    Ok(blob)
}

/// Reads, verifies and then parses the document that `descriptor` names.
fn document<T: DeserializeOwned>(
    source: &Source,
    descriptor: &Descriptor,
) -> Result<T, ManifestError> {
    let name = descriptor.digest().to_string();
    let bytes = bounded(&name, &blob(source, descriptor)?)?;
    verified(&name, bytes, digest(descriptor)?).and_then(|bytes| parse(&name, &bytes))
}

/// `bytes`, if they have the digest.
pub fn verified(
    name: &str,
    bytes: Vec<u8>,
    expected: Sha256Digest,
) -> Result<Vec<u8>, ManifestError> {
    let found = Sha256Digest::of(&bytes);
    if found != expected {
        return Err(ManifestError::Digest { name: name.to_owned(), found });
    }
    Ok(bytes)
}

/// All of a document, which must be there.
pub fn required(source: &Source, name: &str) -> Result<Vec<u8>, ManifestError> {
    let blob = source.open(name)?.ok_or_else(|| ManifestError::Missing(name.to_owned()))?;
    bounded(name, &blob)
}

fn bounded(name: &str, blob: &Blob) -> Result<Vec<u8>, ManifestError> {
    if blob.size() > DOCUMENT_MAX {
        return Err(ManifestError::Large { name: name.to_owned(), size: blob.size() });
    }
    let mut bytes = Vec::new();
    let failed = |source| ManifestError::Read { name: name.to_owned(), source };
    blob.reader().read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Parses a document.
pub fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes)
        .map_err(|source| ManifestError::Json { name: name.to_owned(), source })
}

#[cfg(test)]
mod tests;
