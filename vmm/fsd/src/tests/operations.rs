//! Each operation does on the host what the guest asked.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::client::*;
use crate::abi::*;

#[test]
fn init_takes_only_features_that_were_weighed() {
    let mut client = Client::new();
    let out = client.init().unwrap();
    assert_eq!((out.major, out.max_pages, out.max_write), (7, 256, 1 << 20));
    assert_ne!(out.flags & init::ATOMIC_O_TRUNC, 0);
    // Write-back cache, POSIX locks, BSD locks, no-open.
    assert_eq!(out.flags & (1 << 16 | 1 << 1 | 1 << 10 | 1 << 17), 0);
    let newer = InitIn { major: 8, ..InitIn::default() };
    let out = client.call(opcode::INIT, 0, &[newer.as_bytes()]).unwrap();
    assert_eq!(out.take::<InitOut>(0).major, 7);
    let older = InitIn { major: 7, minor: 30, ..InitIn::default() };
    assert_eq!(client.call(opcode::INIT, 0, &[older.as_bytes()]).unwrap_err(), Errno::PROTO);
}

#[test]
fn init_again_ends_the_session_before() {
    let mut client = Client::new();
    let root = client.root();
    let fh = client.opendir(root).unwrap();
    client.init().unwrap();
    assert_eq!(client.getattr(root).unwrap_err(), Errno::STALE);
    let wanted = ReadIn { fh, size: 4096, ..ReadIn::default() };
    let again = client.root();
    let listed = client.call(opcode::READDIR, again, &[wanted.as_bytes()]);
    assert_eq!(listed.unwrap_err(), Errno::BADF);
    client.call(opcode::DESTROY, 0, &[]).unwrap();
    assert_eq!(client.lookup(ROOT_ID, "root").unwrap_err(), Errno::NOTCONN);
}

#[test]
fn statx_tells_the_birth_time_that_the_host_knows() {
    let mut client = Client::new();
    let root = client.root();
    std::fs::write(client.host("file"), "123").unwrap();
    let nodeid = client.walk("file").unwrap();
    let body = StatxIn::default();
    let out = client.call(opcode::STATX, nodeid, &[body.as_bytes()]).unwrap().take::<StatxOut>(0);
    let host = std::fs::metadata(client.host("file")).unwrap();
    assert_eq!((out.ino, out.size, u32::from(out.mode)), (host.ino(), 3, host.mode()));
    match host.created() {
        Ok(born) => {
            let age = born.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
            assert_eq!(out.btime.seconds, age.as_secs() as i64);
        }
        Err(_) => assert_eq!(out.mask & 0x800, 0),
    }
    for nodeid in [root, ROOT_ID] {
        let out = client.call(opcode::STATX, nodeid, &[body.as_bytes()]).unwrap();
        assert_eq!(out.take::<StatxOut>(0).mode & 0o170_000, 0o040_000);
    }
}

#[test]
fn created_file_is_handed_over_and_keeps_what_is_written() {
    let mut client = Client::new();
    let root = client.root();
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE;
    let created = client.create(root, "new", flags, 0o640).unwrap();
    let entry: EntryOut = created.take(0);
    let open: OpenOut = created.take(size_of::<EntryOut>());
    let mut file = created.file.unwrap();
    // Without O_APPEND, or this would go to the end.
    file.write_all_at(b"hello world", 0).unwrap();
    file.write_all_at(b"HELLO", 0).unwrap();
    assert_eq!(std::fs::read(client.host("new")).unwrap(), b"HELLO world");
    assert_eq!(std::fs::metadata(client.host("new")).unwrap().mode(), 0o100_640);
    assert_eq!(client.getattr(entry.nodeid).unwrap().size, 11);

    // Holes.
    let wanted =
        FallocateIn { fh: open.fh, offset: 1 << 20, length: 4096, ..FallocateIn::default() };
    client.call(opcode::FALLOCATE, entry.nodeid, &[wanted.as_bytes()]).unwrap();
    assert_eq!(client.getattr(entry.nodeid).unwrap().size, (1 << 20) + 4096);
    assert!(file.seek(SeekFrom::End(0)).unwrap() > 1 << 20);
    let odd = FallocateIn { mode: 0x80, ..wanted };
    let refused = client.call(opcode::FALLOCATE, entry.nodeid, &[odd.as_bytes()]);
    assert_eq!(refused.unwrap_err(), Errno::OPNOTSUPP);

    let sync = FsyncIn { fh: open.fh, fsync_flags: FSYNC_FDATASYNC, padding: 0 };
    client.call(opcode::FSYNC, entry.nodeid, &[sync.as_bytes()]).unwrap();
    let release = ReleaseIn { fh: open.fh, ..ReleaseIn::default() };
    client.call(opcode::RELEASE, entry.nodeid, &[release.as_bytes()]).unwrap();
    let again = client.call(opcode::RELEASE, entry.nodeid, &[release.as_bytes()]);
    assert_eq!(again.unwrap_err(), Errno::BADF);
}

