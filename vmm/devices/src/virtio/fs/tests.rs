//! The device between a driver that Linux could be and a server that the test plays.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use zerocopy::{FromBytes, IntoBytes};

use super::backend::MESSAGE_MAX;
use super::transfer::DATA_MAX;
use super::wire::*;
use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{BUFFERS, Desc, Machine, no_hook, readable, writable};

/// The request queue.
const REQUESTS: usize = 1;
/// Bytes of guest memory for one request, and for its reply.
const PART: u64 = 0x1_2000;

/// The end of the socket that the device does not have.
struct Server(OwnedFd);

impl ScmSocket for Server {
    fn socket_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Server {
    /// The next message: header and body.
    fn next(&self) -> (InHeader, Vec<u8>) {
        let mut bytes = vec![0; MESSAGE_MAX];
        // SAFETY: `bytes` is writable for its length.
        let len =
            unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        bytes.truncate(usize::try_from(len).unwrap());
        let header = InHeader::read_from_prefix(&bytes).unwrap().0;
        assert_eq!(header.len as usize, bytes.len());
        (header, bytes.split_off(40))
    }

    fn is_idle(&self) -> bool {
        let mut byte = [0u8];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: `byte` is writable for its length.
        unsafe { libc::recv(self.0.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) < 0 }
    }

    fn send(&self, bytes: &[u8], file: Option<RawFd>) {
        match file {
            Some(fd) => self.send_with_fd(bytes, fd).map(drop).unwrap(),
            None => self.send_with_fds(&[bytes], &[]).map(drop).unwrap(),
        }
    }

    fn reply(&self, unique: u64, error: i32, payload: &[u8], file: Option<RawFd>) {
        let len = 16 + payload.len() as u32;
        let header = OutHeader { len, error, unique };
        self.send(&[header.as_bytes(), payload].concat(), file);
    }

    /// Answers the next message, an OPEN, with `file` as `fh`.
    fn open(&self, fh: u64, file: RawFd) {
        let (header, _) = self.next();
        assert_eq!(header.opcode, opcode::OPEN);
        let out = OpenOut { fh, open_flags: 0, backing_id: 0 };
        self.reply(header.unique, 0, out.as_bytes(), Some(file));
    }
}

struct Guest {
    machine: Machine<Fs>,
    gone: EventFd,
}

fn setup(files_max: usize) -> (Guest, Server) {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for two descriptors.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) };
    assert_eq!(made, 0);
    let [device, server] = ends.map(|fd| {
        // SAFETY: socketpair has just made it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    });
    let gone = EventFd::new(0).unwrap();
    let backend = Backend::new(device, gone.try_clone().unwrap()).unwrap();
    let config = FsConfig { tag: Tag::try_from("bulkhead").unwrap(), files_max };
    let mut machine = Machine::new(Fs::new(config, Some(backend), &no_hook()).unwrap());
    machine.start(0);
    (Guest { machine, gone }, Server(server))
}

impl Guest {
    /// Offers a request at position `slot` of the guest's memory.
    fn offer_bytes(&mut self, slot: u64, request: &[u8], room: u32) -> u32 {
        let at = BUFFERS + slot * 2 * PART;
        self.machine.memory.write_slice(request, GuestAddress(at)).unwrap();
        let descriptors = [readable(at, request.len() as u32), writable(at + PART, room)];
        let used = if room == 0 { 1 } else { 2 };
        let head = self.machine.queues[REQUESTS].offer(&descriptors[..used]);
        self.machine.kick(REQUESTS as u32);
        head.into()
    }

    fn offer(&mut self, slot: u64, unique: u64, opcode: u32, body: &[u8], room: u32) -> u32 {
        let len = 40 + body.len() as u32;
        let header = InHeader { len, opcode, unique, nodeid: 7, ..InHeader::default() };
        self.offer_bytes(slot, &[header.as_bytes(), body].concat(), room)
    }

    /// The next reply: its head, header and payload, of the request at `slot`.
    fn reply(&mut self, slot: u64) -> (u32, OutHeader, Vec<u8>) {
        let [(head, len)] = self.machine.wait_used(REQUESTS, 1)[..] else {
            panic!("more than one reply");
        };
        let mut bytes = vec![0; len as usize];
        let at = GuestAddress(BUFFERS + (slot * 2 + 1) * PART);
        self.machine.memory.read_slice(&mut bytes, at).unwrap();
        let header = OutHeader::read_from_prefix(&bytes).unwrap().0;
        assert_eq!(header.len, len);
        (head, header, bytes.split_off(16))
    }

    /// The error of a transfer of `size` bytes of file 3, with `data` readable bytes in `chain`,
    /// which goes on after the request and has the reply at its usual place.
    fn transfer(&mut self, opcode: u32, size: u32, data: u32, chain: &[Desc]) -> i32 {
        let header = InHeader { len: 80 + data, opcode, unique: 9, ..InHeader::default() };
        let request = [header.as_bytes(), transfer(3, 0, size).as_bytes()].concat();
        self.machine.memory.write_slice(&request, GuestAddress(BUFFERS)).unwrap();
        self.machine.queues[REQUESTS].offer(&[&[readable(BUFFERS, 80)], chain].concat());
        self.machine.kick(REQUESTS as u32);
        self.machine.wait_used(REQUESTS, 1);
        let mut reply = [0; 16];
        self.machine.memory.read_slice(&mut reply, GuestAddress(BUFFERS + PART)).unwrap();
        -OutHeader::read_from_bytes(&reply).unwrap().error
    }

    /// A request that is answered at once: error number and payload.
    fn ask(&mut self, opcode: u32, body: &[u8], room: u32) -> (i32, Vec<u8>) {
        let head = self.offer(0, 99, opcode, body, room);
        let (used, header, payload) = self.reply(0);
        assert_eq!((used, header.unique), (head, 99));
        (-header.error, payload)
    }

    fn open(&mut self, server: &Server, fh: u64, file: RawFd) -> (i32, Vec<u8>) {
        let head = self.offer(0, 5, opcode::OPEN, &[0; 8], 64);
        server.open(fh, file);
        let (used, header, payload) = self.reply(0);
        assert_eq!((used, header.unique), (head, 5));
        (-header.error, payload)
    }
}

fn transfer(fh: u64, offset: u64, size: u32) -> TransferIn {
    TransferIn { fh, offset, size, ..TransferIn::default() }
}

#[test]
fn configuration_names_tag_and_queue() {
    let (guest, _server) = setup(4);
    let mut space = [0xff; 48];
    guest.machine.transport.device().read_config(0, &mut space);
    assert_eq!(&space[..9], b"bulkhead\0");
    assert_eq!(space[36..], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    guest.machine.transport.device().read_config(u64::MAX, &mut space);
    assert_eq!(space, [0; 48]);
    assert_eq!(Tag::try_from(""), Err(TagError(0)));
    assert_eq!(Tag::try_from("x".repeat(37).as_str()), Err(TagError(37)));
}

#[test]
fn requests_reach_the_server_and_replies_come_back_in_any_order() {
    let (mut guest, server) = setup(4);
    let first = guest.offer(0, 11, 1, b"one\0", 64);
    let second = guest.offer(1, 12, 3, b"two\0", 64);
    let (to_first, body) = server.next();
    assert_eq!((to_first.opcode, to_first.nodeid, &body[..]), (1, 7, &b"one\0"[..]));
    let (to_second, _) = server.next();
    server.reply(to_second.unique, 0, b"2nd", None);
    let (head, header, payload) = guest.reply(1);
    assert_eq!((head, header.unique, header.error, &payload[..]), (second, 12, 0, &b"2nd"[..]));
    server.reply(to_first.unique, -libc::ENOENT, b"", None);
    let (head, header, payload) = guest.reply(0);
    assert_eq!((head, header.unique, header.error), (first, 11, -libc::ENOENT));
    assert!(payload.is_empty());
}

#[test]
fn number_used_twice_by_the_guest_means_two_requests() {
    let (mut guest, server) = setup(4);
    let first = guest.offer(0, 11, 1, b"one\0", 64);
    let second = guest.offer(1, 11, 1, b"two\0", 64);
    let ((a, _), (b, _)) = (server.next(), server.next());
    assert_ne!(a.unique, b.unique);
    server.reply(b.unique, 0, b"to two", None);
    let (head, header, payload) = guest.reply(1);
    assert_eq!((head, header.unique, &payload[..]), (second, 11, &b"to two"[..]));
    // A second reply to the same request is dropped.
    server.reply(b.unique, 0, b"again", None);
    server.reply(a.unique, 0, b"to one", None);
    let (head, _, payload) = guest.reply(0);
    assert_eq!((head, &payload[..]), (first, &b"to one"[..]));
}

#[test]
fn data_of_an_open_file_moves_without_the_server() {
    let (mut guest, server) = setup(4);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    assert_eq!(guest.open(&server, 3, file.as_raw_fd()).0, 0);

    let (error, data) = guest.ask(opcode::READ, transfer(3, 2, 4).as_bytes(), 64);
    assert_eq!((error, &data[..]), (0, &b"2345"[..]));
    let (error, data) = guest.ask(opcode::READ, transfer(3, 8, u32::MAX).as_bytes(), 64);
    assert_eq!((error, &data[..]), (0, &b"89"[..]));
    let (error, _) = guest.ask(opcode::READ, transfer(3, u64::MAX, 4).as_bytes(), 64);
    assert_eq!(error, libc::EINVAL);

    let body = [transfer(3, 10, 3).as_bytes(), b"abc"].concat();
    let (error, out) = guest.ask(opcode::WRITE, &body, 64);
    assert_eq!((error, &out[..4]), (0, &3u32.to_le_bytes()[..]));
    let (error, _) = guest.ask(opcode::WRITE, &body[..body.len() - 1], 64);
    assert_eq!(error, libc::EINVAL, "a size that is not that of the data");

    let seek = LseekIn { fh: 3, offset: 1, whence: libc::SEEK_HOLE as u32, padding: 0 };
    assert_eq!(guest.ask(opcode::LSEEK, seek.as_bytes(), 64), (0, 13u64.to_le_bytes().to_vec()));
    let set = LseekIn { whence: libc::SEEK_SET as u32, ..seek };
    assert_eq!(guest.ask(opcode::LSEEK, set.as_bytes(), 64).0, libc::EINVAL);

    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "0123456789abc");
    assert!(server.is_idle());
}

#[test]
fn transfer_through_buffers_that_overlap_is_bounded() {
    let (mut guest, server) = setup(4);
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 << 20).unwrap();
    guest.open(&server, 3, file.as_raw_fd());
    for (extra, expected) in [(0, 0), (1, libc::EINVAL)] {
        let buffers = |buffer: fn(u64, u32) -> Desc| {
            let at = BUFFERS + 2 * PART;
            let mut all = vec![buffer(at, 0x1_0000); DATA_MAX / 0x1_0000];
            all.push(buffer(at, extra));
            all
        };
        let size = DATA_MAX as u32 + extra;
        let out = writable(BUFFERS + PART, 16);
        let chain = [vec![out], buffers(writable)].concat();
        assert_eq!(guest.transfer(opcode::READ, size, 0, &chain), expected);
        let out = writable(BUFFERS + PART, 24);
        let chain = [buffers(readable), vec![out]].concat();
        assert_eq!(guest.transfer(opcode::WRITE, size, size, &chain), expected);
    }
}

