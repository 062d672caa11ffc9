//! Unpacking a tar archive (GNU format, sorted names) with the system calls of GNU tar.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps};
use rustix::process::{Gid, Uid};

/// Bytes of a block of an archive.
const BLOCK: usize = 512;
/// Bytes that GNU tar reads and writes at a time.
const RECORD: usize = 20 * BLOCK;

/// Unpacks `archive` below `root`; returns the number of entries.
pub fn unpack(archive: File, root: &Path) -> Result<u64> {
    let mut archive = BufReader::with_capacity(RECORD, archive);
    let mut directories = Vec::new();
    let mut count = 0;
    let mut long = Long::default();
    while let Some(header) = Header::read(&mut archive)? {
        match header.kind {
            b'L' => long.name = Some(text(&mut archive, header.size)?),
            b'K' => long.link = Some(text(&mut archive, header.size)?),
            _ => {
                let Long { name, link } = std::mem::take(&mut long);
                let path = root.join(name.unwrap_or(header.name.clone()));
                let link = link.unwrap_or(header.link.clone());
                entry(&mut archive, &header, &path, &link, root)
                    .with_context(|| format!("unpacking {}", path.display()))?;
                if header.kind == b'5' {
                    directories.push((path, header));
                }
                count += 1;
            }
        }
    }
    // What was unpacked into them has changed their times.
    for (path, header) in directories.iter().rev() {
        rustix::fs::utimensat(CWD, path, &header.times(), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(count)
}

/// Names too long for the header that follows.
#[derive(Default)]
struct Long {
    name: Option<PathBuf>,
    link: Option<PathBuf>,
}

struct Header {
    name: PathBuf,
    link: PathBuf,
    kind: u8,
    mode: Mode,
    uid: u32,
    gid: u32,
    size: usize,
    modified: i64,
}

impl Header {
    /// The next header; none at the end of the archive.
    fn read(archive: &mut impl Read) -> Result<Option<Self>> {
        let mut block = [0; BLOCK];
        archive.read_exact(&mut block).context("the archive is cut short")?;
        if block[0] == 0 {
            return Ok(None);
        }
        Ok(Some(Self {
            name: path(&block[..100]),
            link: path(&block[157..257]),
            kind: block[156],
            mode: Mode::from_raw_mode(octal(&block[100..108])? as u32 & 0o7777),
            uid: octal(&block[108..116])? as u32,
            gid: octal(&block[116..124])? as u32,
            size: octal(&block[124..136])?,
            modified: octal(&block[136..148])? as i64,
        }))
    }

    fn times(&self) -> Timestamps {
        Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            last_modification: Timespec { tv_sec: self.modified, tv_nsec: 0 },
        }
    }
}

fn entry(
    archive: &mut impl Read,
    header: &Header,
    path: &Path,
    link: &Path,
    root: &Path,
) -> Result<()> {
    let owner = (Some(Uid::from_raw(header.uid)), Some(Gid::from_raw(header.gid)));
    match header.kind {
        b'0' => file(archive, header, path)?,
        b'1' => std::fs::hard_link(root.join(link), path)?,
        b'2' => {
            std::os::unix::fs::symlink(link, path)?;
            rustix::fs::utimensat(CWD, path, &header.times(), AtFlags::SYMLINK_NOFOLLOW)?;
            rustix::fs::chownat(CWD, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        b'5' => {
            match rustix::fs::mkdir(path, header.mode) {
                // The first entry of the archive.
                Err(rustix::io::Errno::EXIST) => {}
                made => made?,
            }
            rustix::fs::chownat(CWD, path, owner.0, owner.1, AtFlags::empty())?;
            rustix::fs::chmod(path, header.mode)?;
        }
        other => bail!("entries of type {other} are not known"),
    }
    Ok(())
}

fn file(archive: &mut impl Read, header: &Header, path: &Path) -> Result<()> {
    // Not readable by others until it has its owner.
    let private = header.mode.as_raw_mode() & 0o700;
    let mut options = File::options();
    let mut file = options.write(true).create_new(true).mode(private).open(path)?;
    let mut record = [0; RECORD];
    let mut left = header.size;
    while left > 0 {
        let count = left.min(RECORD);
        archive.read_exact(&mut record[..count])?;
        file.write_all(&record[..count])?;
        left -= count;
    }
    rustix::fs::futimens(&file, &header.times())?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(header.uid)), Some(Gid::from_raw(header.gid)))?;
    rustix::fs::fchmod(&file, header.mode)?;
    drop(file);
    padding(archive, header.size)
}

/// Reads a long name of `size` bytes with its terminator.
fn text(archive: &mut impl Read, size: usize) -> Result<PathBuf> {
    ensure!(size <= libc::PATH_MAX as usize, "a name of {size} bytes");
    let mut bytes = vec![0; size];
    archive.read_exact(&mut bytes)?;
    padding(archive, size)?;
    Ok(path(&bytes))
}

/// Skips what fills the last block of `size` bytes.
fn padding(archive: &mut impl Read, size: usize) -> Result<()> {
    let mut block = [0; BLOCK];
    archive.read_exact(&mut block[..size.next_multiple_of(BLOCK) - size])?;
    Ok(())
}

/// Bytes up to the first NUL.
fn path(field: &[u8]) -> PathBuf {
    let bytes: Vec<u8> = field.iter().copied().take_while(|byte| *byte != 0).collect();
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// An octal number, ended by a NUL or a space.
fn octal(field: &[u8]) -> Result<usize> {
    let digits = field.iter().take_while(|byte| byte.is_ascii_digit());
    let digits: String = digits.map(|byte| char::from(*byte)).collect();
    usize::from_str_radix(&digits, 8).context("a number of a tar header")
}
