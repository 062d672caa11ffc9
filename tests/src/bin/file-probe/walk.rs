//! A walk over a tree that somebody changes: reads, follows and writes all that can be reached,
//! again and again.
//!
//! In the directory `STABLE` the test finds how far it is (`progress`: rounds, files read, files
//! with the secret in them), and ends it (`stop`).

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::Errno;

/// Levels that are gone down: loops of links must end.
const DEPTH: u32 = 6;

/// What was met.
struct Seen<'a> {
    secret: &'a str,
    files: u64,
    secrets: u64,
    errors: BTreeMap<i32, u64>,
}

/// Walks until told to stop; then says on standard output which errors there were.
pub fn walk(tree: &Path, stable: &Path, secret: &str) -> Result<()> {
    let mut seen = Seen { secret, files: 0, secrets: 0, errors: BTreeMap::new() };
    let mut rounds = 0_u64;
    while !stable.join("stop").exists() {
        match rustix::fs::open(tree, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(top) => seen.directory(&top, DEPTH),
            Err(errno) => seen.error(errno),
        }
        rounds += 1;
        let text = format!("{rounds} {} {}", seen.files, seen.secrets);
        fs::write(stable.join("new"), text).context("telling")?;
        fs::rename(stable.join("new"), stable.join("progress")).context("telling")?;
    }
    for (errno, count) in &seen.errors {
        println!("{errno} {count}");
    }
    Ok(())
}

impl Seen<'_> {
    fn error(&mut self, errno: Errno) {
        *self.errors.entry(errno.raw_os_error()).or_default() += 1;
    }

    fn directory(&mut self, directory: &OwnedFd, depth: u32) {
        self.plant(directory);
        // From a directory that may lie elsewhere by now.
        for name in [c"../outside/secret", c"../../outside/secret", c"../../../outside/secret"] {
            self.entry(directory, name, 1);
        }
        let mut listed = match Dir::read_from(directory) {
            Ok(listed) => listed,
            Err(errno) => return self.error(errno),
        };
        while let Some(entry) = listed.read() {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => self.entry(directory, entry.file_name(), depth),
                Err(errno) => return self.error(errno),
            }
        }
    }

    /// Goes through links: the kernel of the guest follows them, as for any program.
    fn entry(&mut self, directory: &OwnedFd, name: &CStr, depth: u32) {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(directory, name, flags | OFlags::DIRECTORY, Mode::empty()) {
            Ok(below) if depth > 1 => return self.directory(&below, depth - 1),
            Ok(_) => return,
            Err(Errno::NOTDIR) => {}
            Err(errno) => return self.error(errno),
        }
        match openat(directory, name, flags, Mode::empty()) {
            Ok(file) => self.file(File::from(file)),
            Err(errno) => self.error(errno),
        }
    }

    fn file(&mut self, mut file: File) {
        let mut content = Vec::new();
        match file.read_to_end(&mut content) {
            Ok(_) => self.files += 1,
            Err(error) => self.error(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
        if content.windows(self.secret.len()).any(|part| part == self.secret.as_bytes()) {
            self.secrets += 1;
        }
    }

    /// Writes, by a name that a directory has now.
    fn plant(&mut self, directory: &OwnedFd) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        match openat(directory, c"planted", flags, Mode::RUSR) {
            Ok(file) => {
                if let Err(error) = File::from(file).write_all(b"by the guest") {
                    self.error(Errno::from_io_error(&error).unwrap_or(Errno::IO));
                }
            }
            Err(errno) => self.error(errno),
        }
    }
}
