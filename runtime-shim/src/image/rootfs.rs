//! Looks into a container's root file system from the host, and prepares a few things there.
//!
//! The tree is hostile: paths are resolved with the tree as root directory, magic links and
//! mounts refused, and only regular files are read, without waiting and up to a bound.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::copy::copy_directory;
use super::unpack::path::MemberPath;
use super::unpack::tree::open_racy;

const INSIDE: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
/// A pipe does not block, a terminal does not become ours.
const HARMLESS: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY);
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// The root directory of a container.
#[derive(Debug, Clone, Copy)]
pub struct Rootfs<'a>(BorrowedFd<'a>);

impl<'a> Rootfs<'a> {
    /// Works in the directory `root`.
    pub fn new(root: &'a OwnedFd) -> Self {
        Self(root.as_fd())
    }

    /// Reads the regular file `path`, at most `max` bytes; `None` if there is none.
    pub fn read(&self, path: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open(path.as_bytes(), OFlags::RDONLY | HARMLESS) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            result => result?,
        };
        regular(&file)?;
        let mut bytes = Vec::new();
        File::from(file).take(max.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(Errno::FBIG.into());
        }
        Ok(Some(bytes))
    }

    /// Makes the regular file `path` hold just `content`; its directory must be there.
    pub fn write(&self, path: &str, content: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | HARMLESS;
        let file = match self.open(path.as_bytes(), flags) {
            Err(Errno::NOENT) => {
                let mode = Mode::from_raw_mode(0o644);
                let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = fs::openat2(self.0, path, flags, mode, INSIDE)?;
                fs::fchmod(&file, mode)?;
                file
            }
            result => result?,
        };
        regular(&file)?;
        fs::ftruncate(&file, 0)?;
        File::from(file).write_all(content)
    }

    /// Makes the directory `path` and those above it where missing, owned by root, mode 0755.
    pub fn make_directory(&self, path: &str) -> io::Result<()> {
        let path = MemberPath::parse(path.as_bytes()).map_err(|_| Errno::INVAL)?;
        let path = path.as_bytes();
        let ends = path.iter().enumerate().filter(|&(_, &b)| b == b'/').map(|(at, _)| at);
        let mut parent = self.open(b".", DIRECTORY)?;
        let mut start = 0;
        for end in ends.chain([path.len()]).filter(|&end| end != 0) {
            let opened = match self.open(&path[..end], DIRECTORY) {
                Err(Errno::NOENT) => {
                    fs::mkdirat(&parent, &path[start..end], Mode::from_raw_mode(0o755))?;
                    self.open(&path[..end], DIRECTORY)
                }
                result => result,
            };
            parent = opened?;
            start = end + 1;
        }
        Ok(())
    }

    /// Copies the directory `path` with all that it holds to the empty directory `target`.
    pub fn copy_directory(&self, path: &str, target: &OwnedFd) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        copy_directory(self.open(path.as_bytes(), flags)?.as_fd(), target.as_fd())
    }

    fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        open_racy(self.0, path, flags, INSIDE)
    }
}

fn regular(file: &OwnedFd) -> rustix::io::Result<()> {
    match FileType::from_raw_mode(fs::fstat(file)?.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::INVAL),
    }
}
