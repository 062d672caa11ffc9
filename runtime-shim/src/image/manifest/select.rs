//! Which descriptors of an index are the image that was asked for. Input: a parsed, untrusted
//! index; names from it are escaped before they are shown.

use oci_spec::image::{ANNOTATION_REF_NAME, Arch, Descriptor, Os};

use super::ManifestError;
use crate::image::digest::Sha256Digest;
use crate::image::reference::Selector;

/// Where containerd and `docker save` put an image's full name.
const ANNOTATION_CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The descriptors that may be the image asked for: more than one only where they are variants
/// for different platforms.
pub fn choose(
    manifests: &[Descriptor],
    selector: &Selector,
) -> Result<Vec<Descriptor>, ManifestError> {
    let not_there = |wanted: String| ManifestError::NoSuchImage { wanted, known: names(manifests) };
    let chosen: Vec<Descriptor> = match selector {
        Selector::Only => manifests.to_vec(),
        Selector::Position(at) => manifests.get(*at).into_iter().cloned().collect(),
        Selector::Digest(wanted) => {
            let is = |d: &&Descriptor| Sha256Digest::from_descriptor(d.digest()) == Some(*wanted);
            manifests.iter().filter(is).cloned().collect()
        }
        Selector::Name(wanted) => {
            manifests.iter().filter(|d| is_named(d, wanted)).cloned().collect()
        }
    };
    match (selector, chosen.len()) {
        (Selector::Only, 0) => Err(ManifestError::Missing("any manifest".to_owned())),
        (Selector::Position(at), 0) => Err(not_there(format!("@{at}"))),
        (Selector::Digest(wanted), 0) => Err(not_there(format!("@{wanted:?}"))),
        (Selector::Name(wanted), 0) => Err(not_there(wanted.clone())),
        (_, 1) => Ok(chosen),
        _ if same_name(&chosen) => Ok(chosen),
        _ => Err(ManifestError::Ambiguous(names(&chosen))),
    }
}

/// Whether several descriptors are one image: without or with the same name, each with a
/// platform of its own.
fn same_name(chosen: &[Descriptor]) -> bool {
    let name = |d: &Descriptor| annotation(d, ANNOTATION_REF_NAME).map(str::to_owned);
    let first = chosen.first().and_then(name);
    chosen.iter().all(|d| name(d) == first && d.platform().is_some())
        && chosen.iter().filter(|d| suits(d) == Some(true)).count() <= 1
}

fn is_named(descriptor: &Descriptor, wanted: &str) -> bool {
    let full = annotation(descriptor, ANNOTATION_CONTAINERD_NAME);
    annotation(descriptor, ANNOTATION_REF_NAME) == Some(wanted)
        || full.is_some_and(|full| normal_name(full) == normal_name(wanted))
}

/// An image name as Docker completes it: `docker.io/library/` in front and `:latest` behind may
/// be left out.
pub fn normal_name(name: &str) -> String {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let last = short.rsplit('/').next().unwrap_or(short);
    if last.contains([':', '@']) { short.to_owned() } else { format!("{short}:latest") }
}

fn names(manifests: &[Descriptor]) -> String {
    let name = |(at, descriptor): (usize, &Descriptor)| {
        let full = annotation(descriptor, ANNOTATION_CONTAINERD_NAME);
        let name = full.or_else(|| annotation(descriptor, ANNOTATION_REF_NAME));
        name.map_or_else(|| format!(":@{at}"), |name| format!(":{}", name.escape_debug()))
    };
    manifests.iter().enumerate().take(16).map(name).collect::<Vec<_>>().join(", ")
}

fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    descriptor.annotations().as_ref()?.get(key).map(String::as_str)
}

/// Whether the descriptor is for this machine; `None` where it does not say.
pub fn suits(descriptor: &Descriptor) -> Option<bool> {
    let platform = descriptor.platform().as_ref()?;
    Some(*platform.os() == Os::Linux && *platform.architecture() == Arch::default())
}
