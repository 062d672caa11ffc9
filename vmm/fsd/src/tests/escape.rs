//! What a hostile guest does to get out of the tree, and does not get.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::client::*;
use crate::abi::*;

#[test]
fn name_that_leads_out_is_refused_by_every_operation() {
    let mut client = Client::new();
    std::fs::write(client.dir.path().join("secret"), "s").unwrap();
    let root = client.root();
    for name in ["..", ".", "../secret", "/etc", "a/b", ""] {
        let outcomes = [
            client.lookup(root, name).map(drop),
            client.create(root, name, OFlags::RDWR, 0o600).map(drop),
            client.mkdir(root, name, 0o700).map(drop),
            client.mknod(root, name, 0o010_600, 0).map(drop),
            client.call(opcode::SYMLINK, root, &[&z(name), &z("t")]).map(drop),
            client.call(opcode::UNLINK, root, &[&z(name)]).map(drop),
            client.call(opcode::RMDIR, root, &[&z(name)]).map(drop),
            client.rename((root, name), (root, "x"), 0),
            client.rename((root, "x"), (root, name), 0),
        ];
        for (index, outcome) in outcomes.into_iter().enumerate() {
            assert_eq!(outcome.unwrap_err(), Errno::INVAL, "{name:?} in operation {index}");
        }
    }
    assert_eq!(client.lookup(ROOT_ID, "..").unwrap_err(), Errno::INVAL);
}

#[test]
fn symbolic_link_is_an_inode_and_never_followed() {
    let mut client = Client::new();
    let secret = client.dir.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    std::fs::create_dir(client.dir.path().join("outside")).unwrap();
    symlink(&secret, client.host("absolute")).unwrap();
    symlink("../secret", client.host("relative")).unwrap();
    symlink("../outside", client.host("directory")).unwrap();
    let root = client.root();
    for name in ["absolute", "relative", "directory"] {
        let node = client.walk(name).unwrap();
        assert_eq!(client.getattr(node).unwrap().mode & 0o170_000, 0o120_000);
        assert_eq!(client.open(node, OFlags::RDWR).unwrap_err(), Errno::LOOP);
        assert_eq!(client.opendir(node).unwrap_err(), Errno::NOTDIR);
        assert_eq!(client.lookup(node, "x").unwrap_err(), Errno::NOTDIR);
        let size = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, size).unwrap_err(), Errno::INVAL);
        let mode = SetattrIn { valid: fattr::MODE, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, mode).unwrap_err(), Errno::OPNOTSUPP);
        assert!(client.create(root, name, OFlags::RDWR | OFlags::TRUNC, 0o600).is_err());
        assert!(client.setxattr(node, "user.x", b"x").is_err());
        let wanted = MkdirIn { mode: 0o700, umask: 0 };
        assert!(client.named(opcode::MKDIR, node, &wanted, "x").is_err());
    }
    if is_root() {
        let node = client.walk("absolute").unwrap();
        let owner = SetattrIn { valid: fattr::UID | fattr::MTIME, uid: 7, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, owner).unwrap().uid, 7);
        let untouched = std::fs::metadata(&secret).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&untouched), 0);
    }
    assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(client.dir.path().join("outside")).unwrap().count(), 0);
}

#[test]
fn special_file_is_never_opened() {
    let mut client = Client::new();
    let root = client.root();
    let fifo = client.mknod(root, "fifo", 0o010_666, 0).unwrap().nodeid;
    let socket = client.mknod(root, "socket", 0o140_666, 0).unwrap().nodeid;
    let mut nodes = vec![("fifo", fifo), ("socket", socket)];
    if is_root() {
        // /dev/zero: opening it would work on the host.
        match client.mknod(root, "zero", 0o020_666, (1 << 8) | 5) {
            Ok(made) => nodes.push(("zero", made.nodeid)),
            Err(errno) => println!("no device node on this machine: {errno}"),
        }
    }
    for (name, node) in nodes {
        for flags in [OFlags::RDONLY, OFlags::RDWR, OFlags::WRONLY | OFlags::TRUNC] {
            assert_eq!(client.open(node, flags).unwrap_err(), Errno::NXIO, "{name}");
            assert_eq!(client.create(root, name, flags, 0o600).unwrap_err(), Errno::NXIO, "{name}");
        }
        let size = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, size).unwrap_err(), Errno::INVAL);
        assert_eq!(client.opendir(node).unwrap_err(), Errno::NOTDIR);
        assert_eq!(client.call(opcode::SYNCFS, node, &[&[0; 8]]).unwrap_err(), Errno::NXIO);
    }
}

fn release(client: &mut Client, opened: OpenOut) {
    let wanted = ReleaseIn { fh: opened.fh, ..ReleaseIn::default() };
    client.call(opcode::RELEASE, ROOT_ID, &[wanted.as_bytes()]).unwrap();
}

#[test]
fn directory_swapped_for_a_link_while_it_is_walked_never_leads_out() {
    let mut client = Client::new();
    let outside = client.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("f"), "secret").unwrap();
    std::fs::create_dir(client.host("d")).unwrap();
    std::fs::write(client.host("d/f"), "inside").unwrap();
    symlink(&outside, client.host("l")).unwrap();
    let (d, l) = (client.host("d"), client.host("l"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, &d, cwd, &l, flags).unwrap();
            }
        });
        let root = client.root();
        let mut entered = 0;
        for round in 0..2000 {
            let Ok(dir) = client.lookup(root, "d") else {
                continue;
            };
            if let Ok(file) = client.lookup(dir.nodeid, "f") {
                assert_eq!(file.attr.size, "inside".len() as u64);
                let opened = client.open(file.nodeid, OFlags::RDONLY).unwrap();
                release(&mut client, opened.take(0));
                let text = std::io::read_to_string(opened.file.unwrap()).unwrap();
                assert_eq!(text, "inside");
                entered += 1;
            }
            let name = format!("n{}", round % 8);
            if let Ok(made) = client.create(dir.nodeid, &name, OFlags::RDWR, 0o600) {
                release(&mut client, made.take(size_of::<EntryOut>()));
            }
        }
        stop.store(true, Ordering::Relaxed);
        println!("walked in {entered} times");
        assert!(entered > 0, "the race was never run");
    });
    let names: Vec<_> =
        std::fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["f"], "something was made outside");
}

#[test]
fn magic_link_in_the_tree_leads_nowhere() {
    let mut client = Client::new();
    // A link of the guest's making that names the server's own descriptors.
    symlink("/proc/self/fd/0", client.host("magic")).unwrap();
    let node = client.walk("magic").unwrap();
    assert_eq!(client.open(node, OFlags::RDONLY).unwrap_err(), Errno::LOOP);
}

#[test]
fn root_of_a_share_is_a_mount_to_the_guest() {
    let mut client = Client::new();
    let entry = client.lookup(ROOT_ID, "root").unwrap();
    assert_eq!(entry.attr.flags, ATTR_SUBMOUNT);
    std::fs::create_dir(client.host("d")).unwrap();
    let inner = client.lookup(entry.nodeid, "d").unwrap();
    assert_eq!(inner.attr.flags, 0);
    assert_eq!(client.lookup(ROOT_ID, "file").unwrap().attr.flags, 0);
}
