//! A disk: a raw file in memory, read and written directly in 4 KiB blocks.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use bulkhead_tests::bench::idle::Idle;

use crate::Suite;
use crate::machines::{QEMU, bulkhead, qemu, run_bulkhead, run_qemu};
use crate::marks::Case;

const INITRD: &str = "bench-guest.img";
const NAME: &str = "block";
/// The file behind the disk, and its size. Every block of it exists.
const DISK: &str = "/bench/disk";
const DISK_MIB: usize = 64;

pub const SUITE: Suite = Suite {
    initrd: INITRD,
    programs: &[QEMU],
    units: &[("randread", "instr/request"), ("randwrite", "instr/request")],
    bulkhead: run_on_bulkhead,
    qemu: run_on_qemu,
};

fn run_on_bulkhead(idle: &Idle) -> Result<Vec<Case>> {
    let disk = disk()?;
    run_bulkhead(bulkhead(NAME, INITRD)?.block("bench", disk, false), idle)
}

/// Asynchronous I/O through io_uring: the host's page cache is the storage, as a file in memory
/// cannot be opened for direct I/O.
fn run_on_qemu(idle: &Idle) -> Result<Vec<Case>> {
    drop(disk()?);
    let mut qemu = qemu(NAME, INITRD);
    let drive = format!("if=none,id=disk,file={DISK},format=raw,cache=writeback,aio=io_uring");
    qemu.args(["-drive", &drive, "-device", "virtio-blk-device,drive=disk"]);
    run_qemu(&mut qemu, idle)
}

fn disk() -> Result<File> {
    let path = Path::new(DISK);
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(path);
    let mut disk = open().context("cannot open the disk")?;
    if disk.metadata().context("cannot examine the disk")?.len() == 0 {
        let pattern: Vec<u8> = (0..1 << 20).map(|index: u32| (index % 251) as u8).collect();
        for _ in 0..DISK_MIB {
            disk.write_all(&pattern).context("cannot fill the disk")?;
        }
    }
    Ok(disk)
}
