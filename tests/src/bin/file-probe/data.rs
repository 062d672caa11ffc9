//! Content: holes, direct I/O, allocation, copies, many open files.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Case, file, finish, helper, refused, same};

pub const CASES: &[Case] = &[
    ("append_by_two_processes", append_by_two_processes),
    ("direct_io", direct_io),
    ("direct_io_unaligned", direct_io_unaligned),
    ("sparse_file", sparse_file),
    ("length", length),
    ("fallocate", fallocated),
    ("fallocate_of_ranges", fallocate_of_ranges),
    ("fallocate_that_moves_data", fallocate_that_moves_data),
    ("copy_file_range", copy_file_range),
    ("sendfile_and_splice", sendfile_and_splice),
    ("synchronizing", synchronizing),
    ("open_flags", open_flags),
    ("ten_thousand_open_files", ten_thousand_open_files),
];

const BLOCK: u64 = 4096;

/// An open file for reading and writing.
fn open(dir: &Path, name: &str) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(dir.join(name)).context("opening")
}

/// Lines that two processes append at once are whole, and none is lost.
fn append_by_two_processes(dir: &Path) -> Result<()> {
    let path = dir.join("log");
    let others = [helper("append", &path)?.spawn()?, helper("append", &path)?.spawn()?];
    others.into_iter().try_for_each(finish)?;
    let text = fs::read_to_string(&path)?;
    let whole = text.lines().filter(|line| *line == super::between::LINE).count();
    same((whole, text.lines().count()), (400, 400), "whole lines and all lines")
}

/// Memory that begins at a block.
#[repr(align(4096))]
struct Aligned([u8; 2 * BLOCK as usize]);

fn direct_io(dir: &Path) -> Result<()> {
    let path = file(dir, "file", &[1; 4 * BLOCK as usize])?;
    let mut options = File::options();
    let direct = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(&path)?;
    let mut memory = Box::new(Aligned([2; 2 * BLOCK as usize]));
    same(direct.write_at(&memory.0, BLOCK)?, memory.0.len(), "written")?;
    let mut cached = vec![0; 4 * BLOCK as usize];
    File::open(&path)?.read_exact(&mut cached)?;
    ensure!(cached[4095] == 1 && cached[4096] == 2 && cached[12288] == 1, "a cached read");
    open(dir, "file")?.write_all_at(&[3; 100], BLOCK)?;
    same(direct.read_at(&mut memory.0, BLOCK)?, memory.0.len(), "read")?;
    ensure!(memory.0[99] == 3 && memory.0[100] == 2, "a direct read after a cached write");
    same(direct.read_at(&mut memory.0, 4 * BLOCK)?, 0, "at the end")
}

fn direct_io_unaligned(dir: &Path) -> Result<()> {
    let path = file(dir, "file", &[1; 4 * BLOCK as usize])?;
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path)?;
    let mut memory = Box::new(Aligned([0; 2 * BLOCK as usize]));
    let odd = rustix::io::pread(&direct, &mut memory.0[1..101], 1);
    refused(odd, Errno::INVAL, "an odd place in file and memory")
}

fn sparse_file(dir: &Path) -> Result<()> {
    let mut sparse = open(dir, "sparse")?;
    sparse.set_len(1 << 30)?;
    sparse.write_all_at(&[1; BLOCK as usize], 1 << 20)?;
    sparse.sync_all()?;
    let found = sparse.metadata()?;
    ensure!(found.blocks() * 512 < 64 << 10, "{} blocks of 1 GiB", found.blocks());
    let seek = |whence| rustix::fs::seek(&sparse, whence);
    use rustix::fs::SeekFrom::{Data, Hole};
    same(seek(Data(0))?, 1 << 20, "where data begins")?;
    same(seek(Hole(1 << 20))?, (1 << 20) + BLOCK, "where the next hole begins")?;
    refused(seek(Data((1 << 20) + BLOCK)), Errno::NXIO, "data after the last")?;
    let far = 1_u64 << 41;
    sparse.write_all_at(b"far", far)?;
    sparse.seek(SeekFrom::Start(far - 1))?;
    let mut bytes = [9; 4];
    sparse.read_exact(&mut bytes)?;
    same(&bytes, b"\0far", "far away")
}

