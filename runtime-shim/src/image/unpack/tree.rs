//! The tree that a layer is unpacked into, and the only code that turns a member's path into a
//! place in it.
//!
//! The attacks, and what stands against each:
//! - *Absolute paths and `..`*: [`MemberPath`] has neither.
//! - *A symbolic link as a directory of the path* (`x -> /`, then `x/etc/passwd`): directories
//!   are resolved with `RESOLVE_IN_ROOT`, for which the tree is `/`: links work as inside the
//!   container and cannot leave. Magic links and mounts are refused besides.
//! - *A symbolic link as the last component*: it is never followed; files are created with
//!   `O_EXCL`, nodes and links by calls that do not follow, and what was there before is removed.
//! - *Swapping*: a directory is replaced by a link between two members, or a link by what is
//!   made through it (`s -> .`, then `s/s`). Only one directory's descriptor is remembered, and
//!   it is dropped whenever something in the tree is replaced.
//! - *A hard link to a file outside*: the target is looked up like any path, without following
//!   it, and must exist in this layer.
//! - *Whiteouts of `.` and `..`* (`.wh..`, `.wh...`), which would remove a directory that is
//!   not the member's own: refused by name, see the module above.
//! - *Deep paths*: every directory made counts against the budget.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::{self, Errno};

use super::budget::{Budget, Exceeded};
use super::path::MemberPath;
use crate::image::remove::remove_tree;

/// Mode of a directory that no member describes, Docker's choice.
const IMPLICIT_MODE: Mode = Mode::from_raw_mode(0o755);
/// Marks a directory that hides what layers below have at its place (overlayfs).
pub const OPAQUE_XATTR: &CStr = c"trusted.overlay.opaque";
/// How often a lookup is repeated that the kernel calls racy (openat2(2), `EAGAIN`).
const RETRIES: usize = 64;

const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const PLACE_DIRECTORY: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);
const INSIDE: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
const ONE_STEP: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// Why a step in the tree failed.
#[derive(Debug)]
pub enum StepError {
    /// The kernel said no.
    Os(Errno),
    /// The image is larger than allowed.
    Budget(Exceeded),
}

impl From<Errno> for StepError {
    fn from(error: Errno) -> Self {
        Self::Os(error)
    }
}

impl From<Exceeded> for StepError {
    fn from(exceeded: Exceeded) -> Self {
        Self::Budget(exceeded)
    }
}

/// What [`Tree::make_way`] found at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing, or something that is gone now.
    Nothing,
    /// A whiteout, gone now.
    Whiteout,
    /// A directory, which stays.
    Directory,
}

/// A place in the tree: an open directory and a name in it.
pub struct Place {
    /// The directory.
    pub parent: Rc<OwnedFd>,
    /// One component, never `.` or `..`.
    pub name: CString,
}

