//! Standard streams through pipes.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
};

use crate::harness::{Agent, Wait};

#[test]
fn ten_megabytes_through_cat_come_back_unchanged() {
    let Some(agent) = Agent::start() else { return };
    let mut seed = 1u32;
    let input: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    })
    .take(10 << 20)
    .collect();
    let mut container = agent.create(&agent.spec(&["cat"])).unwrap();
    container.start();
    let mut stdin = container.streams.stdin.take().unwrap();
    let mut output = Vec::with_capacity(input.len());
    thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&input).unwrap();
            stdin.shutdown(Shutdown::Write).unwrap();
        });
        container.streams.stdout.read_to_end(&mut output).unwrap();
    });
    assert!(output == input, "{} of {} bytes", output.len(), input.len());
    assert_eq!(container.wait(""), Wait::Code(0));
}

#[test]
fn output_that_is_not_read_waits_and_is_complete() {
    let Some(agent) = Agent::start() else { return };
    let script = "head -c 3000000 /dev/zero; echo end";
    let mut container = agent.create(&agent.spec(&["sh", "-c", script])).unwrap();
    container.start();
    let mut output = Vec::new();
    container.streams.stdout.read_to_end(&mut output).unwrap();
    assert_eq!(output.len(), 3_000_004);
    assert!(output.ends_with(b"\0end\n"));
    assert_eq!(container.wait(""), Wait::Code(0));
}

#[test]
fn input_that_ends_is_half_closed() {
    let Some(agent) = Agent::start() else { return };
    let (wait, out, _) = agent.run(&["sh", "-c", "wc -c; echo after"], b"12345");
    assert_eq!((wait, out.as_str()), (Wait::Code(0), "5\nafter\n"));
}

#[test]
fn process_that_closes_its_input_does_not_hang_the_host() {
    let Some(agent) = Agent::start() else { return };
    let script = "exec 0<&-; echo closed; sleep 1000";
    let mut container = agent.create(&agent.spec(&["sh", "-c", script])).unwrap();
    container.start();
    let mut line = [0; 7];
    container.streams.stdout.read_exact(&mut line).unwrap();
    // More than every buffer on the way holds: the agent must hang up.
    let mut stdin = container.streams.stdin.take().unwrap();
    let written = stdin.write_all(&vec![0; 4 << 20]);
    assert!(written.is_err());
    container.delete();
}

#[test]
fn output_that_the_host_closes_ends_the_writer() {
    let Some(agent) = Agent::start() else { return };
    let mut container = agent.create(&agent.spec(&["sh", "-c", "yes; echo $? >&2"])).unwrap();
    container.start();
    let mut some = [0; 4096];
    container.streams.stdout.read_exact(&mut some).unwrap();
    container.streams.stdout.shutdown(Shutdown::Both).unwrap();
    // SIGPIPE, as from a pipe of the host.
    let mut code = String::new();
    container.streams.stderr.read_to_string(&mut code).unwrap();
    assert_eq!(code, "141\n");
    assert_eq!(container.wait(""), Wait::Code(0));
}

#[test]
fn streams_that_are_not_wanted_are_null() {
    let Some(agent) = Agent::start() else { return };
    let id = format!("agent-test-{}", crate::harness::unique());
    let script = "cat; echo nothing; ls -l /proc/self/fd | grep -c /dev/null";
    let request = bulkhead_protocol::agent::client::CreateContainerRequest {
        container_id: id.clone(),
        spec_json: serde_json::to_vec(&agent.spec(&["sh", "-c", script])).unwrap(),
        ..Default::default()
    };
    let limit = crate::harness::limit;
    agent.client.create_container(limit(), &request).unwrap();
    let request = bulkhead_protocol::agent::client::ContainerRequest {
        container_id: id.clone(),
        ..Default::default()
    };
    agent.client.start_container(limit(), &request).unwrap();
    let wait =
        bulkhead_protocol::agent::client::ProcessRequest { container_id: id, ..Default::default() };
    let reply = agent.client.wait(limit(), &wait).unwrap();
    assert_eq!((reply.code, reply.signal), (0, 0));
    agent.client.delete_container(limit(), &request).unwrap();
}

#[test]
fn stream_that_is_named_but_never_opened_is_an_invalid_argument() {
    let Some(agent) = Agent::start() else { return };
    let request = bulkhead_protocol::agent::client::CreateContainerRequest {
        container_id: format!("agent-test-{}", crate::harness::unique()),
        spec_json: serde_json::to_vec(&agent.spec(&["true"])).unwrap(),
        stdio: Some(bulkhead_protocol::agent::client::Stdio { stdout: 4711, ..Default::default() })
            .into(),
        ..Default::default()
    };
    let refused =
        crate::harness::refusal(agent.client.create_container(crate::harness::limit(), &request));
    assert_eq!(refused.0, ttrpc::Code::INVALID_ARGUMENT);
    assert_eq!(refused.1, "stream 4711 was not opened within 5 s");
}

#[test]
fn user_without_rights_can_open_its_output_again() {
    let Some(agent) = Agent::start() else { return };
    let mut spec = agent.spec(&["sh", "-c", "id -u; echo again > /dev/stdout"]);
    spec["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
    let (wait, out, err) = agent.run_spec(&spec, b"");
    assert_eq!((out.as_str(), err.as_str()), ("1000\nagain\n", ""));
    assert_eq!(wait, Wait::Code(0));
}

#[test]
fn descriptors_behind_the_standard_streams_are_pipes_and_a_socket() {
    use bulkhead_protocol::agent::client as api;
    use bulkhead_protocol::agent::client::preserved::Kind;
    let Some(agent) = Agent::start() else { return };
    let streams = [Kind::READER, Kind::WRITER, Kind::SOCKET].map(|kind| (kind, agent.stream()));
    let preserved = streams.iter().map(|(kind, (stream, _))| {
        let (kind, stream) = ((*kind).into(), *stream);
        api::Preserved { kind, stream, ..Default::default() }
    });
    let stdio = api::Stdio { preserved: preserved.collect(), ..Default::default() };
    // The socket gives back what it gets, and all of it ends.
    let script = "cat <&3 >&4; cat <&5 >&5; ls /proc/self/fd | wc -l >&4";
    let id = format!("agent-test-{}", crate::harness::unique());
    let request = api::CreateContainerRequest {
        container_id: id.clone(),
        spec_json: serde_json::to_vec(&agent.spec(&["sh", "-c", script])).unwrap(),
        stdio: Some(stdio).into(),
        ..Default::default()
    };
    let limit = crate::harness::limit;
    agent.client.create_container(limit(), &request).unwrap();
    let request = api::ContainerRequest { container_id: id, ..Default::default() };
    agent.client.start_container(limit(), &request).unwrap();
    let [(_, (_, mut reader)), (_, (_, mut writer)), (_, (_, mut socket))] = streams;
    reader.write_all(b"through pipes ").unwrap();
    reader.shutdown(Shutdown::Write).unwrap();
    socket.write_all(b"through a socket").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let [mut piped, mut echoed] = [String::new(), String::new()];
    socket.read_to_string(&mut echoed).unwrap();
    writer.read_to_string(&mut piped).unwrap();
    // Three standard ones, three behind them, and the directory that `ls` reads.
    assert_eq!((piped.as_str(), echoed.as_str()), ("through pipes 7\n", "through a socket"));
    agent.client.delete_container(limit(), &request).unwrap();
}
