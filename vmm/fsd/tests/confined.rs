//! The real process in its real jail: every operation once, so that a system call that the
//! policy lacks, or a capability, is found here and not by a guest.
//!
//! The process must be PID 1 of a PID namespace of its own, as under the runtime. Here `unshare`
//! sees to that. It needs root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};

use bulkhead_fsd::abi::*;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use zerocopy::{FromBytes, IntoBytes};

fn socket_pair() -> (OwnedFd, OwnedFd) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let bytes = [IoSlice::new(bytes)];
    rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// The running process and both of its sockets.
struct Server {
    child: Child,
    control: OwnedFd,
    device: OwnedFd,
    unique: u64,
}

impl Server {
    fn start(tree: &std::path::Path) -> Self {
        let (control, theirs) = socket_pair();
        // The shell moves the socket to its number, and becomes the server.
        let script = "exec \"$0\" 3<&0 0</dev/null";
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sh", "-c", script])
            .arg(env!("CARGO_BIN_EXE_bulkhead-fsd"))
            .stdin(theirs)
            .spawn()
            .unwrap();
        let (device, served) = socket_pair();
        let share = rustix::fs::openat(CWD, tree, OFlags::PATH, Mode::empty()).unwrap();
        let config = serde_json::json!({
            "device": 0,
            "shares": [{ "name": "root", "source": 1, "read_only": false }],
        });
        let fds = [served.as_fd(), share.as_fd()];
        send(&control, config.to_string().as_bytes(), &fds);
        Self { child, control, device, unique: 0 }
    }

    /// Error number, payload and file of the reply to a request of user 1000.
    fn ask(&mut self, opcode: u32, nodeid: u64, body: &[&[u8]]) -> (i32, Vec<u8>, Option<OwnedFd>) {
        self.unique += 1;
        let body = body.concat();
        let len = 40 + body.len() as u32;
        let (uid, gid, unique) = (1000, 1000, self.unique);
        let header = InHeader { len, opcode, unique, nodeid, uid, gid, ..InHeader::default() };
        send(&self.device, &[header.as_bytes(), &body].concat(), &[]);
        let mut bytes = vec![0; 1 << 17];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut vectors = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.device, &mut vectors, &mut ancillary, flags);
        let len = received.map_or(0, |received| received.bytes);
        assert_ne!(len, 0, "the server ended at operation {opcode}: {:?}", self.child.wait());
        let file = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let (header, payload) = OutHeader::read_from_prefix(&bytes[..len]).unwrap();
        (-header.error, payload.to_vec(), file)
    }

    /// What the runtime is answered: why not, if not.
    fn request(&mut self, request: &serde_json::Value, fds: &[BorrowedFd<'_>]) -> Option<String> {
        send(&self.control, request.to_string().as_bytes(), fds);
        let mut text = [0; 4096];
        let flags = RecvFlags::empty();
        let len = rustix::net::recv(&self.control, &mut text[..], flags).unwrap().1;
        let reply: serde_json::Value = serde_json::from_slice(&text[..len]).unwrap();
        match reply["reply"].as_str() {
            Some("done") => None,
            _ => Some(reply["message"].as_str().unwrap().to_owned()),
        }
    }

    fn good(&mut self, opcode: u32, nodeid: u64, body: &[&[u8]]) -> Vec<u8> {
        let (error, payload, _) = self.ask(opcode, nodeid, body);
        assert_eq!(error, 0, "operation {opcode}");
        payload
    }

    fn entry(&mut self, opcode: u32, nodeid: u64, body: &[&[u8]]) -> EntryOut {
        EntryOut::read_from_prefix(&self.good(opcode, nodeid, body)).unwrap().0
    }

    /// Opens, and checks that the file came along.
    fn open(
        &mut self,
        opcode: u32,
        nodeid: u64,
        body: &[&[u8]],
        at: usize,
    ) -> (u64, std::fs::File) {
        let (error, payload, file) = self.ask(opcode, nodeid, body);
        assert_eq!(error, 0, "operation {opcode}");
        let out = OpenOut::read_from_prefix(&payload[at..]).unwrap().0;
        (out.fh, file.unwrap().into())
    }
}

#[test]
fn confined_server_has_what_every_operation_needs() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: the jail needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let wanted = InitIn { major: 7, minor: 41, max_readahead: 0, flags: u32::MAX };
    server.good(opcode::INIT, 0, &[wanted.as_bytes(), &[0; 48]]);
    let root = server.entry(opcode::LOOKUP, ROOT_ID, &[b"root\0"]).nodeid;

    names(&mut server, root, dir.path());
    contents(&mut server, root, dir.path());
    attributes(&mut server, root);
    listings(&mut server, root);

    drop(server.control);
    let status = server.child.wait().unwrap();
    assert!(status.success(), "{status:?} {:?}", status.signal());
}