#[test]
fn create_of_an_existing_name_opens_it_unless_exclusive() {
    let mut client = Client::new();
    std::fs::write(client.host("old"), "content").unwrap();
    let root = client.root();
    let created = client.create(root, "old", OFlags::RDWR | OFlags::TRUNC, 0o600).unwrap();
    assert!(created.file.is_some());
    assert_eq!(std::fs::metadata(client.host("old")).unwrap().len(), 0);
    let excl = client.create(root, "old", OFlags::RDWR | OFlags::EXCL, 0o600);
    assert_eq!(excl.unwrap_err(), Errno::EXIST);
}

#[test]
fn open_reads_what_the_host_wrote_and_tells_fresh_files_apart() {
    let mut client = Client::new();
    std::fs::write(client.host("fresh"), "abc").unwrap();
    std::fs::write(client.host("old"), "abc").unwrap();
    let modify = |name: &str, time| {
        std::fs::File::open(client.host(name)).unwrap().set_modified(time).unwrap();
    };
    modify("old", std::time::UNIX_EPOCH + std::time::Duration::from_secs(1));
    // However long it takes until it is opened.
    modify("fresh", std::time::SystemTime::now() + std::time::Duration::from_secs(3600));
    let keeps = |client: &mut Client, name: &str| {
        let node = client.walk(name).unwrap();
        let opened = client.open(node, OFlags::RDONLY).unwrap();
        let mut text = String::new();
        opened.file.as_ref().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
        opened.take::<OpenOut>(0).open_flags & FOPEN_KEEP_CACHE != 0
    };
    assert!(!keeps(&mut client, "fresh"));
    assert!(keeps(&mut client, "old"));
    let entry = client.walk("old").and_then(|_| {
        let r = client.root();
        client.lookup(r, "old")
    });
    assert_eq!(entry.unwrap().entry_valid, 0, "files are looked up at each open");
}

#[test]
fn nodes_are_made_linked_renamed_and_removed() {
    let mut client = Client::new();
    let root = client.root();
    let dir = client.mkdir(root, "dir", 0o1755).unwrap();
    assert_eq!(dir.attr.mode, 0o041_755);
    let made = client.call(opcode::SYMLINK, root, &[&z("ln"), &z("/etc/../x")]).unwrap();
    let link: EntryOut = made.take(0);
    let target = client.call(opcode::READLINK, link.nodeid, &[]).unwrap();
    assert_eq!(target.payload, b"/etc/../x");
    let fifo = client.mknod(root, "fifo", 0o010_600, 0).unwrap();
    assert_eq!(fifo.attr.mode, 0o010_600);
    let file = client.mknod(root, "file", 0o100_600, 0).unwrap();

    for (old, name) in [(file.nodeid, "hard"), (link.nodeid, "hardlink")] {
        let linked = client.named(opcode::LINK, dir.nodeid, &LinkIn { oldnodeid: old }, name);
        let entry = linked.unwrap().take::<EntryOut>(0);
        assert_eq!((entry.nodeid, entry.attr.nlink), (old, 2), "{name}");
    }
    client.rename((root, "file"), (dir.nodeid, "moved"), 0).unwrap();
    assert!(client.host("dir/moved").exists() && !client.host("file").exists());
    client.call(opcode::UNLINK, dir.nodeid, &[&z("moved")]).unwrap();
    assert_eq!(client.getattr(file.nodeid).unwrap().nlink, 1);
    assert_eq!(client.call(opcode::RMDIR, root, &[&z("dir")]).unwrap_err(), Errno::NOTEMPTY);
    assert_eq!(client.call(opcode::UNLINK, root, &[&z("dir")]).unwrap_err(), Errno::ISDIR);
}

