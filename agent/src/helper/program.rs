//! Finds the program to run as runc does, with runc's words: a caller makes exit codes 127 and 126
//! of them.
//!
//! Runs inside the container, as its user; what it looks at belongs to the container.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, FileType, access, stat},
    io::Errno,
};
use thiserror::Error;

use super::report::FailureKind;

/// Why there is nothing to run. The words are runc's.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProgramError {
    /// No directory of `PATH` has it.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    /// The path does not lead to a file.
    #[error("exec: {name:?}: stat {name}: {}", words(*.errno))]
    NoFile {
        /// As written in `process.args[0]`.
        name: String,
        /// Of stat(2).
        errno: Errno,
    },
    /// A directory.
    #[error("exec: {0:?}: is a directory")]
    Directory(String),
    /// Not executable by this user.
    #[error("exec: {0:?}: permission denied")]
    Denied(String),
}

impl ProgramError {
    /// Exit code 127 or 126.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NotInPath(_) => FailureKind::ProgramMissing,
            Self::NoFile { errno, .. } if *errno != Errno::ACCESS => FailureKind::ProgramMissing,
            _ => FailureKind::ProgramDenied,
        }
    }
}

/// An error number in runc's (Go's) words, which have no capital letter.
pub fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// Resolves `name` from the working directory of this process and the container's `PATH`.
pub fn find(name: &str, path: Option<&str>) -> Result<PathBuf, ProgramError> {
    if name.contains('/') {
        check(Path::new(name), name)?;
        return Ok(PathBuf::from(name));
    }
    path.unwrap_or_default()
        .split(':')
        .map(|directory| match directory {
            "" => Path::new(".").join(name),
            directory => Path::new(directory).join(name),
        })
        .find(|candidate| !name.is_empty() && check(candidate, name).is_ok())
        .ok_or_else(|| ProgramError::NotInPath(name.to_owned()))
}

fn check(file: &Path, name: &str) -> Result<(), ProgramError> {
    let name = || name.to_owned();
    let found = stat(file).map_err(|errno| ProgramError::NoFile { name: name(), errno })?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Err(ProgramError::Directory(name()));
    }
    // A root with every capability passes access(2) only if some execute bit is set, as execve.
    access(file, Access::EXEC_OK).map_err(|_| ProgramError::Denied(name()))
}

/// Value of the last `KEY=` in an environment, as a shell sees it.
pub fn variable<'a>(environment: &'a [String], key: &str) -> Option<&'a str> {
    environment.iter().rev().find_map(|entry| entry.strip_prefix(key)?.strip_prefix('='))
}

/// Home directory of `uid` in the text of `/etc/passwd`.
///
/// Not getpwuid(3): in a static program that loads NSS plugins from the container's own files.
pub fn home(passwd: &[u8], uid: u32) -> Option<&OsStr> {
    passwd.split(|b| *b == b'\n').find_map(|line| {
        let mut fields = line.split(|b| *b == b':').skip(2);
        let owner = std::str::from_utf8(fields.next()?).ok()?;
        let home = fields.nth(2)?;
        (owner.parse() == Ok(uid) && !home.is_empty()).then(|| OsStr::from_bytes(home))
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use proptest::prelude::*;

    use super::*;

    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, mode) in [("run", 0o755), ("text", 0o644)] {
            let file = directory.path().join(name);
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        directory
    }

    #[test]
    fn program_without_slash_is_found_in_path() {
        let directory = directory();
        let path = format!("/nowhere:{}", directory.path().display());
        assert_eq!(find("run", Some(&path)), Ok(directory.path().join("run")));
        for name in ["absent", "text", ""] {
            let error = find(name, Some(&path)).unwrap_err();
            let words = format!("exec: {name:?}: executable file not found in $PATH");
            assert_eq!(error.to_string(), words);
            assert_eq!(error.kind(), FailureKind::ProgramMissing);
        }
    }

    #[test]
    fn program_without_path_variable_is_missing() {
        assert_eq!(find("sh", None), Err(ProgramError::NotInPath("sh".to_owned())));
    }

    #[test]
    fn program_that_does_not_exist_is_reported_as_runc_does() {
        let error = find("/x", None).unwrap_err();
        assert_eq!(error.to_string(), "exec: \"/x\": stat /x: no such file or directory");
        assert_eq!(error.kind(), FailureKind::ProgramMissing);
    }

    #[test]
    fn program_that_is_not_executable_is_denied() {
        let directory = directory();
        let file = directory.path().join("text").display().to_string();
        let error = find(&file, None).unwrap_err();
        assert_eq!(error.to_string(), format!("exec: {file:?}: permission denied"));
        assert_eq!(error.kind(), FailureKind::ProgramDenied);
        let error = find("/etc", None).unwrap_err();
        assert_eq!(error.to_string(), "exec: \"/etc\": is a directory");
        assert_eq!(error.kind(), FailureKind::ProgramDenied);
    }

    #[test]
    fn variable_given_twice_has_its_last_value() {
        let environment = ["PATH=/a", "PATHX=/c", "PATH=/b"].map(str::to_owned);
        assert_eq!(variable(&environment, "PATH"), Some("/b"));
        assert_eq!(variable(&environment, "HOME"), None);
    }

    #[test]
    fn home_is_read_from_passwd() {
        let passwd = b"root:x:0:0::/root:/bin/sh\nbad\nweb:x:1000:1000:Web:/srv/web:/bin/false\n";
        assert_eq!(home(passwd, 1000), Some(OsStr::new("/srv/web")));
        assert_eq!(home(passwd, 0), Some(OsStr::new("/root")));
        assert_eq!(home(passwd, 5), None);
    }

    proptest! {
        #[test]
        fn passwd_of_any_bytes_never_panics(passwd in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = home(&passwd, 0);
        }
    }
}