#[test]
fn released_file_is_closed_here_and_at_the_server() {
    let (mut guest, server) = setup(4);
    let file = tempfile::tempfile().unwrap();
    guest.open(&server, 3, file.as_raw_fd());
    let release = ReleaseIn { fh: 3, flags: 0, release_flags: 0, lock_owner: 0 };
    guest.offer(0, 5, opcode::RELEASE, release.as_bytes(), 16);
    let (header, body) = server.next();
    assert_eq!((header.opcode, &body[..]), (opcode::RELEASE, release.as_bytes()));
    server.reply(header.unique, 0, b"", None);
    guest.reply(0);
    let (error, _) = guest.ask(opcode::READ, transfer(3, 0, 4).as_bytes(), 64);
    assert_eq!(error, libc::EBADF);
}

#[test]
fn new_session_closes_every_file() {
    let (mut guest, server) = setup(4);
    let file = tempfile::tempfile().unwrap();
    guest.open(&server, 3, file.as_raw_fd());
    guest.offer(0, 5, opcode::INIT, &[0; 64], 128);
    let (header, _) = server.next();
    server.reply(header.unique, 0, &[0; 64], None);
    assert_eq!(guest.reply(0).2.len(), 64);
    let (error, _) = guest.ask(opcode::READ, transfer(3, 0, 4).as_bytes(), 64);
    assert_eq!(error, libc::EBADF);
}

