//! An image in a tar archive: its members are found once, and read in place.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, FileType, Mode, OFlags};

use super::{Blob, BlobReader, SourceError, open_error};
use crate::image::decoder::Decoder;
use crate::image::tar::{Kind, Member, SkipRead, TarReader};
use crate::image::unpack::path::MemberPath;

/// Most members of an image archive. A large image has a few hundred.
const MEMBERS_MAX: usize = 1 << 14;
/// Longest chain of links between members.
const LINKS_MAX: usize = 8;

/// An archive and where its members lie.
pub struct Archive {
    members: HashMap<Vec<u8>, Place>,
}

enum Place {
    File(Blob),
    /// `docker save` before 25 stores a layer that two images share once, and a link.
    Link(Vec<u8>),
}

impl Archive {
    /// Opens `path`, which is a regular file: a pipe cannot be read in place.
    pub fn open_at(path: &Path) -> Result<Blob, SourceError> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty()).map_err(|error| open_error(path, error))?;
        let stat = fs::fstat(&fd).map_err(|error| open_error(path, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(SourceError::NotRegular(path.display().to_string()));
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Blob::new(Arc::new(File::from(fd)), 0, size))
    }

    /// Finds the members of `file`, which was opened at `path`.
    pub fn index(file: &Blob, path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Archive { path: path.display().to_string(), source };
        let mut archive = TarReader::new(file.reader());
        let mut members = HashMap::new();
        let mut count = 0;
        while let Some(member) = archive.next_member().map_err(failed)? {
            count += 1;
            if count > MEMBERS_MAX {
                return Err(SourceError::Members(MEMBERS_MAX));
            }
            let Some((name, place)) = locate(&member, file, archive.position()) else { continue };
            if members.insert(name, place).is_some() {
                return Err(SourceError::Twice(member.path.escape_ascii().to_string()));
            }
        }
        Ok(Self { members })
    }

    /// The file `name`, links followed.
    pub fn open(&self, name: &str) -> Option<Blob> {
        let mut name = MemberPath::parse(name.as_bytes()).ok()?.as_bytes().to_vec();
        for _ in 0..LINKS_MAX {
            match self.members.get(&name)? {
                Place::File(blob) => return Some(blob.clone()),
                Place::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

/// Name and place of a member that can be a file of an image.
fn locate(member: &Member, file: &Blob, position: u64) -> Option<(Vec<u8>, Place)> {
    let name = MemberPath::parse(&member.path).ok()?.as_bytes().to_vec();
    let place = match member.kind {
        Kind::Regular if member.extents.is_none() => {
            Place::File(Blob::new(Arc::clone(&file.file), file.offset + position, member.size))
        }
        Kind::HardLink => Place::Link(resolve(b"", &member.link)?),
        Kind::Symlink => Place::Link(resolve(&name, &member.link)?),
        _ => return None,
    };
    Some((name, place))
}

/// The member that a link at `name` means; `None` if it leaves the archive. There are no
/// directories to go through here, so `..` is taken by its letters.
fn resolve(name: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = name.split(|&b| b == b'/').collect();
    parts.pop();
    for part in target.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

impl SkipRead for BlobReader {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.advance(bytes)
    }
}

/// Decompresses `file` into a file without a name in `directory`, at most `limit` bytes.
pub fn expand(file: &Blob, path: &Path, directory: &Path, limit: u64) -> Result<Blob, SourceError> {
    let failed = |source| SourceError::Expand { path: path.display().to_string(), source };
    let decoder = Decoder::new(
        BufReader::with_capacity(64 << 10, file.reader()),
        &file.magic().map_err(failed)?,
    );
    let mut target = nameless(directory).map_err(failed)?;
    let copied = decoder
        .and_then(|decoder| io::copy(&mut decoder.take(limit.saturating_add(1)), &mut target))
        .and_then(|copied| target.flush().map(|()| copied))
        .map_err(failed)?;
    if copied > limit {
        return Err(SourceError::Large { path: path.display().to_string(), limit });
    }
    Ok(Blob::new(Arc::new(target), 0, copied))
}

/// A file that vanishes with its descriptor, however this process ends.
fn nameless(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?))
}
