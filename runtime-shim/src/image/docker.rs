//! What `docker save` writes: `manifest.json` lists images by the files of their configuration
//! and layers. Input: untrusted. A file whose name is a digest is held to it; layers are held to
//! the digests in the configuration in any case.

use serde::Deserialize;

use super::digest::Sha256Digest;
use super::manifest::{Image, LAYERS_MAX, ManifestError, normal_name, parse, required, verified};
use super::reference::Selector;
use super::source::Source;

/// One image of `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Reads the image that `selector` means.
pub fn read(source: &Source, selector: &Selector) -> Result<Image, ManifestError> {
    let entries: Vec<Entry> = parse("manifest.json", &required(source, "manifest.json")?)?;
    let entry = choose(&entries, selector)?;
    if entry.layers.len() > LAYERS_MAX {
        return Err(ManifestError::Layers(entry.layers.len()));
    }
    let bytes = required(source, &entry.config)?;
    let bytes = match named_digest(&entry.config) {
        Some(expected) => verified(&entry.config, bytes, expected)?,
        None => bytes,
    };
    let config = parse(&entry.config, &bytes)?;
    let blobs = entry.layers.iter().map(|name| {
        let blob = source.open(name)?.ok_or_else(|| ManifestError::Missing(name.clone()))?;
        // Only the layout's names are digests of the stored bytes; `<hex>.tar` is the one of the
        // uncompressed layer, which is checked as such.
        let digest = name.strip_prefix("blobs/sha256/").and_then(Sha256Digest::from_hex);
        Ok((blob, digest))
    });
    Image::new(config, Sha256Digest::of(&bytes), blobs.collect::<Result<_, ManifestError>>()?)
}

fn choose<'a>(entries: &'a [Entry], selector: &Selector) -> Result<&'a Entry, ManifestError> {
    let wanted = match selector {
        Selector::Only if entries.len() == 1 => return Ok(&entries[0]),
        Selector::Only if entries.is_empty() => {
            return Err(ManifestError::Missing("any image".to_owned()));
        }
        Selector::Only => return Err(ManifestError::Ambiguous(names(entries))),
        Selector::Position(at) => {
            return entries.get(*at).ok_or_else(|| no_such(format!("@{at}"), entries));
        }
        Selector::Digest(digest) => {
            let found = entries.iter().find(|e| named_digest(&e.config) == Some(*digest));
            return found.ok_or_else(|| no_such(format!("@{digest:?}"), entries));
        }
        Selector::Name(name) => name,
    };
    let is = |tag: &String| normal_name(tag) == normal_name(wanted);
    let found = entries.iter().find(|e| e.repo_tags.iter().flatten().any(is));
    found.ok_or_else(|| no_such(wanted.clone(), entries))
}

fn no_such(wanted: String, entries: &[Entry]) -> ManifestError {
    ManifestError::NoSuchImage { wanted, known: names(entries) }
}

fn names(entries: &[Entry]) -> String {
    let name = |(at, entry): (usize, &Entry)| match entry.repo_tags.as_deref() {
        Some([first, ..]) => format!(":{}", first.escape_debug()),
        _ => format!(":@{at}"),
    };
    entries.iter().enumerate().take(16).map(name).collect::<Vec<_>>().join(", ")
}

/// The digest in `<hex>.json` or `blobs/sha256/<hex>`.
fn named_digest(name: &str) -> Option<Sha256Digest> {
    let stem = name.strip_prefix("blobs/sha256/").or_else(|| name.strip_suffix(".json"))?;
    Sha256Digest::from_hex(stem)
}