/// A share is added to a server that serves, and goes again, with all that the guest knew of it.
#[test]
fn share_comes_and_goes_while_the_server_serves() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: the jail needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let more = tempfile::tempdir().unwrap();
    std::fs::write(more.path().join("f"), "more").unwrap();
    let mut server = Server::start(dir.path());
    let wanted = InitIn { major: 7, minor: 41, max_readahead: 0, flags: u32::MAX };
    server.good(opcode::INIT, 0, &[wanted.as_bytes(), &[0; 48]]);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let within = rustix::fs::openat(CWD, more.path(), flags, Mode::empty()).unwrap();
    let add = |server: &mut Server, name: &str, read_only: bool, fd: &OwnedFd| {
        let share = serde_json::json!({ "name": name, "source": 0, "read_only": read_only });
        let request = serde_json::json!({ "op": "add", "shares": [share] });
        server.request(&request, &[fd.as_fd()])
    };
    let refused = add(&mut server, "x", false, &within);
    assert_eq!(refused, Some("share \"x\" is not set apart from the host's tree".to_owned()));
    let apart = |read_only| {
        let source = within.try_clone().unwrap();
        bulkhead_jail::apart::set_apart(source, read_only).unwrap()
    };
    let writable = apart(false);
    assert!(add(&mut server, "x", true, &writable).is_some(), "the kernel would let it change");
    assert_eq!(
        add(&mut server, "root", false, &writable).unwrap(),
        "share \"root\" is served already"
    );
    let absent = server.ask(opcode::LOOKUP, ROOT_ID, &[b"x\0"]).0;
    assert_eq!(absent, rustix::io::Errno::NOENT.raw_os_error());
    for round in 0..3 {
        assert_eq!(add(&mut server, "x", round == 1, &apart(round == 1)), None);
        let x = server.entry(opcode::LOOKUP, ROOT_ID, &[b"x\0"]).nodeid;
        let f = server.entry(opcode::LOOKUP, x, &[b"f\0"]).nodeid;
        let wanted = MkdirIn { mode: 0o777, umask: 0 };
        let name = format!("d{round}\0");
        let made = server.ask(opcode::MKDIR, x, &[wanted.as_bytes(), name.as_bytes()]).0;
        assert_eq!(made, if round == 1 { rustix::io::Errno::ROFS.raw_os_error() } else { 0 });
        let names = serde_json::json!({ "op": "remove", "names": ["x", "never"] });
        assert_eq!(server.request(&names, &[]), None);
        for node in [x, f] {
            let stale = server.ask(opcode::GETATTR, node, &[&[0; 16]]).0;
            assert_eq!(stale, rustix::io::Errno::STALE.raw_os_error());
        }
        assert_eq!(server.ask(opcode::LOOKUP, ROOT_ID, &[b"x\0"]).0, absent);
    }
    server.entry(opcode::LOOKUP, ROOT_ID, &[b"root\0"]);
    assert!(server.request(&serde_json::json!({ "op": "other" }), &[]).is_some());
    drop(server.control);
    assert!(server.child.wait().unwrap().success());
}

/// The attack: a guest that runs its own code in the server, and walks up from what it holds.
#[test]
fn descriptor_of_a_confined_server_leads_nowhere_above_its_share() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: the jail needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("outside"), "secret").unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let mut server = Server::start(&tree);
    let wanted = InitIn { major: 7, minor: 41, max_readahead: 0, flags: u32::MAX };
    server.good(opcode::INIT, 0, &[wanted.as_bytes(), &[0; 48]]);

    let parent = server.child.id();
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let pid: u32 = children.unwrap().trim().parse().unwrap();
    let share = std::fs::metadata(&tree).unwrap().ino();
    let mut found = 0;
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let fd = fd.unwrap().path();
        found += usize::from(std::fs::metadata(&fd).is_ok_and(|file| file.ino() == share));
        assert!(!fd.join("../outside").exists(), "{} leads out", fd.display());
    }
    assert_eq!(found, 1, "the share is held once");
    drop(server.control);
    assert!(server.child.wait().unwrap().success());
}

fn names(server: &mut Server, root: u64, tree: &std::path::Path) {
    let wanted = MkdirIn { mode: 0o777, umask: 0o022 };
    let dir = server.entry(opcode::MKDIR, root, &[wanted.as_bytes(), b"d\0"]);
    assert_eq!((dir.attr.uid, dir.attr.mode & 0o777), (1000, 0o755));
    server.entry(opcode::SYMLINK, root, &[b"s\0", b"target\0"]);
    let link = server.entry(opcode::LOOKUP, root, &[b"s\0"]).nodeid;
    assert_eq!(server.good(opcode::READLINK, link, &[]), b"target");
    for (name, mode) in [(b"p\0", 0o010_600), (b"c\0", 0o020_600), (b"g\0", 0o102_770)] {
        let wanted = MknodIn { mode, rdev: 0x103, ..MknodIn::default() };
        let made = server.entry(opcode::MKNOD, root, &[wanted.as_bytes(), name]);
        assert_eq!(made.attr.mode, mode);
    }
    let wanted = LinkIn { oldnodeid: link };
    server.entry(opcode::LINK, root, &[wanted.as_bytes(), b"s2\0"]);
    let wanted = Rename2In { newdir: dir.nodeid, flags: 1, padding: 0 };
    server.good(opcode::RENAME2, root, &[wanted.as_bytes(), b"s2\0", b"s3\0"]);
    server.good(opcode::UNLINK, dir.nodeid, &[b"s3\0"]);
    server.good(opcode::RMDIR, root, &[b"d\0"]);
    assert_eq!(std::fs::symlink_metadata(tree.join("c")).unwrap().uid(), 1000);
}