fn length(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"0123456789")?;
    let open = open(dir, "file")?;
    open.set_len(4)?;
    same(fs::read(&path)?, b"0123".to_vec(), "shorter")?;
    open.set_len(6)?;
    same(fs::read(&path)?, b"0123\0\0".to_vec(), "longer")?;
    rustix::fs::ftruncate(&File::options().append(true).open(&path)?, 2)?;
    same(path.metadata()?.len(), 2, "by a descriptor for appending")?;
    refused(rustix::fs::ftruncate(File::open(&path)?, 1), Errno::INVAL, "one for reading")?;
    drop(File::options().write(true).truncate(true).open(&path)?);
    same(path.metadata()?.len(), 0, "O_TRUNC")
}

fn fallocated(dir: &Path) -> Result<()> {
    let open = open(dir, "file")?;
    fallocate(&open, FallocateFlags::empty(), 0, 1 << 20)?;
    let found = open.metadata()?;
    ensure!(found.len() == 1 << 20 && found.blocks() >= 2048, "{found:?}");
    fallocate(&open, FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20).context("KEEP_SIZE")?;
    let found = open.metadata()?;
    ensure!(found.len() == 1 << 20 && found.blocks() >= 4096, "KEEP_SIZE: {found:?}");
    Ok(())
}

fn fallocate_of_ranges(dir: &Path) -> Result<()> {
    let path = file(dir, "file", &[1; 4 * BLOCK as usize])?;
    let open = open(dir, "file")?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&open, punch, BLOCK, BLOCK).context("PUNCH_HOLE")?;
    fallocate(&open, FallocateFlags::ZERO_RANGE, 2 * BLOCK, 100).context("ZERO_RANGE")?;
    let content = fs::read(&path)?;
    let at = [4095, 4096, 8191, 8192, 8291, 8292].map(|at| content[at]);
    same(at, [1, 0, 0, 0, 0, 1], "bytes at the edges")?;
    same(content.len() as u64, 4 * BLOCK, "length")
}

fn fallocate_that_moves_data(dir: &Path) -> Result<()> {
    let path = file(dir, "file", &[[1; 4096], [2; 4096], [3; 4096]].concat())?;
    let open = open(dir, "file")?;
    fallocate(&open, FallocateFlags::COLLAPSE_RANGE, 0, BLOCK).context("COLLAPSE_RANGE")?;
    fallocate(&open, FallocateFlags::INSERT_RANGE, BLOCK, BLOCK).context("INSERT_RANGE")?;
    let content = fs::read(&path)?;
    same([content[0], content[4096], content[8192]], [2, 0, 3], "blocks")
}

fn copy_file_range(dir: &Path) -> Result<()> {
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
    let from = File::open(file(dir, "from", &content)?)?;
    let to = open(dir, "to")?;
    let (mut read, mut written) = (1_000, 10);
    while read < 2_500_000 {
        let left = 2_500_000 - read as usize;
        let (r, w) = (Some(&mut read), Some(&mut written));
        ensure!(rustix::fs::copy_file_range(&from, r, &to, w, left)? > 0, "nothing copied");
    }
    let copied = fs::read(dir.join("to"))?;
    same(copied.len(), 2_499_010, "length")?;
    ensure!(copied[10..] == content[1_000..2_500_000], "the copy differs");
    let mut same_file = 0;
    let over = rustix::fs::copy_file_range(&to, None, &to, Some(&mut same_file), 100);
    refused(over, Errno::INVAL, "a range onto itself")
}