#[test]
fn what_is_no_regular_file_is_not_kept() {
    let (mut guest, server) = setup(4);
    let (pipe, _writer) = std::io::pipe().unwrap();
    let (error, _) = guest.open(&server, 3, pipe.as_raw_fd());
    assert_eq!(error, libc::EMFILE);
    let (header, body) = server.next();
    assert_eq!((header.opcode, body[0]), (opcode::RELEASE, 3), "the server keeps no handle");
    let (error, _) = guest.ask(opcode::READ, transfer(3, 0, 4).as_bytes(), 64);
    assert_eq!(error, libc::EBADF);
}

#[test]
fn more_files_than_allowed_are_refused_without_asking() {
    let (mut guest, server) = setup(2);
    let file = tempfile::tempfile().unwrap();
    guest.open(&server, 1, file.as_raw_fd());
    guest.offer(1, 8, opcode::OPEN, &[0; 8], 64);
    let (opening, _) = server.next();
    assert_eq!(guest.ask(opcode::CREATE, &[0; 16], 256).0, libc::ENFILE);
    assert!(server.is_idle());
    server.reply(opening.unique, -libc::EACCES, b"", None);
    guest.reply(1);
    assert_eq!(guest.open(&server, 2, file.as_raw_fd()).0, 0);
}

