//! A file system of the host that a test has for itself.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::run;

/// An ext4 file system in a file, mounted until it is dropped.
pub struct Ext4 {
    directory: TempDir,
}

impl Ext4 {
    /// One of `mib` MiB.
    pub fn new(mib: u64) -> Self {
        // Plain memory on an emulated host, and a file system that has holes everywhere.
        let directory = tempfile::Builder::new().prefix("ext4-").tempdir_in("/var/tmp");
        let disk = Self { directory: directory.expect("a directory") };
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(disk.directory.path(), open).expect("its mode");
        let image = disk.directory.path().join("image");
        File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("an image");
        let at = disk.path();
        std::fs::create_dir(&at).expect("a directory");
        run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-m", "0"]).arg(&image)).expect(0);
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at)).expect(0);
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("at")
    }

    /// A new directory in it.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir(&path).expect("a directory of the disk");
        path
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}

/// A mount of the host, undone when it is dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// `mount WORDS... AT`.
    #[track_caller]
    pub fn new(words: &[&str], at: &Path) -> Self {
        run(Command::new("mount").args(words).arg(at)).expect(0);
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// Also when something in it is still open.
fn unmount(at: &Path) {
    run(Command::new("umount").arg("--lazy").arg(at));
}
