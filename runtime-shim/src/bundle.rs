//! Reads a bundle's `config.json` (OCI runtime specification, `bundle.md`) and `process.json`.
//!
//! Hostile input: a bundle may come from anywhere. Files are bounded before they are read, and
//! only regular files are read, so that a FIFO cannot hold the runtime up.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bulkhead_protocol::limits::SPEC_MAX;
use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use serde_ignored::Path as Unknown;
use serde_path_to_error::{Path as Wrong, Track};
use thiserror::Error;

use crate::failure::{Explain, printable};

/// Name of the configuration inside a bundle.
pub const CONFIG: &str = "config.json";
/// Configuration of FreeBSD jails (version 1.3 of the specification).
const FREEBSD: &str = "freebsd";
/// Bytes of names of unknown fields beyond which no further one is kept.
const NAMES_MAX: usize = 64 << 10;
/// What stands for those that are not kept.
const MORE: &str = "... and more";

/// Why a bundle cannot be read.
#[derive(Debug, Error)]
pub enum BundleError {
    /// The bundle directory cannot be resolved.
    #[error("{}", .0.join(CONFIG).display())]
    Directory(PathBuf, #[source] io::Error),
    /// The file does not exist; runc's words, which its clients look for.
    #[error("JSON specification file {0} not found")]
    Missing(PathBuf),
    /// The file cannot be opened or read.
    #[error("{0}")]
    Read(PathBuf, #[source] io::Error),
    /// Not a regular file.
    #[error("{0} is not a regular file")]
    Kind(PathBuf),
    /// Larger than [`SPEC_MAX`].
    #[error("{0} is too long (at most {SPEC_MAX} bytes)")]
    Long(PathBuf),
    /// A field of another operating system that the types of the specification do not have.
    #[error("{0}: only Linux containers are run")]
    Platform(&'static str),
    /// Not the JSON that the specification asks for.
    #[error("{} is malformed{}", .file.display(), named(.field))]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The field, as `process.args[1]`; empty if none is to blame.
        field: String,
        /// What is wrong with it, and where.
        #[source]
        source: serde_json::Error,
    },
}

impl Explain for BundleError {
    fn phase(&self) -> &'static str {
        "reading the bundle"
    }

    fn fix(&self) -> String {
        match self {
            Self::Directory(..) => "give an existing directory with --bundle".into(),
            Self::Missing(_) => "`bulkhead spec` writes one".into(),
            Self::Kind(_) | Self::Read(..) => String::new(),
            Self::Long(_) => "shorten it".into(),
            Self::Platform(field) => format!("remove {field} from {CONFIG}"),
            Self::Malformed { .. } => "compare it with the output of `bulkhead spec`".into(),
        }
    }
}

/// The bundle's absolute path without symbolic links.
pub fn resolve(bundle: &Path) -> Result<PathBuf, BundleError> {
    bundle.canonicalize().map_err(|e| BundleError::Directory(bundle.to_owned(), e))
}

/// A bundle's configuration.
#[derive(Debug)]
pub struct Config {
    /// What of it the specification names.
    pub spec: Spec,
    /// Names of the rest, which is ignored, as the specification demands (`config.md`,
    /// "Extensibility").
    pub unknown: Vec<String>,
}

/// The bundle's configuration.
pub fn read_spec(bundle: &Path) -> Result<Config, BundleError> {
    let (spec, unknown) = read_json(&bundle.join(CONFIG))?;
    match unknown.freebsd {
        true => Err(BundleError::Platform(FREEBSD)),
        false => Ok(Config { spec, unknown: unknown.names }),
    }
}

/// A `process` object, as `exec --process` takes it.
pub fn read_process(path: &Path) -> Result<Process, BundleError> {
    read_json(path).map(|(process, _)| process)
}

/// The value in a file, and the fields that are no part of it.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<(T, Unknowns), BundleError> {
    let bytes = read_bounded(path)?;
    // serde takes an array for a structure, too; the specification does not.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        let source = serde::de::Error::custom("an object is wanted");
        return Err(BundleError::Malformed { file: path.to_owned(), field: String::new(), source });
    }
    let mut unknown = Unknowns::default();
    let mut json = serde_json::Deserializer::from_slice(&bytes);
    let mut track = Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let value = serde_ignored::deserialize(tracked, |field| unknown.add(&field));
    let value = value.and_then(|value| json.end().map(|()| value));
    let value = value.map_err(|source| malformed(path, &track.path(), source))?;
    Ok((value, unknown))
}

fn malformed(file: &Path, field: &Wrong, source: serde_json::Error) -> BundleError {
    // A key can be as long as the file.
    let field = field.iter().next().map(|_| printable(&field.to_string())).unwrap_or_default();
    BundleError::Malformed { file: file.to_owned(), field, source }
}

/// How a message goes on with the name of a field.
fn named(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!(": {field}") }
}

/// Fields that are no part of what was read.
#[derive(Debug, Default)]
struct Unknowns {
    names: Vec<String>,
    bytes: usize,
    freebsd: bool,
}