#[test]
fn forgets_are_passed_on_and_returned_without_a_reply() {
    let (mut guest, server) = setup(4);
    let head = guest.offer(0, 1, opcode::FORGET, &[1; 8], 0);
    assert_eq!(guest.machine.wait_used(REQUESTS, 1), [(head, 0)]);
    assert_eq!(server.next().0.opcode, opcode::FORGET);
    let head = guest.offer(0, 1, opcode::INTERRUPT, &[1; 8], 0);
    assert_eq!(guest.machine.wait_used(REQUESTS, 1), [(head, 0)]);
    assert!(server.is_idle());
}

#[test]
fn ioctl_is_refused_without_asking() {
    let (mut guest, server) = setup(4);
    assert_eq!(guest.ask(opcode::IOCTL, &[0; 32], 64).0, libc::ENOSYS);
    assert!(server.is_idle());
}

#[test]
fn requests_wait_while_the_server_reads_none() {
    let (mut guest, server) = setup(4);
    let body = vec![0xab; 64 << 10];
    let heads: Vec<u32> = (0..12).map(|n| guest.offer(0, n, 21, &body, 16)).collect();
    for _ in 0..12 {
        let (header, received) = server.next();
        assert_eq!(received, body);
        server.reply(header.unique, 0, b"", None);
    }
    let used = guest.machine.wait_used(REQUESTS, 12);
    assert_eq!(used.iter().map(|(head, _)| *head).collect::<Vec<_>>(), heads);
}

