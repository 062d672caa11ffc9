//! Malformed requests, and the end of the connection.

use proptest::prelude::*;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::client::*;
use crate::abi::*;
use crate::identity::Identity;
use crate::reply::Reply;
use crate::server::{Limits, MESSAGE_MAX, Server};

#[test]
fn request_before_init_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let shares = [("root".into(), path_fd(dir.path()), false)];
    let server = Server::new(shares, descriptors(), Limits::within(1024)).unwrap();
    let header =
        InHeader { len: 40, opcode: opcode::STATFS, unique: 3, nodeid: 1, ..InHeader::default() };
    let mut buffer = vec![0; MESSAGE_MAX];
    let mut reply = Reply::new(&mut buffer);
    let answer = on_thread(|identity| {
        let answer = server.answer(header.as_bytes(), &mut reply, identity).unwrap();
        answer.bytes.to_vec()
    });
    let expected = OutHeader { len: 16, error: -Errno::NOTCONN.raw_os_error(), unique: 3 };
    assert_eq!(answer, expected.as_bytes());
}

#[test]
fn message_of_a_wrong_length_is_answered_with_an_error() {
    let mut client = Client::new();
    let header =
        InHeader { len: 41, opcode: opcode::STATFS, unique: 9, nodeid: 1, ..InHeader::default() };
    client.send_bytes(header.as_bytes());
    assert_eq!(client.receive().0.error, -Errno::INVAL.raw_os_error());
    let long = [header.as_bytes(), &vec![0; MESSAGE_MAX]].concat();
    client.send_bytes(&long);
    assert_eq!(client.receive().0.error, -Errno::INVAL.raw_os_error());
    client.send_bytes(&header.as_bytes()[..20]);
    assert!(client.call(opcode::STATFS, 1, &[]).is_ok(), "the server goes on");
}

#[test]
fn unknown_operation_is_told_as_such() {
    let mut client = Client::new();
    for code in [25, 34, 39, 31, 32, 40, 48, 4096, u32::MAX] {
        assert_eq!(client.call(code, 1, &[&[0; 64]]).unwrap_err(), Errno::NOSYS, "{code}");
    }
}

#[test]
fn server_ends_when_the_vmm_is_gone() {
    let mut client = Client::new();
    client.root();
    client.hang_up().unwrap();
}

#[test]
fn server_ends_when_the_runtime_is_gone() {
    let mut client = Client::new();
    client.root();
    client.close_control().unwrap();
}

/// Runs `act` on a thread with an identity of its own, as the file system attributes that it
/// unshares are not to be those of the test's thread.
fn on_thread<T: Send>(act: impl FnOnce(&mut Identity) -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let _ = crate::identity::keep_capabilities();
                act(&mut Identity::of_this_thread(descriptors()).unwrap())
            })
            .join()
            .unwrap()
    })
}

/// Bytes that are likely to get past the first checks.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let names: [&'static [u8]; 8] =
        [b"a\0", b"d\0", b"..\0", b"l\0", b"x/../..\0", b"user.a\0", b"/sentinel\0", b""];
    let name = proptest::sample::select(names.to_vec());
    let number = prop_oneof![0u64..6, Just(u64::MAX), Just(1 << 32), any::<u64>()];
    let numbers = proptest::collection::vec(number, 0..12);
    (numbers, name.clone(), name, proptest::collection::vec(any::<u8>(), 0..64)).prop_map(
        |(numbers, first, second, tail)| {
            let head: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            [&head[..], first, second, &tail].concat()
        },
    )
}

fn request() -> impl Strategy<Value = (u32, u64, Vec<u8>)> {
    (0u32..56, prop_oneof![0u64..8, any::<u64>()], body())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_requests_are_answered_and_touch_nothing_outside(
        requests in proptest::collection::vec(request(), 1..60),
        noise in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("d")).unwrap();
        std::fs::write(tree.join("a"), "a").unwrap();
        std::fs::write(dir.path().join("sentinel"), "sentinel").unwrap();
        std::os::unix::fs::symlink("../sentinel", tree.join("l")).unwrap();
        let shares = [("d".into(), path_fd(&tree), false), ("a".into(), path_fd(&tree), true)];
        let limits = Limits { inodes: 50, handles: 20 };
        let server = Server::new(shares, descriptors(), limits).unwrap();
        on_thread(|identity| {
            server.begin(true);
            let mut buffer = vec![0; MESSAGE_MAX];
            for (opcode, nodeid, body) in &requests {
                let len = (40 + body.len()) as u32;
                let header = InHeader { len, opcode: *opcode, unique: 5, nodeid: *nodeid, ..InHeader::default() };
                let message = [header.as_bytes(), body].concat();
                let mut reply = Reply::new(&mut buffer);
                if let Some(answer) = server.answer(&message, &mut reply, identity) {
                    assert_eq!(answer.bytes[..4], (answer.bytes.len() as u32).to_le_bytes());
                }
            }
            let mut reply = Reply::new(&mut buffer);
            server.answer(&noise, &mut reply, identity);
        });
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        prop_assert_eq!(names, ["sentinel", "tree"]);
        prop_assert_eq!(std::fs::read(dir.path().join("sentinel")).unwrap(), b"sentinel");
    }
}
