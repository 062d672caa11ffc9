//! Real files and what opening them says.

use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::failure::Explain;
use crate::plan::{DiskPlan, DiskUse};

fn disk(path: &Path, read_only: bool, usage: DiskUse) -> DiskPlan {
    DiskPlan {
        serial: "s".into(),
        source: DiskSource::Path(path.to_owned()),
        read_only,
        queues: None,
        rate: None,
        field: "field".into(),
        usage,
    }
}

fn node() -> DiskUse {
    DiskUse::Node { path: "/dev/x".into(), mode: 0, uid: 0, gid: 0, access: "rwm".into() }
}

fn mount(fstype: Option<FileSystem>) -> DiskUse {
    DiskUse::Mount { fstype, options: vec![], target: "/run/bulkhead/mnt/x".into() }
}

/// Waits for what is let go of: a child that another test forks meanwhile has a copy of every
/// descriptor until it has become its program.
fn open_one(disk: &DiskPlan) -> Result<Opened, BlockError> {
    Opener { disk, patience: Duration::from_secs(120) }.open()
}

fn refused(disk: &DiskPlan) -> String {
    match (Opener { disk, patience: Duration::ZERO }).open() {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

fn file(dir: &TempDir, name: &str, bytes: u64) -> PathBuf {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

#[test]
fn writer_is_alone_and_readers_share() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", 4096);
    let (writer, reader) = (disk(&path, false, node()), disk(&path, true, node()));
    let first = open_one(&writer).unwrap();
    assert!(refused(&writer).ends_with("is in use") && refused(&reader).ends_with("is in use"));
    // The lock is the open file's, which others may hold on to.
    let copy = first.file.try_clone().unwrap();
    drop(first);
    assert!(refused(&reader).ends_with("is in use"));
    drop(copy);
    let readers = [open_one(&reader).unwrap(), open_one(&reader).unwrap()];
    assert!(refused(&writer).ends_with("is in use"));
    drop(readers);
    open_one(&writer).unwrap();
}

#[test]
fn what_is_no_disk_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (empty, odd) = (file(&dir, "empty", 0), file(&dir, "odd", 1000));
    let blank = file(&dir, "blank", 8192);
    for (disk, words) in [
        (disk(&empty, true, node()), "0 bytes, not a multiple of 512"),
        (disk(&odd, true, node()), "1000 bytes, not a multiple of 512"),
        (disk(&blank, true, mount(None)), "holds no file system"),
        (disk(dir.path(), true, node()), "neither a regular file nor a block device"),
        (disk(Path::new("/dev/null"), true, node()), "neither a regular file nor a block device"),
        (disk(&dir.path().join("absent"), true, node()), "field: /"),
    ] {
        let refused = refused(&disk);
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn fix_of_a_disk_that_does_not_open_is_one_that_helps() {
    let dir = tempfile::tempdir().unwrap();
    let empty = disk(&file(&dir, "empty", 0), true, node());
    let fix = open_one(&empty).err().unwrap().fix();
    assert!(!fix.contains("truncate"), "{fix}");
    let source = io::ErrorKind::ReadOnlyFilesystem.into();
    let fix =
        Opener { disk: &empty, patience: Duration::ZERO }.failed(Path::new("/x"), source).fix();
    assert!(fix.contains("read-only"), "{fix}");
}

#[test]
fn file_system_is_detected_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "ext4", 1 << 20);
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&path).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: mke2fs is not installed");
        return;
    }
    let opened = open_one(&disk(&path, false, mount(None))).unwrap();
    assert_eq!((opened.fstype, opened.read_only), (Some(FileSystem::Ext4), false));
    drop(opened);
    // Once nobody has it open any more.
    drop(open_one(&disk(&path, true, mount(None))).unwrap());
    let wrong = refused(&disk(&path, true, mount(Some(FileSystem::Erofs))));
    assert!(wrong.ends_with("holds ext4, not erofs"), "{wrong}");
    File::options().write(true).open(&path).unwrap().set_len(512 << 10).unwrap();
    let short = refused(&disk(&path, true, mount(None)));
    assert!(short.contains("is truncated: its file system has 1048576 bytes, the image 524288"));
}

#[test]
fn number_without_a_device_is_refused() {
    let mut disk = disk(Path::new("/dev/null"), true, node());
    let path = PathBuf::from("/dev/null");
    disk.source = DiskSource::Number { path, major: 1, minor: 3 };
    assert_eq!(refused(&disk), "field: this host has no block device 1:3");
}
