//! Owners, modes and read-only shares.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::OFlags;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::client::*;
use crate::abi::*;

fn host_mode(client: &Client, name: &str) -> u32 {
    std::fs::symlink_metadata(client.host(name)).unwrap().mode() & 0o7777
}

#[test]
fn what_a_caller_makes_belongs_to_the_caller() {
    if !is_root() {
        return;
    }
    let mut client = Client::new();
    let root = client.root();
    (client.uid, client.gid) = (1000, 1001);
    client.create(root, "file", OFlags::RDWR, 0o644).unwrap();
    client.mkdir(root, "dir", 0o755).unwrap();
    client.mknod(root, "fifo", 0o010_644, 0).unwrap();
    client.call(opcode::SYMLINK, root, &[&z("link"), &z("x")]).unwrap();
    (client.uid, client.gid) = (0, 0);
    client.create(root, "root's", OFlags::RDWR, 0o644).unwrap();
    for name in ["file", "dir", "fifo", "link"] {
        let made = std::fs::symlink_metadata(client.host(name)).unwrap();
        assert_eq!((made.uid(), made.gid()), (1000, 1001), "{name}");
    }
    let made = std::fs::metadata(client.host("root's")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0));
    client.uid = u32::MAX;
    let refused = client.create(root, "nobody's", OFlags::RDWR, 0o644);
    assert_eq!(refused.unwrap_err(), Errno::INVAL);
}

#[test]
fn many_callers_at_once_keep_their_owners_apart() {
    if !is_root() {
        return;
    }
    let mut client = Client::new();
    let root = client.root();
    let count = 400u32;
    for id in 0..count {
        (client.uid, client.gid) = (1000 + id % 7, 2000 + id % 5);
        let wanted = MkdirIn { mode: 0o777, umask: (id % 3) * 0o11 };
        client.send(opcode::MKDIR, root, &[wanted.as_bytes(), &z(&format!("{id}"))]);
    }
    for _ in 0..count {
        assert_eq!(client.receive().0.error, 0);
    }
    for id in 0..count {
        let made = std::fs::metadata(client.host(&format!("{id}"))).unwrap();
        assert_eq!((made.uid(), made.gid()), (1000 + id % 7, 2000 + id % 5));
        assert_eq!(made.mode() & 0o777, 0o777 & !((id % 3) * 0o11));
    }
}

#[test]
fn mode_is_taken_as_asked_less_the_callers_umask() {
    let mut client = Client::new();
    let root = client.root();
    client.create(root, "plain", OFlags::RDWR, 0o666).unwrap();
    assert_eq!(host_mode(&client, "plain"), 0o666);
    let wanted = CreateIn { flags: 2, mode: 0o100_666, umask: 0o027, ..CreateIn::default() };
    client.named(opcode::CREATE, root, &wanted, "masked").unwrap();
    assert_eq!(host_mode(&client, "masked"), 0o640);
    client.create(root, "after", OFlags::RDWR, 0o666).unwrap();
    assert_eq!(host_mode(&client, "after"), 0o666, "the umask of one caller reached another");
}

#[test]
fn set_id_bits_are_kept_by_chmod_and_lost_by_chown_and_truncation() {
    if !is_root() {
        return;
    }
    let mut client = Client::new();
    let root = client.root();
    (client.uid, client.gid) = (1000, 1000);
    client.create(root, "f", OFlags::RDWR, 0o6755).unwrap();
    (client.uid, client.gid) = (0, 0);
    assert_eq!(host_mode(&client, "f"), 0o6755, "create");
    let node = client.walk("f").unwrap();
    let set = |client: &mut Client, wanted| client.setattr(node, wanted).unwrap().mode & 0o7777;
    let mode = SetattrIn { valid: fattr::MODE, mode: 0o6755, ..SetattrIn::default() };
    let owner = SetattrIn { valid: fattr::UID, uid: 1001, ..SetattrIn::default() };
    let size = SetattrIn { valid: fattr::SIZE, size: 9, ..SetattrIn::default() };
    assert_eq!(set(&mut client, owner), 0o755);
    assert_eq!(set(&mut client, mode), 0o6755);
    assert_eq!(set(&mut client, size), 0o755);
    set(&mut client, mode);
    client.open(node, OFlags::WRONLY | OFlags::TRUNC).unwrap();
    assert_eq!(host_mode(&client, "f"), 0o755);
    let nobody = SetattrIn { valid: fattr::UID, uid: u32::MAX, ..SetattrIn::default() };
    assert_eq!(client.setattr(node, nobody).unwrap_err(), Errno::INVAL);
}

#[test]
fn set_group_id_directory_gives_its_group() {
    if !is_root() {
        return;
    }
    let mut client = Client::new();
    std::fs::create_dir(client.host("d")).unwrap();
    std::os::unix::fs::chown(client.host("d"), Some(0), Some(77)).unwrap();
    std::fs::set_permissions(client.host("d"), PermissionsExt::from_mode(0o2777)).unwrap();
    let dir = client.walk("d").unwrap();
    (client.uid, client.gid) = (1000, 1000);
    client.mkdir(dir, "sub", 0o755).unwrap();
    let made = std::fs::metadata(client.host("d/sub")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1000, 77, 0o2755));
}