#[test]
fn rename_flags_do_what_they_say() {
    let mut client = Client::new();
    let root = client.root();
    std::fs::write(client.host("a"), "a").unwrap();
    std::fs::write(client.host("b"), "b").unwrap();
    let noreplace = client.rename((root, "a"), (root, "b"), 1);
    assert_eq!(noreplace.unwrap_err(), Errno::EXIST);
    client.rename((root, "a"), (root, "b"), 2).unwrap();
    assert_eq!(std::fs::read(client.host("a")).unwrap(), b"b");
    assert_eq!(client.rename((root, "a"), (root, "b"), 8).unwrap_err(), Errno::INVAL);
    if is_root() {
        match client.rename((root, "a"), (root, "c"), 4) {
            Ok(()) => {
                let whiteout = std::fs::symlink_metadata(client.host("a")).unwrap();
                assert_eq!((whiteout.mode() & 0o170_000, whiteout.rdev()), (0o020_000, 0));
            }
            // A file system without whiteouts.
            Err(errno) => assert_eq!(errno, Errno::INVAL),
        }
    }
}

#[test]
fn unnamed_file_can_be_given_a_name() {
    let mut client = Client::new();
    let root = client.root();
    let wanted = CreateIn { flags: OFlags::RDWR.bits(), mode: 0o100_600, ..CreateIn::default() };
    let made = match client.named(opcode::TMPFILE, root, &wanted, "ignored") {
        Err(Errno::OPNOTSUPP) => return println!("skipped: the file system has no O_TMPFILE"),
        made => made.unwrap(),
    };
    let entry: EntryOut = made.take(0);
    made.file.as_ref().unwrap().write_all_at(b"x", 0).unwrap();
    assert_eq!(entry.attr.nlink, 0);
    let oldnodeid = entry.nodeid;
    client.named(opcode::LINK, root, &LinkIn { oldnodeid }, "named").unwrap();
    assert_eq!(std::fs::read(client.host("named")).unwrap(), b"x");
}

#[test]
fn setattr_changes_mode_size_and_times() {
    let mut client = Client::new();
    std::fs::write(client.host("f"), "0123456789").unwrap();
    let node = client.walk("f").unwrap();
    let wanted = SetattrIn {
        valid: fattr::MODE | fattr::SIZE | fattr::MTIME | fattr::ATIME,
        mode: 0o100_751,
        size: 4,
        mtime: 1_000_000,
        mtimensec: 5,
        atime: -1i64 as u64,
        ..SetattrIn::default()
    };
    let attr = client.setattr(node, wanted).unwrap();
    assert_eq!((attr.mode, attr.size, attr.mtime, attr.mtimensec), (0o100_751, 4, 1_000_000, 5));
    assert_eq!(attr.atime as i64, -1);
    assert_eq!(std::fs::read(client.host("f")).unwrap(), b"0123");
    let odd = SetattrIn { valid: fattr::MTIME, mtimensec: 1_000_000_000, ..wanted };
    assert_eq!(client.setattr(node, odd).unwrap_err(), Errno::INVAL);
    let huge = SetattrIn { valid: fattr::SIZE, size: u64::MAX, ..wanted };
    assert_eq!(client.setattr(node, huge).unwrap_err(), Errno::FBIG);
}