fn sendfile_and_splice(dir: &Path) -> Result<()> {
    let content: Vec<u8> = (0..200_000_u32).map(|i| (i / 3) as u8).collect();
    let from = File::open(file(dir, "from", &content)?)?;
    let to = open(dir, "to")?;
    let mut sent = 0;
    while sent < content.len() {
        sent += rustix::fs::sendfile(&to, &from, None, content.len() - sent)?;
    }
    ensure!(fs::read(dir.join("to"))? == content, "sendfile: the copy differs");
    let (reader, writer) = rustix::pipe::pipe()?;
    let back = open(dir, "back")?;
    let mut offset = 0;
    while (offset as usize) < content.len() {
        let flags = rustix::pipe::SpliceFlags::empty();
        let at = Some(&mut offset);
        let count = rustix::pipe::splice(&from, at, &writer, None, 32 << 10, flags)?;
        let mut left = count;
        while left > 0 {
            left -= rustix::pipe::splice(&reader, None, &back, None, left, flags)?;
        }
    }
    ensure!(fs::read(dir.join("back"))? == content, "splice: the copy differs");
    Ok(())
}

fn synchronizing(dir: &Path) -> Result<()> {
    let mut open = open(dir, "file")?;
    open.write_all(b"content")?;
    rustix::fs::fsync(&open).context("fsync")?;
    rustix::fs::fdatasync(&open).context("fdatasync")?;
    rustix::fs::syncfs(&open).context("syncfs")?;
    rustix::fs::fsync(File::open(dir)?).context("fsync of a directory")?;
    let flags = libc::O_DSYNC;
    let mut synced = File::options().append(true).custom_flags(flags).open(dir.join("file"))?;
    synced.write_all(b" more")?;
    same(fs::read(dir.join("file"))?, b"content more".to_vec(), "content")
}

fn open_flags(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"content")?;
    let open =
        |path: &Path, flags: OFlags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::RWXU);
    refused(open(&path, OFlags::CREATE | OFlags::EXCL), Errno::EXIST, "O_EXCL")?;
    refused(open(&path, OFlags::DIRECTORY), Errno::NOTDIR, "O_DIRECTORY")?;
    refused(open(dir, OFlags::WRONLY), Errno::ISDIR, "a directory to be written")?;
    refused(open(&path.join("below"), OFlags::RDONLY), Errno::NOTDIR, "below a file")?;
    let only_path = open(&path, OFlags::PATH).context("O_PATH")?;
    refused(rustix::io::read(&only_path, &mut [0; 4]), Errno::BADF, "reading by O_PATH")?;
    same(rustix::fs::fstat(&only_path)?.st_size, 7, "length by O_PATH")?;
    let quiet = open(&path, OFlags::NOATIME).context("O_NOATIME")?;
    same(rustix::io::read(&quiet, &mut [0; 9])?, 7, "read")
}

fn ten_thousand_open_files(dir: &Path) -> Result<()> {
    const COUNT: u64 = 10_000;
    /// One in so many has content.
    const STEP: u64 = 97;
    let before = getrlimit(Resource::Nofile);
    let wanted = COUNT + 100;
    let maximum = before.maximum.map(|maximum| maximum.max(wanted));
    let room = Rlimit { current: Some(wanted), maximum };
    setrlimit(Resource::Nofile, room).context("a limit of open files above 10,000")?;
    // Without names, which would cost a guest on an emulated processor half a minute more.
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut all = Vec::new();
    for i in 0..COUNT {
        let one = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR);
        let one = File::from(one.with_context(|| format!("file {i}"))?);
        if i % STEP == 0 {
            one.write_all_at(i.to_string().as_bytes(), 0)?;
        }
        all.push(one);
    }
    for (i, one) in all.iter().enumerate().step_by(STEP as usize) {
        let mut content = [0; 8];
        let length = one.read_at(&mut content, 0)?;
        same(&content[..length], i.to_string().as_bytes(), "content")?;
    }
    drop(all);
    setrlimit(Resource::Nofile, before)?;
    Ok(())
}
