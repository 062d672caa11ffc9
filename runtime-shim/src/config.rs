//! The operator's file `/etc/bulkhead/config.toml`.
//!
//! Whoever can write it decides what containers may ask for, so it must belong to root alone, as
//! must its directory.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::failure::Explain;
use crate::plan::{POLICY_FILE, Policy, PolicyError, RawPolicy};

/// Largest file, in bytes.
const LENGTH_MAX: u64 = 64 << 10;
/// Bits of a mode by which others than the owner can write.
const WRITABLE: u32 = 0o022;
/// Whose the file must be.
const ROOT: u32 = 0;

/// Why the operator's file cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be opened or read.
    #[error("{0}")]
    Read(PathBuf, #[source] io::Error),
    /// It is no regular file, or its directory none.
    #[error("{0} is not what it should be: a directory with a regular file")]
    Kind(PathBuf),
    /// Somebody else could have written it.
    #[error(
        "{path} belongs to user {uid} with mode {mode:o}, and others than root could change it"
    )]
    Owner {
        /// File or directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// Longer than a configuration is.
    #[error("{0} is too long (at most {LENGTH_MAX} bytes)")]
    Long(PathBuf),
    /// Not the TOML that is asked for.
    #[error("{path}, line {line}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Values that cannot be.
    #[error("{0}")]
    Policy(PathBuf, #[source] PolicyError),
}

impl Explain for ConfigError {
    fn phase(&self) -> &'static str {
        "reading the host's configuration"
    }

    fn fix(&self) -> String {
        match self {
            Self::Owner { path, .. } => {
                format!("chown root {0} && chmod go-w {0}", path.display())
            }
            Self::Malformed { .. } | Self::Policy(..) => "docs/oci.md describes the file".into(),
            Self::Read(..) | Self::Kind(_) | Self::Long(_) => String::new(),
        }
    }
}

/// What this host's operator allows.
pub fn policy() -> Result<Policy, ConfigError> {
    read(Path::new(POLICY_FILE), ROOT)
}

fn read(path: &Path, owner: u32) -> Result<Policy, ConfigError> {
    let failed = |e| ConfigError::Read(path.to_owned(), e);
    // O_NONBLOCK: opening a FIFO must not wait for a writer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Policy::default()),
        opened => opened.map_err(failed)?,
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    let meta = directory.metadata().map_err(failed)?;
    check(directory, &meta, meta.is_dir(), owner)?;
    let meta = file.metadata().map_err(failed)?;
    check(path, &meta, meta.is_file(), owner)?;
    let mut bytes = vec![];
    file.take(LENGTH_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LENGTH_MAX {
        return Err(ConfigError::Long(path.to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|e| failed(io::Error::other(e)))?;
    parse(path, &text)
}

/// That nobody but the owner can have written it.
fn check(path: &Path, meta: &Metadata, kind: bool, owner: u32) -> Result<(), ConfigError> {
    let (uid, mode) = (meta.uid(), meta.mode() & 0o7777);
    match (kind, uid == owner && mode & WRITABLE == 0) {
        (true, true) => Ok(()),
        (false, _) => Err(ConfigError::Kind(path.to_owned())),
        (true, false) => Err(ConfigError::Owner { path: path.to_owned(), uid, mode }),
    }
}

fn parse(path: &Path, text: &str) -> Result<Policy, ConfigError> {
    let raw: RawPolicy = toml::from_str(text).map_err(|e| {
        let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let message = e.message().replace('\n', " ");
        ConfigError::Malformed { path: path.to_owned(), line, message }
    })?;
    Policy::try_from(raw).map_err(|e| ConfigError::Policy(path.to_owned(), e))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::failure::Failure;

    /// A directory with a file of this content and mode, and who owns both.
    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf, u32) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let own = dir.path().metadata().unwrap().uid();
        (dir, path, own)
    }

    #[test]
    fn file_of_the_owner_alone_is_read() {
        let (dir, path, own) = file("[limits]\nvcpus = 2\n", 0o644);
        read(&path, own).unwrap();
        let refused = read(&path, own + 1).unwrap_err();
        assert!(matches!(refused, ConfigError::Owner { path, .. } if path == dir.path()));
        for mode in [0o664, 0o646] {
            let (_dir, path, own) = file("", mode);
            let refused = Failure::from(read(&path, own).unwrap_err()).to_string();
            assert!(refused.contains("others than root could change it"), "{refused}");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(read(&path, own), Err(ConfigError::Owner { .. })));
    }

    #[test]
    fn without_a_file_everything_is_as_by_default() {
        read(Path::new("/nowhere/config.toml"), 0).unwrap();
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let (dir, path, own) = file("", 0o600);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(read(&link, own), Err(ConfigError::Read(..))));
        assert!(matches!(
            read(dir.path(), own),
            Err(ConfigError::Kind(_) | ConfigError::Owner { .. })
        ));
        let long = " ".repeat(LENGTH_MAX as usize + 1);
        let (_dir, path, own) = file(&long, 0o600);
        assert!(matches!(read(&path, own), Err(ConfigError::Long(_))));
    }

    #[test]
    fn mistake_is_told_with_its_line() {
        let (_dir, path, own) = file("[limits]\nvcpus = 2\nvcpu = 3\n", 0o600);
        let shown = Failure::from(read(&path, own).unwrap_err()).to_string();
        assert!(shown.contains("config.toml, line 3: unknown field `vcpu`"), "{shown}");
        let (_dir, path, own) = file("[limits]\nvcpus = 33\n", 0o600);
        let shown = Failure::from(read(&path, own).unwrap_err()).to_string();
        assert!(shown.contains("limits.vcpus: 33 is not from 1 to 32"), "{shown}");
    }

    #[test]
    fn example_of_the_document_is_a_configuration() {
        let document = include_str!("../../docs/oci.md");
        let (_, rest) = document.split_once("```toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        parse(Path::new("docs/oci.md"), example).unwrap();
    }
}
