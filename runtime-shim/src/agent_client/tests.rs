//! A hostile agent: a real socket, and bytes that no honest agent sends.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use bulkhead_protocol::agent::client as api;
use bulkhead_protocol::id::ContainerId;
use proptest::prelude::*;
use ttrpc::proto::{Codec, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, MessageHeader};
use ttrpc::{Code, Request, Response, Status};

use super::*;
use crate::Failure;
use crate::signal::SIGNAL_MAX;
use crate::vsock::VsockError;

/// How long a call may take that is answered.
const LIMIT: Duration = Duration::from_secs(120);

/// Serves one connection with `serve` while `client` calls.
fn with_agent<T>(
    serve: impl FnOnce(UnixStream) + Send,
    client: impl FnOnce(AgentClient<'_>) -> T,
    limit: Duration,
) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 13];
            stream.read_exact(&mut asked).unwrap();
            // A client whose limit has passed has hung up.
            if stream.write_all(b"OK 1\n").is_ok() {
                serve(stream);
            }
        });
        client(AgentClient::new(&path, limit))
    })
}

fn read_request(stream: &mut UnixStream) -> (MessageHeader, Request) {
    let mut header = [0; 10];
    stream.read_exact(&mut header).unwrap();
    let header = MessageHeader::from(header);
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).unwrap();
    (header, Request::decode(body).unwrap())
}

fn frame(stream_id: u32, kind: u8, length: u32, body: &[u8]) -> Vec<u8> {
    let mut header = MessageHeader::new_response(stream_id, length);
    header.type_ = kind;
    let mut bytes = Vec::from(header);
    bytes.extend_from_slice(body);
    bytes
}

fn response(response: &Response) -> Vec<u8> {
    let body = response.encode().unwrap();
    frame(1, MESSAGE_TYPE_RESPONSE, body.len() as u32, &body)
}

fn payload(message: &impl Codec<E = protobuf_error::Error>) -> Vec<u8> {
    let mut answer = Response::new();
    answer.payload = message.encode().unwrap();
    response(&answer)
}

/// The error type of the codec, which the ttrpc crate does not name.
mod protobuf_error {
    pub type Error = <bulkhead_protocol::agent::client::Empty as ttrpc::proto::Codec>::E;
}

/// Calls `Processes`, answered with `answer`, after which the agent closes the connection.
fn call(answer: Vec<u8>) -> Result<Vec<ProcessEntry>, AgentError> {
    let id = "c".parse().unwrap();
    with_agent(
        move |mut stream| {
            let (header, request) = read_request(&mut stream);
            assert_eq!((header.type_, header.stream_id), (MESSAGE_TYPE_REQUEST, 1));
            assert_eq!(request.service, "bulkhead.agent.v1.Agent");
            assert_eq!(request.method, "Processes");
            assert!(request.timeout_nano > 0);
            // The client may have hung up on what it has read so far.
            let _ = stream.write_all(&answer);
        },
        |client| client.processes(&id),
        LIMIT,
    )
}

#[test]
fn answer_of_an_honest_agent_is_read() {
    let mut reply = api::ProcessesResponse::new();
    let mut info = api::ProcessInfo::new();
    (info.pid, info.command) = (7, "a\x1b]0;x\x07".into());
    reply.processes = vec![info];
    let processes = call(payload(&reply)).unwrap();
    assert_eq!((processes[0].pid, processes[0].command.as_str()), (7, "a ]0;x "));
}

#[test]
fn frame_that_is_not_the_response_is_garbage() {
    let garbage = [
        frame(3, MESSAGE_TYPE_RESPONSE, 0, b""),
        frame(1, MESSAGE_TYPE_REQUEST, 0, b""),
        frame(1, 3, 0, b""),
        frame(1, MESSAGE_TYPE_RESPONSE, u32::MAX, b""),
        frame(1, MESSAGE_TYPE_RESPONSE, (1 << 20) + 1, b""),
        frame(1, MESSAGE_TYPE_RESPONSE, 4, b"\xff\xff\xff\xff"),
        // A payload that is no ProcessesResponse.
        {
            let mut answer = Response::new();
            answer.payload = vec![0xff; 4];
            response(&answer)
        },
    ];
    for answer in garbage {
        let called = call(answer.clone());
        assert!(matches!(called, Err(AgentError::Garbage { .. })), "{answer:?}: {called:?}");
    }
}

#[test]
fn connection_that_ends_early_is_an_error_at_once() {
    for answer in [&b""[..], b"\0\0\0", &frame(1, MESSAGE_TYPE_RESPONSE, 100, b"x")] {
        let called = call(answer.to_vec());
        assert!(matches!(called, Err(AgentError::Closed("Processes"))), "{called:?}");
    }
}