#[test]
fn malformed_request_is_answered_if_it_can_be() {
    let (mut guest, server) = setup(4);
    let head = guest.offer_bytes(0, &[1; 39], 64);
    assert_eq!(guest.machine.wait_used(REQUESTS, 1), [(head, 0)]);
    let header = InHeader { len: 44, opcode: 1, unique: 4, ..InHeader::default() };
    guest.offer_bytes(0, header.as_bytes(), 64);
    assert_eq!(guest.reply(0).1.error, -libc::EINVAL);
    let head = guest.offer_bytes(0, header.as_bytes(), 15);
    assert_eq!(guest.machine.wait_used(REQUESTS, 1), [(head, 0)]);
    for (opcode, body) in [(opcode::READ, 39), (opcode::LSEEK, 23), (opcode::RELEASE, 23)] {
        assert_eq!(guest.ask(opcode, &vec![0; body], 64).0, libc::EINVAL, "{opcode}");
    }
    assert_eq!(guest.ask(1, &vec![0; MESSAGE_MAX - 39], 64).0, libc::EMSGSIZE);
    assert!(server.is_idle());
}

#[test]
fn reply_without_room_is_an_error_to_that_request_only() {
    let (mut guest, server) = setup(4);
    guest.offer(0, 5, 3, &[0; 16], 20);
    let (header, _) = server.next();
    server.reply(header.unique, 0, &[1; 104], None);
    assert_eq!(guest.reply(0).1.error, -libc::EIO);
    guest.offer(0, 6, 3, &[0; 16], 120);
    let (header, _) = server.next();
    server.reply(header.unique, 0, &[1; 104], None);
    assert_eq!(guest.reply(0).1.error, 0);
}

#[test]
fn server_that_ends_fails_what_waits_and_all_that_follows() {
    let (mut guest, server) = setup(4);
    let file = tempfile::tempfile().unwrap();
    guest.open(&server, 3, file.as_raw_fd());
    guest.offer(0, 5, 1, b"x\0", 64);
    server.next();
    drop(server);
    assert_eq!(guest.reply(0).1.error, -libc::EIO);
    assert_eq!(guest.gone.read().unwrap(), 1);
    assert_eq!(guest.ask(opcode::INIT, &[0; 64], 64).0, libc::EIO);
    assert_eq!(guest.ask(opcode::READ, transfer(3, 0, 1).as_bytes(), 64).0, libc::EBADF);
    let head = guest.offer(0, 1, opcode::FORGET, &[1; 8], 0);
    assert_eq!(guest.machine.wait_used(REQUESTS, 1), [(head, 0)]);
}

#[test]
fn server_that_sends_nonsense_is_given_up() {
    let short = vec![0; 15];
    let wrong_length = OutHeader { len: 17, error: 0, unique: 0 }.as_bytes().to_vec();
    let positive = OutHeader { len: 16, error: 2, unique: 0 }.as_bytes().to_vec();
    let minimum = OutHeader { len: 16, error: i32::MIN, unique: 0 }.as_bytes().to_vec();
    let error = OutHeader { len: 17, error: -2, unique: 0 };
    let error_with_payload = [error.as_bytes(), &[0]].concat();
    let long = vec![0; MESSAGE_MAX + 1];
    for nonsense in [short, wrong_length, positive, minimum, error_with_payload, long] {
        let (mut guest, server) = setup(4);
        guest.offer(0, 5, 1, b"x\0", 64);
        server.next();
        server.send(&nonsense, None);
        assert_eq!(guest.reply(0).1.error, -libc::EIO);
        assert_eq!(guest.gone.read().unwrap(), 1);
    }
    let (mut guest, server) = setup(4);
    guest.offer(0, 5, opcode::OPEN, &[0; 8], 64);
    let (header, _) = server.next();
    server.reply(header.unique, 0, &[0; 15], None);
    assert_eq!(guest.reply(0).1.error, -libc::EIO);
    assert_eq!(guest.gone.read().unwrap(), 1);
}

#[test]
fn device_without_server_answers_with_an_error() {
    let config = FsConfig { tag: Tag::try_from("t").unwrap(), files_max: 4 };
    let mut machine = Machine::new(Fs::new(config, None, &no_hook()).unwrap());
    machine.start(0);
    let mut guest = Guest { machine, gone: EventFd::new(0).unwrap() };
    assert_eq!(guest.ask(opcode::INIT, &[0; 64], 64).0, libc::EIO);
}

