//! How an image is named on the command line: a path, optionally with what to take from it, as
//! skopeo spells it (containers-transports(5)). Input: trusted, from the command line.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::digest::Sha256Digest;

/// The form of an image on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `oci:`, a layout directory.
    Directory,
    /// `oci-archive:`, a tar of a layout.
    OciArchive,
    /// `docker-archive:`, what `docker save` writes.
    DockerArchive,
}

/// Which of several images is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The only one.
    Only,
    /// By tag or name.
    Name(String),
    /// By position in the index or in `manifest.json`, from 0 (`@N`).
    Position(usize),
    /// By digest of the manifest (`@sha256:…`).
    Digest(Sha256Digest),
}

/// A parsed IMAGE argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The form, if it was spelled out; else it is found out from the content.
    pub transport: Option<Transport>,
    /// Directory or file.
    pub path: PathBuf,
    /// Which image in it.
    pub selector: Selector,
}

/// Why a text names no image.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing to read.
    #[error("the image reference {0:?} has no path")]
    NoPath(String),
    /// Neither a file nor a directory; perhaps the name of an image in a registry.
    #[error("there is no image {0:?}: no such file or directory")]
    Missing(String),
    /// After `@` stands neither a number nor a digest.
    #[error("{0:?} is neither a position (@0) nor a digest (@sha256:...)")]
    Selector(String),
}

const PREFIXES: [(&str, Transport); 3] = [
    ("oci:", Transport::Directory),
    ("oci-archive:", Transport::OciArchive),
    ("docker-archive:", Transport::DockerArchive),
];

impl Reference {
    /// Parses `text`. Without a prefix, a `text` that is an existing path as a whole is one;
    /// else the path ends at the first colon or at `@`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        for (prefix, transport) in PREFIXES {
            if let Some(rest) = text.strip_prefix(prefix) {
                return Self::split(rest, Some(transport), text);
            }
        }
        if !text.is_empty() && Path::new(text).exists() {
            let path = PathBuf::from(text);
            return Ok(Self { transport: None, path, selector: Selector::Only });
        }
        let reference = Self::split(text, None, text)?;
        if !reference.path.exists() {
            return Err(ReferenceError::Missing(text.to_owned()));
        }
        Ok(reference)
    }

    fn split(rest: &str, transport: Option<Transport>, text: &str) -> Result<Self, ReferenceError> {
        let (path, selector) = match rest.split_once(':') {
            // `DIR@sha256:…` has its first colon inside the digest.
            Some((path, _)) if path.ends_with("@sha256") => {
                rest.split_at(path.len() - "@sha256".len())
            }
            Some(parts) => parts,
            None => (rest, ""),
        };
        if path.is_empty() {
            return Err(ReferenceError::NoPath(text.to_owned()));
        }
        let selector = match selector.strip_prefix('@') {
            Some(at) => position_or_digest(at)?,
            None if selector.is_empty() => Selector::Only,
            None => Selector::Name(selector.to_owned()),
        };
        Ok(Self { transport, path: PathBuf::from(path), selector })
    }
}

fn position_or_digest(text: &str) -> Result<Selector, ReferenceError> {
    let position = text.parse().map(Selector::Position).ok();
    position
        .or_else(|| Sha256Digest::from_oci(text).map(Selector::Digest))
        .ok_or_else(|| ReferenceError::Selector(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Selector {
        Selector::Name(text.to_owned())
    }

    #[test]
    fn reference_with_prefix_is_split_as_skopeo_does() {
        let digest = Sha256Digest::of(b"x");
        let cases = [
            ("oci:dir", Transport::Directory, "dir", Selector::Only),
            ("oci:dir:v1", Transport::Directory, "dir", name("v1")),
            ("oci-archive:/a.tar:v1", Transport::OciArchive, "/a.tar", name("v1")),
            ("docker-archive:a:b/c:v1", Transport::DockerArchive, "a", name("b/c:v1")),
            ("docker-archive:a:@1", Transport::DockerArchive, "a", Selector::Position(1)),
            (
                &format!("oci:d@sha256:{digest}"),
                Transport::Directory,
                "d",
                Selector::Digest(digest),
            ),
            (
                &format!("oci:d:@sha256:{digest}"),
                Transport::Directory,
                "d",
                Selector::Digest(digest),
            ),
        ];
        for (text, transport, path, selector) in cases {
            let expected =
                Reference { transport: Some(transport), path: PathBuf::from(path), selector };
            assert_eq!(Reference::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bare_path_that_exists_is_taken_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("with:colon");
        std::fs::create_dir(&path).unwrap();
        let text = path.to_str().unwrap();
        assert_eq!(Reference::parse(text).unwrap().path, path);
        let tagged = format!("{}:v1", dir.path().display());
        let reference = Reference::parse(&tagged).unwrap();
        assert_eq!((reference.path.as_path(), reference.selector), (dir.path(), name("v1")));
    }

    #[test]
    fn reference_to_nothing_is_refused() {
        assert_eq!(Reference::parse(""), Err(ReferenceError::NoPath(String::new())));
        assert_eq!(Reference::parse("oci:"), Err(ReferenceError::NoPath("oci:".into())));
        assert_eq!(Reference::parse("busybox:1"), Err(ReferenceError::Missing("busybox:1".into())));
        assert!(matches!(Reference::parse("oci:d:@x"), Err(ReferenceError::Selector(_))));
    }
}