impl Unknowns {
    /// Each name has those of all that the field is in: of long ones, a short text holds enough to
    /// fill the memory. What is beyond [`NAMES_MAX`] is told by one name for all.
    fn add(&mut self, field: &Unknown<'_>) {
        self.freebsd |=
            matches!(field, Unknown::Map { parent: Unknown::Root, key } if key == FREEBSD);
        if self.bytes > NAMES_MAX {
            return;
        }
        self.names.push(name(field));
        self.bytes += self.names.last().map_or(0, String::len) + size_of::<String>();
        if self.bytes > NAMES_MAX {
            self.names.push(MORE.to_owned());
        }
    }
}

/// A field as messages have it: `linux.devices[0].x`.
fn name(field: &Unknown<'_>) -> String {
    match field {
        Unknown::Root => String::new(),
        Unknown::Seq { parent, index } => format!("{}[{index}]", name(parent)),
        Unknown::Map { parent, key } => match name(parent) {
            outer if outer.is_empty() => key.clone(),
            outer => format!("{outer}.{key}"),
        },
        Unknown::Some { parent }
        | Unknown::NewtypeStruct { parent }
        | Unknown::NewtypeVariant { parent } => name(parent),
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, BundleError> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => BundleError::Missing(path.to_owned()),
        _ => BundleError::Read(path.to_owned(), e),
    };
    // O_NONBLOCK: opening a FIFO must not wait for a writer.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(BundleError::Kind(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(SPEC_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > SPEC_MAX {
        return Err(BundleError::Long(path.to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;

    fn refused(content: &[u8]) -> BundleError {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONFIG), content).unwrap();
        read_spec(dir.path()).unwrap_err()
    }

    #[test]
    fn missing_config_names_the_file_in_runcs_words() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Failure::from(read_spec(dir.path()).unwrap_err());
        assert!(failure.to_string().starts_with("reading the bundle: JSON specification file"));
        assert!(failure.cause.ends_with("config.json not found"));
    }

    #[test]
    fn config_that_is_not_the_json_asked_for_is_malformed() {
        for content in [&b""[..], b"[]", b"{\"process\": 7}", b"\xff"] {
            assert!(matches!(refused(content), BundleError::Malformed { .. }), "{content:?}");
        }
    }

    #[test]
    fn malformed_field_is_named_with_its_place_in_the_file() {
        let cause = |content: &str| Failure::from(refused(content.as_bytes())).cause;
        let says = |content: &str, words: &str| {
            let cause = cause(content);
            assert!(cause.contains(words), "{cause}");
        };
        let number = "config.json is malformed: mounts[1].options: invalid type: integer `7`, \
                      expected a sequence at line 2 column 34";
        says(
            "{\"mounts\": [{\"destination\": \"/a\"},\n{\"destination\": \"/b\", \"options\": 7}]}",
            number,
        );
        says("[]", "config.json is malformed: an object is wanted");
        says("", "config.json is malformed: EOF while parsing");
        let key = "k".repeat(100_000);
        let long = cause(&format!(r#"{{"linux": {{"sysctl": {{"{key}": 1}}}}}}"#));
        assert!(long.contains("linux.sysctl.kkk") && long.len() < 1000, "{}", long.len());
    }

    #[test]
    fn fields_that_the_specification_does_not_have_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"x": 1, "root": {"path": "r", "y": {}}, "mounts": [{"destination": "/a",
            "z": []}], "linux": {"resources": {"memory": {"w": null}}}}"#;
        std::fs::write(dir.path().join(CONFIG), text).unwrap();
        let config = read_spec(dir.path()).unwrap();
        let expected = ["x", "root.y", "mounts[0].z", "linux.resources.memory.w"];
        assert_eq!(config.unknown, expected);
        assert!(matches!(refused(b"{} x"), BundleError::Malformed { .. }));
    }

    #[test]
    fn names_of_unknown_fields_are_bounded_and_freebsd_is_found_behind_them() {
        let dir = tempfile::tempdir().unwrap();
        let fields = vec![r#""a":0"#; 50_000].join(",");
        let key = "k".repeat(500_000);
        let limits = format!(r#"{{"resources": {{"rdma": {{"{key}": {{{fields}}}}}}}}}"#);
        let write = |last: &str| {
            let text = format!(r#"{{"linux": {limits}{last}}}"#);
            std::fs::write(dir.path().join(CONFIG), text).unwrap();
        };
        write("");
        let unknown = read_spec(dir.path()).unwrap().unknown;
        assert_eq!((unknown.len(), unknown[1].as_str()), (2, MORE));
        write(r#", "freebsd": {}"#);
        assert!(matches!(read_spec(dir.path()), Err(BundleError::Platform(FREEBSD))));
    }

    #[test]
    fn config_beyond_the_bound_is_refused() {
        let content = vec![b' '; SPEC_MAX + 1];
        assert!(matches!(refused(&content), BundleError::Long(_)));
    }

    #[test]
    fn config_that_is_a_directory_or_fifo_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONFIG);
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(read_spec(dir.path()), Err(BundleError::Kind(_))));
        std::fs::remove_dir(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
        assert!(matches!(read_spec(dir.path()), Err(BundleError::Kind(_))));
    }
}