#[test]
fn removed_file_that_is_known_still_works() {
    let mut client = Client::new();
    std::fs::write(client.host("f"), "gone").unwrap();
    let node = client.walk("f").unwrap();
    std::fs::remove_file(client.host("f")).unwrap();
    assert_eq!(client.getattr(node).unwrap().nlink, 0);
    let mut text = String::new();
    let opened = client.open(node, OFlags::RDONLY).unwrap();
    opened.file.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "gone");
    let wanted = SetattrIn { valid: fattr::MODE, mode: 0o600, ..SetattrIn::default() };
    client.setattr(node, wanted).unwrap();
}

#[test]
fn copy_moves_bytes_between_open_files() {
    let mut client = Client::new();
    std::fs::write(client.host("from"), "0123456789").unwrap();
    std::fs::write(client.host("to"), "").unwrap();
    let (from, to) = (client.walk("from").unwrap(), client.walk("to").unwrap());
    let fh_in = client.open(from, OFlags::RDONLY).unwrap().take::<OpenOut>(0).fh;
    let fh_out = client.open(to, OFlags::WRONLY).unwrap().take::<OpenOut>(0).fh;
    let wanted = CopyFileRangeIn {
        fh_in,
        off_in: 2,
        nodeid_out: to,
        fh_out,
        len: u64::MAX,
        ..CopyFileRangeIn::default()
    };
    let copied = client.call(opcode::COPY_FILE_RANGE, from, &[wanted.as_bytes()]).unwrap();
    assert_eq!(copied.take::<WriteOut>(0).size, 8);
    assert_eq!(std::fs::read(client.host("to")).unwrap(), b"23456789");
}

#[test]
fn attributes_are_extended_within_the_allowed_names() {
    let mut client = Client::new();
    std::fs::write(client.host("f"), "").unwrap();
    let node = client.walk("f").unwrap();
    if client.setxattr(node, "user.key", b"value") == Err(Errno::OPNOTSUPP) {
        return println!("skipped: the file system has no user attributes");
    }
    let size = client.getxattr(node, "user.key", 0).unwrap();
    assert_eq!(size, GetxattrOut { size: 5, padding: 0 }.as_bytes());
    assert_eq!(client.getxattr(node, "user.key", 64).unwrap(), b"value");
    assert_eq!(client.getxattr(node, "user.key", 4).unwrap_err(), Errno::RANGE);
    assert_eq!(client.getxattr(node, "user.none", 64).unwrap_err(), Errno::NODATA);
    let list = GetxattrIn { size: 64, padding: 0 };
    let listed = client.call(opcode::LISTXATTR, node, &[list.as_bytes()]).unwrap();
    assert_eq!(listed.payload, b"user.key\0");
    client.call(opcode::REMOVEXATTR, node, &[&z("user.key")]).unwrap();
    assert_eq!(client.getxattr(node, "user.key", 64).unwrap_err(), Errno::NODATA);
    for name in ["trusted.overlay.redirect", "security.selinux", "system.other", "userx"] {
        assert_eq!(client.setxattr(node, name, b"x").unwrap_err(), Errno::OPNOTSUPP, "{name}");
        assert_eq!(client.getxattr(node, name, 9).unwrap_err(), Errno::OPNOTSUPP, "{name}");
    }
}

/// As on a file system without them: the kernel gives no symbolic link one either.
#[test]
fn acl_that_cannot_be_is_one_that_is_not_there() {
    let mut client = Client::new();
    std::os::unix::fs::symlink("x", client.host("link")).unwrap();
    let node = client.walk("link").unwrap();
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        for size in [0, 64] {
            assert_eq!(client.getxattr(node, name, size).unwrap_err(), Errno::NODATA, "{name}");
        }
        assert_eq!(client.setxattr(node, name, &[2, 0, 0, 0]).unwrap_err(), Errno::OPNOTSUPP);
    }
}

