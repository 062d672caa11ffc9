//! Unpacks one layer, a tar stream of unknown origin, into a directory (OCI image
//! specification, "Image Layer Filesystem Changeset").
//!
//! Input: hostile bytes. [`tree`] lists the attacks on paths and what stops each; [`budget`]
//! bounds the cost; [`metadata`] says which attributes are taken. Whiteouts become what
//! overlayfs understands: a character device 0:0, or an opaque directory. They concern layers
//! below only, so a member of the same layer wins over them in whatever order the two come.

pub mod budget;
mod metadata;
pub mod path;
pub mod tree;
mod whiteout;

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use self::budget::{Budget, Exceeded};
use self::metadata::Verdict;
use self::path::MemberPath;
use self::tree::{Before, Place, StepError, Tree};
use self::whiteout::{Mark, reserved};
use super::tar::{Kind, Member, SkipRead, TarError, TarReader, Time};

/// How much is copied at a time.
const CHUNK: usize = 128 << 10;

/// Why a layer cannot be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The archive is damaged or not one.
    #[error("the layer is not a valid archive")]
    Archive(#[from] TarError),
    /// A path leaves the layer.
    #[error("member {0:?} has a path with `..`")]
    Climbs(String),
    /// A whiteout that names no plain file.
    #[error("member {0:?} is not a valid whiteout")]
    Whiteout(String),
    /// The root of a layer must be a directory.
    #[error("member {0:?} would replace the root directory")]
    Root(String),
    /// An attribute that belongs to the host.
    #[error("member {path:?} has the extended attribute {name:?}, which an image must not set")]
    Attribute {
        /// The member.
        path: String,
        /// The attribute.
        name: String,
    },
    /// A hard link to something that this layer does not have.
    #[error("member {path:?} is a hard link to {target:?}, which this layer does not have")]
    LinkTarget {
        /// The member.
        path: String,
        /// The target as written.
        target: String,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to make a member.
    #[error("making member {path:?}")]
    Make {
        /// The member.
        path: String,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// Writing the data of a member failed.
    #[error("writing member {path:?}")]
    Write {
        /// The member.
        path: String,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The image is too large.
    #[error(transparent)]
    Budget(#[from] Exceeded),
}

/// Unpacks `layer` into the empty directory `root` and returns the stream, which may have bytes
/// left behind the end of the archive.
pub fn unpack<R: SkipRead>(layer: R, root: OwnedFd, budget: &Budget) -> Result<R, UnpackError> {
    let mut unpacker = Unpacker {
        tree: Tree::new(root, budget),
        budget,
        directories: Vec::new(),
        chunk: vec![0; CHUNK],
    };
    let mut archive = TarReader::new(layer);
    while let Some(member) = archive.next_member()? {
        unpacker.member(&member, &mut archive)?;
    }
    unpacker.finish();
    Ok(archive.into_inner())
}

struct Unpacker<'a> {
    tree: Tree<'a>,
    budget: &'a Budget,
    /// Directories and their times, which are set last because every new entry changes them.
    directories: Vec<(MemberPath, Time)>,
    chunk: Vec<u8>,
}

impl Unpacker<'_> {
    fn member<R: SkipRead>(
        &mut self,
        member: &Member,
        archive: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        let path = MemberPath::parse(&member.path)
            .map_err(|_| UnpackError::Climbs(shown(&member.path)))?;
        check_xattrs(member)?;
        if let Some(mark) = reserved(&path) {
            return self.whiteout(member, &path, mark);
        }
        let step = |error| step_error(&member.path, error);
        let Some(place) = self.tree.place(&path).map_err(step)? else {
            return self.root(member);
        };
        match member.kind {
            Kind::Regular => self.regular(&place, member, archive),
            Kind::Directory => self.directory(&place, &path, member),
            Kind::HardLink => self.hard_link(&place, member),
            _ => self.node(&place, member).map_err(step),
        }
    }

    fn root(&mut self, member: &Member) -> Result<(), UnpackError> {
        if member.kind != Kind::Directory {
            return Err(UnpackError::Root(shown(&member.path)));
        }
        let step = |error: Errno| step_error(&member.path, error.into());
        metadata::apply(self.tree.root(), member).map_err(step)?;
        self.remember(MemberPath::parse(b"").expect("the root is a path"), member.mtime)
    }

    fn remember(&mut self, path: MemberPath, mtime: Time) -> Result<(), UnpackError> {
        // The vector's own slot counts too: names may be one byte long.
        self.budget.take_name(path.as_bytes().len() + size_of::<(MemberPath, Time)>())?;
        self.directories.push((path, mtime));
        Ok(())
    }

    fn regular(
        &mut self,
        place: &Place,
        member: &Member,
        archive: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let step = |error| step_error(&member.path, error);
        let file = self.create(place).map_err(step)?;
        self.copy(&file, member, archive)?;
        metadata::apply(file.as_fd(), member)
            .and_then(|()| metadata::set_mtime(file.as_fd(), member.mtime))
            .map_err(|error| step(error.into()))
    }

    fn create(&mut self, place: &Place) -> Result<std::fs::File, StepError> {
        self.tree.count()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || fs::openat(&*place.parent, &place.name, flags, Mode::RUSR | Mode::WUSR);
        let file = match create() {
            // The usual case costs one call; only a repeated path costs more.
            Err(Errno::EXIST) => {
                self.tree.make_way(place, false)?;
                create()?
            }
            result => result?,
        };
        Ok(std::fs::File::from(file))
    }

    /// Copies the data, region by region if the file is sparse.
    fn copy(
        &mut self,
        file: &std::fs::File,
        member: &Member,
        archive: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let write = |source| UnpackError::Write { path: shown(&member.path), source };
        let whole = [super::tar::Extent { offset: 0, length: member.size }];
        for extent in member.extents.as_deref().unwrap_or(&whole) {
            let mut offset = extent.offset;
            let end = extent.offset + extent.length;
            while offset < end {
                let most =
                    self.chunk.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
                let chunk = &mut self.chunk[..most];
                archive.read_exact(chunk).map_err(TarError::Read)?;
                file.write_all_at(chunk, offset).map_err(write)?;
                offset += most as u64;
            }
        }
        if member.extents.is_some() {
            file.set_len(member.size).map_err(write)?;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        place: &Place,
        path: &MemberPath,
        member: &Member,
    ) -> Result<(), UnpackError> {
        self.make_directory(place, Some(member))
            .map_err(|error| step_error(&member.path, error))?;
        self.remember(path.clone(), member.mtime)
    }

    fn make_directory(
        &mut self,
        place: &Place,
        member: Option<&Member>,
    ) -> Result<OwnedFd, StepError> {
        let before = self.tree.make_way(place, true)?;
        if before != Before::Directory {
            self.tree.count()?;
            fs::mkdirat(&*place.parent, &place.name, Mode::RWXU)?;
        }
        let directory = place.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
        if before == Before::Whiteout {
            tree::set_opaque(directory.as_fd())?;
        }
        if let Some(member) = member {
            metadata::apply(directory.as_fd(), member)?;
        }
        Ok(directory)
    }

    fn hard_link(&mut self, place: &Place, member: &Member) -> Result<(), UnpackError> {
        let missing = |error: Errno| UnpackError::LinkTarget {
            path: shown(&member.path),
            target: shown(&member.link),
            source: error.into(),
        };
        let target = MemberPath::parse(&member.link)
            .map_err(|_| UnpackError::Climbs(shown(&member.link)))?;
        let target = self.tree.existing(&target).map_err(missing)?;
        let target = target.ok_or_else(|| missing(Errno::ISDIR))?;
        let found = tree::stat(&target).map_err(missing)?.ok_or_else(|| missing(Errno::NOENT))?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Err(missing(Errno::ISDIR));
        }
        let step = |error| step_error(&member.path, error);
        let here = tree::stat(place).map_err(|error| step(error.into()))?;
        if here.is_some_and(|here| (here.st_dev, here.st_ino) == (found.st_dev, found.st_ino)) {
            return Ok(());
        }
        self.tree.count()?;
        self.tree.make_way(place, false).map_err(step)?;
        fs::linkat(&*target.parent, &target.name, &*place.parent, &place.name, AtFlags::empty())
            .map_err(|error| step(error.into()))
    }

    /// Symbolic links, devices and pipes.
    fn node(&mut self, place: &Place, member: &Member) -> Result<(), StepError> {
        self.tree.count()?;
        self.tree.make_way(place, false)?;
        let (parent, name) = (&*place.parent, &place.name);
        let private = Mode::RUSR | Mode::WUSR;
        let device = fs::makedev(member.device.0, member.device.1);
        match member.kind {
            Kind::Symlink => fs::symlinkat(member.link.as_slice(), parent, name)?,
            Kind::CharDevice => {
                fs::mknodat(parent, name, FileType::CharacterDevice, private, device)?;
            }
            Kind::BlockDevice => {
                fs::mknodat(parent, name, FileType::BlockDevice, private, device)?;
            }
            _ => fs::mknodat(parent, name, FileType::Fifo, private, 0)?,
        }
        Ok(metadata::apply_at(place, member)?)
    }

    fn whiteout(
        &mut self,
        member: &Member,
        path: &MemberPath,
        mark: Mark,
    ) -> Result<(), UnpackError> {
        let step = |error| step_error(&member.path, error);
        match mark {
            Mark::Ignored => Ok(()),
            Mark::Invalid => Err(UnpackError::Whiteout(shown(&member.path))),
            Mark::Opaque => {
                let place = self.tree.place(path).map_err(step)?;
                let place = place.ok_or_else(|| UnpackError::Whiteout(shown(&member.path)))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                fs::openat(&*place.parent, c".", flags, Mode::empty())
                    .and_then(|directory| tree::set_opaque(directory.as_fd()))
                    .map_err(|error| step(error.into()))
            }
            Mark::Hides(hidden) => self.hide(&hidden).map_err(step),
        }
    }

    /// Hides what layers below have at `path`.
    fn hide(&mut self, path: &MemberPath) -> Result<(), StepError> {
        let place = self.tree.place(path)?.ok_or(Errno::INVAL)?;
        match tree::stat(&place)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                tree::set_opaque(place.open(OFlags::RDONLY | OFlags::DIRECTORY)?.as_fd())?;
            }
            // Anything else of this layer hides it already.
            Some(_) => {}
            None => {
                self.tree.count()?;
                let (parent, name) = (&*place.parent, &place.name);
                fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)?;
            }
        }
        Ok(())
    }

    /// Sets the times of directories. A later member may have replaced one by something else,
    /// and a time is not worth failing for.
    fn finish(&self) {
        for (path, mtime) in &self.directories {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let directory = match self.tree.existing(path) {
                Ok(Some(place)) => place.open(flags),
                Ok(None) => {
                    fs::openat(self.tree.root(), c".", flags | OFlags::CLOEXEC, Mode::empty())
                }
                Err(error) => Err(error),
            };
            if let Ok(directory) = directory {
                let _ = metadata::set_mtime(directory.as_fd(), *mtime);
            }
        }
    }
}

fn check_xattrs(member: &Member) -> Result<(), UnpackError> {
    for (name, _) in &member.xattrs {
        if metadata::judge(name, member.kind) == Verdict::Refuse {
            return Err(UnpackError::Attribute { path: shown(&member.path), name: shown(name) });
        }
    }
    Ok(())
}

fn step_error(path: &[u8], error: StepError) -> UnpackError {
    match error {
        StepError::Os(error) => UnpackError::Make { path: shown(path), source: error.into() },
        StepError::Budget(exceeded) => UnpackError::Budget(exceeded),
    }
}

/// A name of the image in a form for messages: cut, no control characters.
fn shown(name: &[u8]) -> String {
    let cut = &name[..name.len().min(200)];
    cut.escape_ascii().to_string()
}

#[cfg(test)]
mod tests;