#[test]
fn device_node_is_made_and_its_number_survives() {
    if !is_root() {
        return;
    }
    let mut client = Client::new();
    let root = client.root();
    // Major 259, minor 0x12345.
    let number = 0x45 | (259 << 8) | (0x123 << 20);
    let made = match client.mknod(root, "dev", 0o060_600, number) {
        Err(Errno::PERM) => return println!("skipped: this machine makes no device nodes"),
        made => made.unwrap(),
    };
    assert_eq!(made.attr.rdev, number);
    let host = std::fs::symlink_metadata(client.host("dev")).unwrap().rdev();
    assert_eq!((rustix::fs::major(host), rustix::fs::minor(host)), (259, 0x12345));
}

#[test]
fn read_only_share_refuses_every_change() {
    let mut client = Client::read_only();
    std::fs::write(client.host("f"), "content").unwrap();
    std::fs::create_dir(client.host("d")).unwrap();
    let before = std::fs::metadata(client.host("f")).unwrap();
    let (root, node) = (client.root(), client.walk("f").unwrap());
    let single = client.lookup(ROOT_ID, "file").unwrap().nodeid;
    let attr = SetattrIn { valid: fattr::MODE, mode: 0, ..SetattrIn::default() };
    let size = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
    let create = CreateIn { flags: 2, mode: 0o100_600, ..CreateIn::default() };
    let outcomes = [
        client.create(root, "new", OFlags::RDWR, 0o600).map(drop),
        client.named(opcode::TMPFILE, root, &create, "t").map(drop),
        client.mkdir(root, "new", 0o700).map(drop),
        client.mknod(root, "new", 0o010_600, 0).map(drop),
        client.call(opcode::SYMLINK, root, &[&z("s"), &z("t")]).map(drop),
        client.named(opcode::LINK, root, &LinkIn { oldnodeid: node }, "l").map(drop),
        client.rename((root, "f"), (root, "g"), 0),
        client.call(opcode::UNLINK, root, &[&z("f")]).map(drop),
        client.call(opcode::RMDIR, root, &[&z("d")]).map(drop),
        client.setattr(node, attr).map(drop),
        client.setattr(node, size).map(drop),
        client.setattr(single, attr).map(drop),
        client.setxattr(node, "user.x", b"x"),
        client.call(opcode::REMOVEXATTR, node, &[&z("user.x")]).map(drop),
        client.open(node, OFlags::WRONLY).map(drop),
        client.open(node, OFlags::RDWR).map(drop),
        client.open(node, OFlags::RDONLY | OFlags::TRUNC).map(drop),
        client.open(single, OFlags::RDWR).map(drop),
    ];
    for (index, outcome) in outcomes.into_iter().enumerate() {
        assert_eq!(outcome.unwrap_err(), Errno::ROFS, "change {index}");
    }
    let opened = client.open(node, OFlags::RDONLY).unwrap();
    let mut file = opened.file.as_ref().unwrap();
    std::io::copy(&mut file, &mut std::io::sink()).unwrap();
    let fh = opened.take::<OpenOut>(0).fh;
    let wanted = FallocateIn { fh, length: 99, ..FallocateIn::default() };
    let refused = client.call(opcode::FALLOCATE, node, &[wanted.as_bytes()]);
    assert_eq!(refused.unwrap_err(), Errno::BADF);
    let after = std::fs::metadata(client.host("f")).unwrap();
    assert_eq!(before.len(), after.len());
    assert_eq!(before.accessed().unwrap(), after.accessed().unwrap(), "reading left a trace");
}

#[test]
fn directory_of_shares_cannot_be_changed() {
    let mut client = Client::new();
    let attr = client.getattr(ROOT_ID).unwrap();
    assert_eq!((attr.ino, attr.mode), (1, 0o040_555));
    assert_eq!(client.mkdir(ROOT_ID, "x", 0o700).unwrap_err(), Errno::ROFS);
    assert_eq!(client.create(ROOT_ID, "x", OFlags::RDWR, 0o600).unwrap_err(), Errno::ROFS);
    assert_eq!(client.call(opcode::RMDIR, ROOT_ID, &[&z("root")]).unwrap_err(), Errno::ROFS);
    let root = client.root();
    assert_eq!(client.rename((ROOT_ID, "file"), (root, "f"), 0).unwrap_err(), Errno::ROFS);
    assert_eq!(client.lookup(ROOT_ID, "none").unwrap_err(), Errno::NOENT);
    assert_eq!(client.getxattr(ROOT_ID, "user.x", 9).unwrap_err(), Errno::NODATA);
    assert_eq!(client.open(ROOT_ID, OFlags::RDONLY).unwrap_err(), Errno::PERM);
}