#[test]
fn reply_from_before_a_reset_is_dropped() {
    let (mut guest, server) = setup(4);
    guest.offer(0, 5, opcode::OPEN, &[0; 8], 64);
    let (old, _) = server.next();
    guest.machine.write(0x70, 0);
    guest.machine.start(0);
    let file = tempfile::tempfile().unwrap();
    let head = guest.offer(0, 5, opcode::OPEN, &[0; 8], 64);
    let out = OpenOut { fh: 1, open_flags: 0, backing_id: 0 };
    server.reply(old.unique, 0, out.as_bytes(), Some(file.as_raw_fd()));
    server.open(2, file.as_raw_fd());
    let (used, header, payload) = guest.reply(0);
    assert_eq!((used, header.error, payload[0]), (head, 0, 2));
    assert_eq!(guest.ask(opcode::READ, transfer(1, 0, 1).as_bytes(), 64).0, libc::EBADF);
}

#[test]
fn pause_keeps_files_and_waiting_requests() {
    let (mut guest, server) = setup(4);
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(b"kept").unwrap();
    guest.open(&server, 3, file.as_raw_fd());
    guest.offer(0, 5, 1, b"x\0", 64);
    let (waiting, _) = server.next();
    guest.machine.transport.device_mut().pause();
    let state = guest.machine.transport.device().state();
    assert_eq!((state.open_files, state.in_flight), (vec![3], 1));
    server.reply(waiting.unique, 0, b"late", None);
    guest.machine.transport.device_mut().resume().unwrap();
    assert_eq!(guest.reply(0).2, b"late");
    let (error, data) = guest.ask(opcode::READ, transfer(3, 0, 4).as_bytes(), 64);
    assert_eq!((error, &data[..]), (0, &b"kept"[..]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_replies_leave_the_device_answering(
        replies in proptest::collection::vec(
            (0usize..4, any::<bool>(), -3i32..2, proptest::collection::vec(any::<u8>(), 0..200)),
            0..12,
        ),
        noise in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..80)),
    ) {
        let (mut guest, server) = setup(2);
        let file = tempfile::tempfile().unwrap();
        let codes = [1, opcode::OPEN, opcode::CREATE, 28];
        for (slot, code) in (0..).zip(codes) {
            guest.offer(slot, slot, code, &[0; 16], 100);
        }
        let asked: Vec<_> = codes.iter().map(|_| server.next().0.unique).collect();
        for (which, whole, error, payload) in &replies {
            let len = 16 + payload.len() as u32 + u32::from(!whole);
            let header = OutHeader { len, error: *error, unique: asked[*which] };
            let bytes = [header.as_bytes(), payload].concat();
            // The device may have given up already.
            let _ = server.send_with_fd(&bytes[..], file.as_raw_fd());
        }
        if let Some(noise) = noise {
            let _ = server.send_with_fds(&[&noise[..]], &[]);
        }
        drop(server);
        let mut heads: Vec<_> =
            guest.machine.wait_used(REQUESTS, 4).into_iter().map(|(head, _)| head).collect();
        heads.sort_unstable();
        prop_assert_eq!(heads, [0, 2, 4, 6]);
        prop_assert_eq!(guest.gone.read().unwrap(), 1);
    }

    #[test]
    fn any_requests_are_returned(
        requests in proptest::collection::vec(
            (0u32..56, -1i64..2, 0u32..200, proptest::collection::vec(any::<u8>(), 0..120)),
            1..20,
        ),
    ) {
        let (mut guest, server) = setup(2);
        let file = tempfile::tempfile().unwrap();
        guest.open(&server, 0, file.as_raw_fd());
        for (code, lie, room, body) in &requests {
            let len = (40 + body.len() as i64 + lie) as u32;
            let header = InHeader { len, opcode: *code, unique: 9, ..InHeader::default() };
            guest.offer_bytes(0, &[header.as_bytes(), body].concat(), *room);
        }
        drop(server);
        let used = guest.machine.wait_used(REQUESTS, requests.len());
        prop_assert_eq!(used.len(), requests.len());
        prop_assert!(used.iter().all(|(_, len)| *len == 0 || *len >= 16));
    }
}