#[test]
fn silent_agent_is_given_up_at_the_limit() {
    let id: ContainerId = "c".parse().unwrap();
    let call = |limit| {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        with_agent(
            move |mut stream| {
                // Half an answer, then nothing until the client has given up.
                let _ = stream.write_all(b"\0\0");
                let _ = wait.recv();
            },
            |client| {
                let called = client.processes(&id);
                drop(done);
                called
            },
            limit,
        )
    };
    let mut limit = Duration::from_millis(50);
    loop {
        match call(limit) {
            Err(AgentError::Silent("Processes")) => return,
            // On a busy machine it takes longer than the limit until there is a connection.
            Err(AgentError::Connect(VsockError::Silent(_))) if limit < LIMIT => limit *= 2,
            called => panic!("{called:?} within {limit:?}"),
        }
    }
}

#[test]
fn refusal_keeps_status_and_printable_message() {
    let mut status = Status::new();
    status.code = Code::PERMISSION_DENIED.into();
    status.message = format!("no\x1b[31m {}", "x".repeat(1 << 16));
    let mut answer = Response::new();
    answer.status = Some(status).into();
    let error = call(response(&answer)).unwrap_err();
    assert_eq!(error.refused_as(), Some(Code::PERMISSION_DENIED));
    let failure = Failure::from(error);
    assert_eq!(failure.code, 126);
    assert!(failure.cause.len() < 600 && !failure.cause.contains('\x1b'));
}

#[test]
fn status_that_is_unknown_is_garbage() {
    let mut status = Status::new();
    status.code = ttrpc::proto::Code::OK.into();
    let mut answer = Response::new();
    answer.status = Some(status).into();
    assert!(call(response(&answer)).unwrap().is_empty());
    // Status { code: 99 } inside Response { status }.
    let body = [0x0a, 0x02, 0x08, 99];
    let called = call(frame(1, MESSAGE_TYPE_RESPONSE, 4, &body));
    assert!(matches!(called, Err(AgentError::Garbage { .. })), "{called:?}");
}

#[test]
fn too_many_processes_are_garbage() {
    let mut reply = api::ProcessesResponse::new();
    reply.processes = vec![api::ProcessInfo::new(); 8193];
    let called = call(payload(&reply));
    assert!(matches!(called, Err(AgentError::Garbage { .. })), "{called:?}");
}

#[test]
fn exit_status_outside_its_range_is_garbage() {
    let status = |code, signal| {
        let mut reply = api::WaitResponse::new();
        (reply.code, reply.signal) = (code, signal);
        wait_reply(&reply.encode().unwrap())
    };
    assert_eq!(status(255, 0).unwrap().code(), 255);
    assert_eq!(status(0, 9).unwrap(), ExitStatus::Signal(9));
    assert_eq!(status(0, SIGNAL_MAX).unwrap().code(), 192);
    for (code, signal) in [(256, 0), (u32::MAX, 0), (0, 65), (0, u32::MAX)] {
        let read = status(code, signal);
        assert!(matches!(read, Err(AgentError::Garbage { .. })), "{code} {signal}");
    }
}

#[test]
fn wait_has_no_limit_and_gives_its_reply_when_it_comes() {
    let id = "c".parse().unwrap();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let status = with_agent(
        move |mut stream| {
            let (_, request) = read_request(&mut stream);
            assert_eq!((request.method.as_str(), request.timeout_nano), ("Wait", 0));
            gone.recv().unwrap();
            let mut reply = api::WaitResponse::new();
            reply.code = 7;
            stream.write_all(&payload(&reply)).unwrap();
        },
        move |client| {
            let process = ProcessName { container: &id, exec_id: "" };
            let mut call = client.wait(process).unwrap();
            assert!(matches!(call.advance().unwrap(), Progress::Pending));
            go.send(()).unwrap();
            loop {
                if let Progress::Done(payload) = call.advance().unwrap() {
                    return wait_reply(&payload).unwrap();
                }
                let fds = &mut [rustix::event::PollFd::new(&call, rustix::event::PollFlags::IN)];
                rustix::event::poll(fds, None).unwrap();
            }
        },
        LIMIT,
    );
    assert_eq!(status, ExitStatus::Code(7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_end_in_a_result(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = call(bytes);
    }

    #[test]
    fn any_body_behind_a_good_header_ends_in_a_result(
        body in prop::collection::vec(any::<u8>(), 0..256)
    ) {
        let _ = call(frame(1, MESSAGE_TYPE_RESPONSE, body.len() as u32, &body));
    }

    #[test]
    fn any_wait_reply_ends_in_a_result(body in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = wait_reply(&body);
    }
}
