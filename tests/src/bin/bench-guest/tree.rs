//! Looking at every file of a tree.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FileType, lstat};

/// As `find -size`: lists every directory and asks for the attributes of every entry. Adds what
/// is no directory to `files`; returns how many entries there are.
pub fn find(directory: &Path, files: &mut Vec<PathBuf>) -> Result<u64> {
    let mut count = 0;
    let entries = fs::read_dir(directory);
    for entry in entries.with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        count += 1;
        if stat(&path)? == FileType::Directory {
            count += find(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(count)
}

/// As `git status` in a clean work tree: asks for the attributes of each file that the index
/// names, then lists each directory for files that it does not. Returns the number of files.
pub fn status(root: &Path, index: &[PathBuf]) -> Result<u64> {
    stat_all(index)?;
    list(root)?;
    Ok(index.len() as u64)
}

/// Asks for the attributes of each of `files`.
pub fn stat_all(files: &[PathBuf]) -> Result<()> {
    files.iter().try_for_each(|file| stat(file).map(drop))
}

/// As these programs do it: `std` would also ask when the file was made.
fn stat(path: &Path) -> Result<FileType> {
    let found = lstat(path).with_context(|| format!("no {}", path.display()))?;
    Ok(FileType::from_raw_mode(found.st_mode))
}

fn list(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Told by the listing, without asking for attributes.
        if entry.file_type()?.is_dir() {
            list(&entry.path())?;
        }
    }
    Ok(())
}
