//! A share: unpacking a root file system, storms of stat, streams of bytes. Each case begins with
//! a file system that was mounted anew, and so with nothing cached.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::marks::Marks;
use crate::{tree, untar};

/// Tag of the device.
const TAG: &str = "bench";
const MOUNT_POINT: &str = "/mnt";
/// The directory that is worked in.
const SHARE: &str = "/mnt/share";
/// What is unpacked; it lies in the initial RAM file system.
const ARCHIVE: &str = "/root.tar";
/// Where.
const ROOT: &str = "/mnt/share/root";
/// The streamed file, its size, and the bytes of one read or write.
const STREAM: &str = "/mnt/share/stream";
const STREAM_MIB: usize = 32;
const CHUNK: usize = 128 << 10;
/// How often everything is looked at again.
const REPEATS: u64 = 2;

/// Runs all cases.
pub fn run(marks: &mut Marks) -> Result<()> {
    anew(marks, "untar", || {
        fs::create_dir(ROOT)?;
        let archive = File::open(ARCHIVE).context("no archive")?;
        untar::unpack(archive, Path::new(ROOT))
    })?;
    let mut files = Vec::new();
    anew(marks, "find", || tree::find(Path::new(ROOT), &mut files))?;
    anew(marks, "stat", || tree::status(Path::new(ROOT), &files))?;
    // What was looked at a moment ago is looked at again.
    mounted(|| {
        tree::stat_all(&files)?;
        marks.case("restat", || {
            for _ in 0..REPEATS {
                tree::stat_all(&files)?;
            }
            Ok(REPEATS * files.len() as u64)
        })
    })?;
    anew(marks, "seqwrite", write_stream)?;
    anew(marks, "seqread", read_stream)
}

fn anew(marks: &mut Marks, name: &str, work: impl FnOnce() -> Result<u64>) -> Result<()> {
    mounted(|| {
        // The directory itself is known to whoever works in it.
        fs::metadata(SHARE).context("no share")?;
        marks.case(name, work)
    })
}

fn mounted(work: impl FnOnce() -> Result<()>) -> Result<()> {
    fs::create_dir_all(MOUNT_POINT)?;
    mount(TAG, MOUNT_POINT, "virtiofs", MountFlags::empty(), None).context("cannot mount")?;
    work()?;
    // Lazily, with what the file server shows as mounts within it.
    unmount(MOUNT_POINT, UnmountFlags::DETACH).context("cannot unmount")
}

fn write_stream() -> Result<u64> {
    let chunk = vec![0x3c; CHUNK];
    let mut file = File::create(STREAM)?;
    for _ in 0..(STREAM_MIB << 20) / CHUNK {
        file.write_all(&chunk)?;
    }
    Ok(STREAM_MIB as u64)
}

fn read_stream() -> Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut file = File::open(STREAM)?;
    let mut bytes = 0;
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            count => bytes += count,
        }
    }
    ensure!(bytes == STREAM_MIB << 20, "the stream has {bytes} bytes");
    Ok(STREAM_MIB as u64)
}
