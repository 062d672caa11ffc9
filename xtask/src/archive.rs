//! Initial RAM file systems: deterministic `newc` cpio archives, uncompressed, because unpacking
//! costs a guest more than reading.

use std::io;

use anyhow::{Context, Result};
use cpio::NewcBuilder;
use cpio::newc::trailer;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive that is being written. Parents come before their children, as the kernel unpacks
/// in order.
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self { bytes: Vec::new(), inode: 1 }
    }

    /// Add the directory `path` (no leading slash) with permissions `mode`.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.entry(NewcBuilder::new(path).mode(DIRECTORY | mode), &[])
            .with_context(|| format!("cannot add the directory {path}"))
    }

    /// Add the file `path` with permissions `mode`.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.entry(NewcBuilder::new(path).mode(REGULAR | mode), contents)
            .with_context(|| format!("cannot add the file {path}"))
    }

    /// Add the character device `path`.
    pub fn character_device(
        &mut self,
        path: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<()> {
        let entry = NewcBuilder::new(path).mode(CHARACTER_DEVICE | mode);
        self.entry(entry.rdev_major(major).rdev_minor(minor), &[])
            .with_context(|| format!("cannot add the device {path}"))
    }

    /// The finished archive.
    pub fn finish(self) -> Result<Vec<u8>> {
        trailer(self.bytes).context("cannot end the archive")
    }

    fn entry(&mut self, entry: NewcBuilder, contents: &[u8]) -> Result<()> {
        let size = u32::try_from(contents.len()).context("larger than a cpio entry can be")?;
        let mut writer = entry.ino(self.inode).nlink(1).write(&mut self.bytes, size);
        io::Write::write_all(&mut writer, contents)?;
        writer.finish()?;
        self.inode += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.directory("dev", 0o755).unwrap();
        archive.character_device("dev/console", 0o600, 5, 1).unwrap();
        archive.file("init", 0o755, b"12345").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn archive_entries_read_back() {
        let mut rest = io::Cursor::new(sample());
        let mut seen = Vec::new();
        loop {
            let reader = cpio::NewcReader::new(rest).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            seen.push((
                entry.name().to_owned(),
                entry.mode(),
                entry.rdev_major(),
                entry.file_size(),
            ));
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("dev".to_owned(), 0o040_755, 0, 0),
            ("dev/console".to_owned(), 0o020_600, 5, 0),
            ("init".to_owned(), 0o100_755, 0, 5),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn archive_same_input_same_bytes() {
        assert_eq!(sample(), sample());
    }
}
