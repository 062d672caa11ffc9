//! Iterates over the members of an archive. Input: an untrusted stream; see the module above
//! for what bounds it.

use std::io::{self, Read};

use super::header::Header;
use super::pax::{Pax, decimal};
use super::sparse::{self, Extent};
use super::{BLOCK, EXTENSION_MAX, EXTENTS_MAX, Kind, Member, PATH_MAX, SkipRead, TarError, Time};

/// Reads members one after the other; [`Read`] gives the data of the current one.
pub struct TarReader<R> {
    inner: R,
    /// Bytes taken from `inner` so far.
    position: u64,
    /// Data bytes of the current member not yet read.
    data: u64,
    /// Zero to 511 bytes that fill its last block.
    padding: u64,
}

/// What extension headers say about the member that follows them.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<R: SkipRead> TarReader<R> {
    /// A reader at the start of an archive.
    pub fn new(inner: R) -> Self {
        Self { inner, position: 0, data: 0, padding: 0 }
    }

    /// Bytes of the archive passed so far: after [`Self::next_member`], where the member's
    /// data starts.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The stream, wherever it stands.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Passes over the rest of the current member and reads the header of the next one; `None`
    /// at the end of the archive. After an error the archive must not be read further.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.pass_rest()?;
            let at = self.position;
            let Some(block) = self.header_block()? else {
                return if extensions.is_empty() { Ok(None) } else { Err(TarError::Extension(at)) };
            };
            let header = Header::new(&block, at)?;
            match header.flag() {
                // Global records are comments of archivers; images do not use them.
                b'g' => self.start_data(header.size()?),
                b'x' => {
                    let bytes = self.extension(&header, at, extensions.pax.is_some())?;
                    extensions.pax = Some(Pax::parse(&bytes).ok_or(TarError::Pax(at))?);
                }
                b'L' => {
                    let bytes = self.extension(&header, at, extensions.long_name.is_some())?;
                    extensions.long_name = Some(until_nul(bytes));
                }
                b'K' => {
                    let bytes = self.extension(&header, at, extensions.long_link.is_some())?;
                    extensions.long_link = Some(until_nul(bytes));
                }
                _ => return self.member(&header, at, extensions).map(Some),
            }
        }
    }

    /// Passes over what is left of the current member. The stream may end in place of the
    /// filling of the last block: umoci writes such layers, and Go's reader takes them.
    fn pass_rest(&mut self) -> Result<(), TarError> {
        let at = self.position;
        let next = at.checked_add(self.data).and_then(|end| end.checked_add(self.padding));
        self.position = next.ok_or(TarError::Number { at, field: "size" })?;
        self.inner.skip(self.data).map_err(TarError::Read)?;
        let padding = std::mem::take(&mut self.padding);
        self.data = 0;
        io::copy(&mut (&mut self.inner).take(padding), &mut io::sink()).map_err(TarError::Read)?;
        Ok(())
    }

    /// The next block unless it is the end mark or the stream ends here.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        let at = self.position;
        match self.block()? {
            None => Ok(None),
            Some(block) if block == [0; BLOCK] => Ok(None),
            Some(_) => Err(TarError::End(at)),
        }
    }

    /// The next block, or `None` where the stream ends.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        self.position = self.position.saturating_add(BLOCK as u64);
        Ok(Some(block))
    }

    fn start_data(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Reads the data of an extension header.
    fn extension(&mut self, header: &Header, at: u64, twice: bool) -> Result<Vec<u8>, TarError> {
        if twice {
            return Err(TarError::Extension(at));
        }
        let size = header.size()?;
        if size > EXTENSION_MAX {
            return Err(TarError::ExtensionSize { at, size });
        }
        self.start_data(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(TarError::Read)?;
        Ok(bytes)
    }

    fn member(&mut self, header: &Header, at: u64, ext: Extensions) -> Result<Member, TarError> {
        let pax = ext.pax.unwrap_or_default();
        let path = ext.long_name.or_else(|| pax.path.clone()).unwrap_or_else(|| header.path());
        let link = ext.long_link.or_else(|| pax.link.clone()).unwrap_or_else(|| header.link());
        let flag = header.flag();
        let kind = kind(flag, &path).ok_or(TarError::Type { at, flag })?;
        let size = match kind {
            Kind::Regular => pax.size.map_or_else(|| header.size(), Ok)?,
            // These have no data whatever the field says; Go's and GNU's readers agree.
            _ => 0,
        };
        let mut member = Member {
            path,
            link,
            kind,
            mode: header.mode()?,
            uid: id(pax.uid.map_or_else(|| header.uid(), Ok)?, at, "uid")?,
            gid: id(pax.gid.map_or_else(|| header.gid(), Ok)?, at, "gid")?,
            mtime: pax
                .mtime
                .map_or_else(|| header.mtime().map(|secs| Time { secs, nanos: 0 }), Ok)?,
            device: match kind {
                Kind::CharDevice | Kind::BlockDevice => header.device()?,
                _ => (0, 0),
            },
            xattrs: Vec::new(),
            size,
            extents: None,
        };
        self.start_data(size);
        if kind == Kind::Regular {
            self.sparse(&mut member, header, &pax, at)?;
        }
        member.xattrs = pax.xattrs;
        check_names(&member).ok_or(TarError::Name(at))?;
        Ok(member)
    }

    /// Finds out whether a regular member is sparse, and reads its map.
    fn sparse(
        &mut self,
        member: &mut Member,
        header: &Header,
        pax: &Pax,
        at: u64,
    ) -> Result<(), TarError> {
        let bad = || TarError::Sparse(at);
        let known = &pax.sparse;
        let (extents, real_size) = if header.flag() == b'S' {
            self.gnu_map(header, at)?
        } else if known.major == Some(1) {
            let extents = self.data_map(at)?;
            (extents, known.real_size.ok_or_else(bad)?)
        } else if let Some(real_size) = known.real_size {
            (sparse::pax_map(known).ok_or_else(bad)?, real_size)
        } else {
            return Ok(());
        };
        if let Some(name) = &known.name {
            member.path.clone_from(name);
        }
        member.extents = Some(sparse::checked(extents, real_size, self.data).ok_or_else(bad)?);
        member.size = real_size;
        Ok(())
    }

    /// Old GNU format: slots in the header and in the blocks after it, before the data.
    fn gnu_map(&mut self, header: &Header, at: u64) -> Result<(Vec<Extent>, u64), TarError> {
        let (slots, mut more, real_size) = header.gnu_sparse()?;
        let mut extents = Vec::new();
        sparse::push_slots(&mut extents, slots).ok_or(TarError::Sparse(at))?;
        let mut blocks = 0;
        while more {
            // A block without a used slot would never reach the limit on extents.
            blocks += 1;
            if blocks > EXTENTS_MAX {
                return Err(TarError::Sparse(at));
            }
            let block = self.block()?.ok_or(TarError::Sparse(at))?;
            let (slots, next) = sparse::extension(&block);
            sparse::push_slots(&mut extents, slots).ok_or(TarError::Sparse(at))?;
            more = next;
        }
        Ok((extents, real_size))
    }

    /// Format 1.0: the map is decimal lines in the blocks at the start of the data.
    fn data_map(&mut self, at: u64) -> Result<Vec<Extent>, TarError> {
        let bad = || TarError::Sparse(at);
        let (mut numbers, mut text) = (Vec::new(), Vec::new());
        // The first number counts the pairs after it.
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            self.read_exact(&mut block).map_err(TarError::Read)?;
            text.extend_from_slice(&block);
            while let Some(end) = text.iter().position(|&b| b == b'\n') {
                if numbers.len() == wanted {
                    break;
                }
                numbers.push(decimal(&text[..end]).ok_or_else(bad)?);
                text.drain(..=end);
                if numbers.len() == 1 {
                    let pairs = usize::try_from(numbers[0]).map_err(|_| bad())?;
                    wanted = 1 + 2 * Some(pairs).filter(|n| *n <= EXTENTS_MAX).ok_or_else(bad)?;
                }
            }
            if numbers.len() < wanted && text.len() > BLOCK {
                return Err(bad());
            }
        }
        sparse::pairs(&numbers[1..]).ok_or_else(bad)
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= read as u64;
        self.position = self.position.saturating_add(read as u64);
        Ok(read)
    }
}

fn kind(flag: u8, path: &[u8]) -> Option<Kind> {
    Some(match flag {
        // V7 has no flag for directories.
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::Regular,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return None,
    })
}

/// An owner. The largest number means "unchanged" to chown(2), which would leave root's.
fn id(value: u64, at: u64, field: &'static str) -> Result<u32, TarError> {
    u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or(TarError::Number { at, field })
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn check_names(member: &Member) -> Option<()> {
    let fits = |name: &[u8]| name.len() <= PATH_MAX && !name.contains(&0);
    let links = matches!(member.kind, Kind::HardLink | Kind::Symlink);
    let path = !member.path.is_empty() && fits(&member.path);
    (path && fits(&member.link) && !(links && member.link.is_empty())).then_some(())
}
