//! A share: one directory in memory. Both servers have their defaults.
//!
//! Measured in time and not by the instruction clock, under which hardly a guest lives for as long
//! as this takes. QEMU's emulation of SVM (7.2) leaves `exception_index` set after `VMRUN` has
//! injected an interrupt, and delivers it once more if that clock comes to a timer before the
//! guest's next exit, whether or not the guest allows interrupts. A guest that is in
//! `handle_edge_irq` then waits for the lock that it holds. Every guest that was tried came to that
//! within 1400 of the 2180 files of the first case.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use bulkhead_tests::bench::idle::Idle;
use bulkhead_tests::fsd::FileServer;

use crate::Suite;
use crate::machines::{Killed, QEMU, bulkhead, qemu, run_bulkhead, run_qemu};
use crate::marks::Case;

const INITRD: &str = "bench-fs.img";
const NAME: &str = "fs";
/// Tag of the device.
const TAG: &str = "bench";
/// The directory that the guest works in, within what it mounts.
const SHARE: &str = "share";
/// QEMU's file server (Debian 12).
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
/// Its socket.
const SOCKET: &str = "/tmp/virtiofsd.sock";

pub const SUITE: Suite = Suite {
    initrd: INITRD,
    programs: &[QEMU, VIRTIOFSD],
    units: &[
        ("untar", "ns/file"),
        ("find", "ns/stat"),
        ("stat", "ns/stat"),
        ("restat", "ns/stat"),
        ("seqread", "ns/MiB"),
        ("seqwrite", "ns/MiB"),
    ],
    bulkhead: run_on_bulkhead,
    qemu: run_on_qemu,
};

fn run_on_bulkhead(idle: &Idle) -> Result<Vec<Case>> {
    let tree = Tree::make()?;
    let mut server = FileServer::spawn(&[(SHARE, &tree.share())])?;
    run_bulkhead(bulkhead(NAME, INITRD)?.share(TAG, server.take_device()?), idle)
}

fn run_on_qemu(idle: &Idle) -> Result<Vec<Case>> {
    let tree = Tree::make()?;
    let _server = virtiofsd(&tree.0)?;
    let mut qemu = qemu(NAME, INITRD);
    qemu.args(["-chardev", &format!("socket,id=fs,path={SOCKET}")]);
    qemu.args(["-device", &format!("vhost-user-fs-device,chardev=fs,tag={TAG}")]);
    run_qemu(&mut qemu, idle)
}

/// What is served, removed when dropped.
struct Tree(PathBuf);

impl Tree {
    fn make() -> Result<Self> {
        let tree = Self(PathBuf::from("/bench/tree"));
        fs::create_dir_all(tree.share()).context("cannot make the share")?;
        Ok(tree)
    }

    fn share(&self) -> PathBuf {
        self.0.join(SHARE)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // What stays is in memory of a host that ends soon.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Starts QEMU's file server for `directory` and waits until it can be reached.
fn virtiofsd(directory: &Path) -> Result<Killed> {
    let mut command = Command::new(VIRTIOFSD);
    command.arg(format!("--socket-path={SOCKET}"));
    command.arg("-o").arg(format!("source={}", directory.display())).args(["-o", "cache=auto"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut server = Killed(command.spawn().context("cannot start virtiofsd")?);
    while !Path::new(SOCKET).exists() {
        let ended = server.0.try_wait().context("cannot wait for virtiofsd")?;
        ensure!(ended.is_none(), "virtiofsd has ended");
        std::thread::yield_now();
    }
    Ok(server)
}