/// A tree under construction, written by this process alone.
pub struct Tree<'a> {
    root: OwnedFd,
    budget: &'a Budget,
    /// The directory used last: members come in order of directories.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl<'a> Tree<'a> {
    /// The tree below `root`.
    pub fn new(root: OwnedFd, budget: &'a Budget) -> Self {
        Self { root, budget, last: None }
    }

    /// The directory that is the tree's root.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Where `path` is to be made; directories on the way are made where missing. `None` for
    /// the root.
    pub fn place(&mut self, path: &MemberPath) -> Result<Option<Place>, StepError> {
        let Some((directory, name)) = path.split() else { return Ok(None) };
        let parent = match &self.last {
            Some((known, parent)) if known == directory => Rc::clone(parent),
            _ => {
                let parent = Rc::new(self.make_directories(directory)?);
                self.last = Some((directory.to_vec(), Rc::clone(&parent)));
                parent
            }
        };
        Ok(Some(Place { parent, name }))
    }

    /// Where `path` is now; an error if a directory on the way is missing. `None` for the root.
    pub fn existing(&self, path: &MemberPath) -> io::Result<Option<Place>> {
        let Some((directory, name)) = path.split() else { return Ok(None) };
        let parent = Rc::new(self.lookup(directory, PLACE_DIRECTORY)?);
        Ok(Some(Place { parent, name }))
    }

    /// Makes room at `place` for a new member, which is a directory or not. A directory stays
    /// where a directory is wanted; anything else that is there is removed.
    pub fn make_way(&mut self, place: &Place, directory: bool) -> Result<Before, StepError> {
        let Some(stat) = stat(place)? else { return Ok(Before::Nothing) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if directory && kind == FileType::Directory {
            return Ok(Before::Directory);
        }
        self.last = None;
        remove_tree(place.parent.as_fd(), &place.name)?;
        Ok(if is_whiteout(&stat) { Before::Whiteout } else { Before::Nothing })
    }

    /// Counts one file, directory or node against the budget; before it is made.
    pub fn count(&self) -> Result<(), Exceeded> {
        self.budget.take_node()
    }

    /// Opens `path` with the tree as root directory.
    fn lookup(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        open_racy(self.root.as_fd(), path, flags, INSIDE)
    }

    /// Opens the directory `path`, making what is missing.
    fn make_directories(&self, path: &[u8]) -> Result<OwnedFd, StepError> {
        match self.lookup(path, PLACE_DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            result => return Ok(result?),
        }
        let mut current = self.lookup(b"", PLACE_DIRECTORY)?;
        let mut end = 0;
        for component in path.split(|&b| b == b'/') {
            end += component.len();
            current = match self.step(&current, component)? {
                Some(next) => next,
                // A link: only the whole path says where it leads.
                None => self.lookup(&path[..end], PLACE_DIRECTORY)?,
            };
            end += 1;
        }
        Ok(current)
    }

    /// One component below `current`, made if missing; `None` if it is a link.
    fn step(&self, current: &OwnedFd, component: &[u8]) -> Result<Option<OwnedFd>, StepError> {
        let open = || open_racy(current.as_fd(), component, PLACE_DIRECTORY, ONE_STEP);
        let hidden = match open() {
            Ok(next) => return Ok(Some(next)),
            Err(Errno::LOOP) => return Ok(None),
            Err(Errno::NOENT) => false,
            Err(Errno::NOTDIR) => {
                // A whiteout of this layer hides what layers below have; the new directory
                // goes on hiding it.
                let stat = fs::statat(current, component, AtFlags::SYMLINK_NOFOLLOW)?;
                if !is_whiteout(&stat) {
                    return Err(Errno::NOTDIR.into());
                }
                fs::unlinkat(current, component, AtFlags::empty())?;
                true
            }
            Err(error) => return Err(error.into()),
        };
        self.count()?;
        fs::mkdirat(current, component, IMPLICIT_MODE)?;
        let next = open()?;
        // The process's umask must not show in images.
        let listed = fs::openat(&next, c".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        fs::fchmod(&listed, IMPLICIT_MODE)?;
        if hidden {
            set_opaque(listed.as_fd())?;
        }
        Ok(Some(next))
    }
}

impl Place {
    /// Opens what is here without following it.
    pub fn open(&self, flags: OFlags) -> io::Result<OwnedFd> {
        fs::openat(
            &*self.parent,
            &self.name,
            flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    /// A descriptor that only names what is here.
    pub fn open_path(&self) -> io::Result<OwnedFd> {
        self.open(PLACE)
    }
}

/// What is at `place`, if anything.
pub fn stat(place: &Place) -> io::Result<Option<fs::Stat>> {
    match fs::statat(&*place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether overlayfs takes it as "removed here": a character device with number 0.
pub fn is_whiteout(stat: &fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Makes `directory` hide what layers below have at its place.
pub fn set_opaque(directory: BorrowedFd) -> io::Result<()> {
    fs::fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty())
}

/// openat2(2), repeated while the kernel sees renames elsewhere on the system that might
/// matter.
pub fn open_racy(
    directory: BorrowedFd,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let mut result = Err(Errno::AGAIN);
    for _ in 0..RETRIES {
        result = fs::openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN)) {
            break;
        }
    }
    result
}