fn contents(server: &mut Server, root: u64, tree: &std::path::Path) {
    let create = CreateIn { flags: 2, mode: 0o100_644, ..CreateIn::default() };
    let (fh, file) = server.open(opcode::CREATE, root, &[create.as_bytes(), b"f\0"], 128);
    file.write_all_at(b"written by the VMM", 0).unwrap();
    assert_eq!(std::fs::read(tree.join("f")).unwrap(), b"written by the VMM");
    let node = server.entry(opcode::LOOKUP, root, &[b"f\0"]).nodeid;
    let (to, _) =
        server.open(opcode::OPEN, node, &[OpenIn { flags: 1, open_flags: 0 }.as_bytes()], 0);
    server.open(opcode::TMPFILE, root, &[create.as_bytes(), b"\0"], 128);
    let wanted = FallocateIn { fh, length: 100, ..FallocateIn::default() };
    server.good(opcode::FALLOCATE, node, &[wanted.as_bytes()]);
    let wanted = CopyFileRangeIn {
        fh_in: fh,
        fh_out: to,
        off_out: 4096,
        len: 10,
        ..CopyFileRangeIn::default()
    };
    server.good(opcode::COPY_FILE_RANGE, node, &[wanted.as_bytes()]);
    for fsync_flags in [0, FSYNC_FDATASYNC] {
        let wanted = FsyncIn { fh, fsync_flags, padding: 0 };
        server.good(opcode::FSYNC, node, &[wanted.as_bytes()]);
    }
    server.good(opcode::SYNCFS, root, &[&[0; 8]]);
    server.good(opcode::RELEASE, node, &[ReleaseIn { fh, ..ReleaseIn::default() }.as_bytes()]);
}

fn attributes(server: &mut Server, root: u64) {
    let node = server.entry(opcode::LOOKUP, root, &[b"f\0"]).nodeid;
    server.good(opcode::GETATTR, node, &[&[0; 16]]);
    server.good(opcode::STATFS, node, &[]);
    let wanted = SetattrIn {
        valid: fattr::MODE | fattr::UID | fattr::GID | fattr::SIZE | fattr::MTIME_NOW,
        mode: 0o2755,
        uid: 5,
        gid: 6,
        size: 7,
        ..SetattrIn::default()
    };
    let out = server.good(opcode::SETATTR, node, &[wanted.as_bytes()]);
    let attr = AttrOut::read_from_prefix(&out).unwrap().0.attr;
    // The truncation, after the change of mode, clears the set-group-id bit.
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.size), (0o100_755, 5, 6, 7));

    let set = SetattrIn { valid: fattr::MODE, mode: 0o2755, ..SetattrIn::default() };
    let out = server.good(opcode::SETATTR, node, &[set.as_bytes()]);
    assert_eq!(AttrOut::read_from_prefix(&out).unwrap().0.attr.mode, 0o102_755);

    // cap_net_raw=ep
    let mut capability = 0x0200_0001u32.to_le_bytes().to_vec();
    capability.extend_from_slice(&(1u64 << 13).to_le_bytes());
    capability.extend_from_slice(&[0; 8]);
    let size = capability.len() as u32;
    let wanted = SetxattrIn { size, flags: 0 };
    let name = b"security.capability\0";
    let body: [&[u8]; 4] = [wanted.as_bytes(), &[0; 8], name, &capability];
    server.good(opcode::SETXATTR, node, &body);
    let wanted = GetxattrIn { size: 64, padding: 0 };
    assert_eq!(server.good(opcode::GETXATTR, node, &[wanted.as_bytes(), name]), capability);
    assert_eq!(server.good(opcode::LISTXATTR, node, &[wanted.as_bytes()]), name);
    server.good(opcode::REMOVEXATTR, node, &[name]);
}

fn listings(server: &mut Server, root: u64) {
    let (error, out, file) = server.ask(opcode::OPENDIR, root, &[&[0; 8]]);
    assert!(error == 0 && file.is_none(), "a directory is never handed over");
    let fh = OpenOut::read_from_prefix(&out).unwrap().0.fh;
    let wanted = ReadIn { fh, size: 4096, ..ReadIn::default() };
    assert!(!server.good(opcode::READDIR, root, &[wanted.as_bytes()]).is_empty());
    assert!(!server.good(opcode::READDIRPLUS, root, &[wanted.as_bytes()]).is_empty());
    let wanted = FsyncIn { fh, ..FsyncIn::default() };
    server.good(opcode::FSYNCDIR, root, &[wanted.as_bytes()]);
    server.good(opcode::RELEASEDIR, root, &[ReleaseIn { fh, ..ReleaseIn::default() }.as_bytes()]);
    server.good(opcode::DESTROY, 0, &[]);
}