#[test]
fn acl_and_file_capability_are_taken_by_the_kernel() {
    if !is_root() {
        return;
    }
    let mut client = Client::new();
    std::fs::write(client.host("f"), "").unwrap();
    let node = client.walk("f").unwrap();
    // u::rw- u:1000:r-- g::r-- m::rw- o::---
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [(1, 6, !0), (2, 4, 1000), (4, 4, !0), (16, 6, !0), (32, 0, !0u32)] {
        acl.extend_from_slice(&u16::to_le_bytes(tag));
        acl.extend_from_slice(&u16::to_le_bytes(perm));
        acl.extend_from_slice(&id.to_le_bytes());
    }
    match client.setxattr(node, "system.posix_acl_access", &acl) {
        Err(Errno::OPNOTSUPP) => println!("skipped: the file system has no ACLs"),
        set => {
            set.unwrap();
            assert_eq!(client.getattr(node).unwrap().mode, 0o100_660);
        }
    }
    // cap_net_raw=ep, VFS_CAP_REVISION_2
    let mut capability = 0x0200_0001u32.to_le_bytes().to_vec();
    capability.extend_from_slice(&(1u32 << 13).to_le_bytes());
    capability.extend_from_slice(&[0; 12]);
    client.setxattr(node, "security.capability", &capability).unwrap();
    assert_eq!(client.getxattr(node, "security.capability", 64).unwrap(), capability);
}

#[test]
fn single_file_share_is_served() {
    let mut client = Client::new();
    let entry = client.lookup(ROOT_ID, "file").unwrap();
    assert_eq!(FileType::from_raw_mode(entry.attr.mode), FileType::RegularFile);
    let opened = client.open(entry.nodeid, OFlags::RDWR).unwrap();
    opened.file.unwrap().write_all(b"SINGLE").unwrap();
    assert_eq!(std::fs::read(client.dir.path().join("single")).unwrap(), b"SINGLE");
    assert_eq!(client.lookup(entry.nodeid, "x").unwrap_err(), Errno::NOTDIR);
    assert_eq!(client.lookup(entry.nodeid, "..").unwrap_err(), Errno::INVAL);
    // Names do not move between shares.
    let root = client.root();
    let wanted = LinkIn { oldnodeid: entry.nodeid };
    assert_eq!(client.named(opcode::LINK, root, &wanted, "l").unwrap_err(), Errno::XDEV);
}

#[test]
fn forgotten_inode_is_let_go() {
    let mut client = Client::new();
    std::fs::write(client.host("f"), "").unwrap();
    let first = client.walk("f").unwrap();
    assert_eq!(client.walk("f").unwrap(), first);
    client.send(opcode::FORGET, first, &[ForgetIn { nlookup: 1 }.as_bytes()]);
    assert!(client.getattr(first).is_ok());
    let batch = BatchForgetIn { count: u32::MAX, dummy: 0 };
    let one = ForgetOne { nodeid: first, nlookup: 1 };
    client.send(opcode::BATCH_FORGET, 0, &[batch.as_bytes(), one.as_bytes()]);
    // Another thread may serve this request before the one that forgets.
    while client.getattr(first).is_ok() {}
    assert_eq!(client.getattr(first).unwrap_err(), Errno::STALE);
    assert_ne!(client.walk("f").unwrap(), first);
}

#[test]
fn statfs_and_syncfs_reach_the_file_system() {
    let mut client = Client::new();
    let root = client.root();
    let found = client.call(opcode::STATFS, root, &[]).unwrap().take::<StatfsOut>(0);
    assert!(found.blocks > 0 && found.namelen == 255);
    client.call(opcode::STATFS, ROOT_ID, &[]).unwrap();
    client.call(opcode::SYNCFS, root, &[&[0; 8]]).unwrap();
    client.call(opcode::SYNCFS, ROOT_ID, &[&[0; 8]]).unwrap();
}

#[test]
fn permissions_of_the_host_do_not_stop_what_the_guest_has_checked() {
    if !is_root() {
        return;
    }
    let mut client = Client::new();
    std::fs::create_dir(client.host("d")).unwrap();
    std::fs::set_permissions(client.host("d"), PermissionsExt::from_mode(0o700)).unwrap();
    let dir = client.walk("d").unwrap();
    (client.uid, client.gid) = (1234, 4321);
    client.create(dir, "f", OFlags::RDWR, 0o600).unwrap();
    let made = std::fs::metadata(client.host("d/f")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1234, 4321));
}
