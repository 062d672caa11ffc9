//! Where the parts of bulkhead are installed.
//!
//! | part | looked for in |
//! |---|---|
//! | `bulkhead-vmm`, `bulkhead-fsd` | `$BULKHEAD_LIBEXEC` if set, else beside `bulkhead` |
//! | `vmlinux`, `initrd.img` | `$BULKHEAD_GUEST_DIR` if set, else `../share/bulkhead` beside `bulkhead`'s directory, else `/usr/share/bulkhead` |
//!
//! The environment is the caller's and so is trusted as the command line is.

use std::env;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::failure::Explain;

/// Directory of `bulkhead-vmm` and `bulkhead-fsd`.
pub const LIBEXEC_ENV: &str = "BULKHEAD_LIBEXEC";
/// Directory of the guest kernel and its initial RAM file system.
pub const GUEST_DIR_ENV: &str = "BULKHEAD_GUEST_DIR";
/// The virtual machine monitor.
pub const VMM: &str = "bulkhead-vmm";
/// The file server.
pub const FSD: &str = "bulkhead-fsd";
/// The guest kernel, an ELF image.
pub const KERNEL: &str = "vmlinux";
/// The initial RAM file system that holds the agent.
pub const INITRD: &str = "initrd.img";

/// Which part is missing.
#[derive(Debug, Error)]
pub enum InstallError {
    /// The own executable cannot be found.
    #[error("the path of this program is unknown")]
    Own(#[source] io::Error),
    /// A program is not where it belongs.
    #[error("{0} is not installed")]
    Program(PathBuf, #[source] io::Error),
    /// The guest kernel or initrd is in none of its places.
    #[error("guest {name} is not installed in {}", list(.places))]
    Guest {
        /// Name of the file.
        name: &'static str,
        /// Where it was looked for.
        places: Vec<PathBuf>,
    },
    /// It is there, but cannot be opened.
    #[error("guest {0} cannot be opened")]
    Open(PathBuf, #[source] io::Error),
}

impl Explain for InstallError {
    fn phase(&self) -> &'static str {
        "finding the installation"
    }

    fn fix(&self) -> String {
        match self {
            Self::Own(_) => "mount /proc".into(),
            Self::Program(..) => format!("install it there, or set {LIBEXEC_ENV}"),
            Self::Guest { .. } => {
                format!("`cargo xtask kernel` builds it; install it there, or set {GUEST_DIR_ENV}")
            }
            Self::Open(..) => "run as a user who may read it".into(),
        }
    }
}

fn list(places: &[PathBuf]) -> String {
    let shown: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
    shown.join(" or ")
}

/// Where the parts are.
#[derive(Debug, Clone)]
pub struct Install {
    libexec: PathBuf,
    guest: Vec<PathBuf>,
}

impl Install {
    /// Finds out from the environment and the path of this program.
    pub fn find() -> Result<Self, InstallError> {
        let own = env::current_exe().map_err(InstallError::Own)?;
        let beside = own.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self::from_parts(
            &beside,
            env::var_os(LIBEXEC_ENV).map(PathBuf::from),
            env::var_os(GUEST_DIR_ENV).map(PathBuf::from),
        ))
    }

    fn from_parts(beside: &Path, libexec: Option<PathBuf>, guest: Option<PathBuf>) -> Self {
        let share = beside.parent().unwrap_or(Path::new("/")).join("share/bulkhead");
        Self {
            libexec: libexec.unwrap_or_else(|| beside.to_owned()),
            guest: match guest {
                Some(dir) => vec![dir],
                None => vec![share, PathBuf::from("/usr/share/bulkhead")],
            },
        }
    }

    /// Path of a program of the installation, which exists.
    pub fn program(&self, name: &str) -> Result<PathBuf, InstallError> {
        let path = self.libexec.join(name);
        match path.metadata() {
            Ok(_) => Ok(path),
            Err(e) => Err(InstallError::Program(path, e)),
        }
    }

    /// Opens a file of the guest.
    pub fn guest_file(&self, name: &'static str) -> Result<File, InstallError> {
        for place in &self.guest {
            let path = place.join(name);
            match File::open(&path) {
                Ok(file) => return Ok(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(InstallError::Open(path, e)),
            }
        }
        let places = self.guest.clone();
        Err(InstallError::Guest { name, places })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Failure;

    #[test]
    fn parts_are_looked_for_beside_the_program_and_in_share() {
        let install = Install::from_parts(Path::new("/opt/bin"), None, None);
        assert_eq!(install.libexec, Path::new("/opt/bin"));
        let places = ["/opt/share/bulkhead", "/usr/share/bulkhead"].map(PathBuf::from);
        assert_eq!(install.guest, places);
    }

    #[test]
    fn missing_guest_kernel_names_places_and_fix() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Some(dir.path().to_owned());
        let install = Install::from_parts(dir.path(), None, guest);
        let shown = Failure::from(install.guest_file(KERNEL).unwrap_err()).to_string();
        assert!(shown.starts_with("finding the installation: guest vmlinux is not installed in /"));
        assert!(shown.ends_with("or set BULKHEAD_GUEST_DIR)"), "{shown}");
        std::fs::write(dir.path().join(KERNEL), "x").unwrap();
        install.guest_file(KERNEL).unwrap();
    }

    #[test]
    fn missing_program_names_its_path() {
        let install = Install::from_parts(Path::new("/nowhere"), None, None);
        let shown = install.program(VMM).unwrap_err().to_string();
        assert_eq!(shown, "/nowhere/bulkhead-vmm is not installed");
    }
}
