//! Create, start, wait, signal, delete: codes and messages.

use std::io::{Read, Write};

use bulkhead_protocol::agent::client::{ContainerRequest, CreateContainerRequest};
use ttrpc::Code;

use crate::harness::{Agent, Wait, await_that, limit, process, refusal, unique};

#[test]
fn container_that_echoes_gives_output_and_code() {
    let Some(agent) = Agent::start() else { return };
    let script = "echo out; echo err >&2; hostname; exit 7";
    let (wait, out, err) = agent.run(&["sh", "-c", script], b"");
    assert_eq!(out, "out\ninside\n");
    assert_eq!(err, "err\n");
    assert_eq!(wait, Wait::Code(7));
    agent.shutdown();
}

#[test]
fn program_that_is_missing_or_not_executable_is_told_apart() {
    let Some(agent) = Agent::start() else { return };
    let cases = [
        ("foo", Code::UNIMPLEMENTED, "exec: \"foo\": executable file not found in $PATH"),
        ("/x", Code::UNIMPLEMENTED, "exec: \"/x\": stat /x: no such file or directory"),
        ("/etc/text", Code::PERMISSION_DENIED, "exec: \"/etc/text\": permission denied"),
        ("/etc", Code::PERMISSION_DENIED, "exec: \"/etc\": is a directory"),
    ];
    for (program, code, words) in cases {
        let refused = refusal(agent.create(&agent.spec(&[program])));
        assert_eq!(refused, (code, words.to_owned()));
    }
}

#[test]
fn signals_reach_init_and_added_processes() {
    let Some(agent) = Agent::start() else { return };
    let script = "trap 'exit 9' TERM; echo set; while true; do sleep 0.1; done";
    let mut container = agent.create(&agent.spec(&["sh", "-c", script])).unwrap();
    container.start();
    let (id, _streams) = container.exec(&process(&["sleep", "1000"])).unwrap();
    container.signal(&id, 15, false).unwrap();
    assert_eq!(container.wait(&id), Wait::Signal(15));
    let mut line = [0; 4];
    container.streams.stdout.read_exact(&mut line).unwrap();
    container.signal("", 15, false).unwrap();
    assert_eq!(container.wait(""), Wait::Code(9));
    let (code, _) = refusal(container.signal("", 15, false));
    assert_eq!(code, Code::FAILED_PRECONDITION);
    for signal in [0, 65, u32::MAX] {
        let (code, _) = refusal(container.signal("", signal, false));
        assert_eq!(code, Code::INVALID_ARGUMENT);
    }
}

#[test]
fn kill_of_all_ends_every_process() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&["sleep", "1000"])).unwrap();
    container.start();
    let (id, _streams) = container.exec(&process(&["sleep", "1000"])).unwrap();
    let request = container.request();
    // A container that has been started is about to run its program.
    await_that(|| {
        let listed = agent.client.processes(limit(), &request).unwrap().processes;
        let commands: Vec<_> = listed.iter().map(|p| p.command.as_str()).collect();
        commands == ["sleep 1000", "sleep 1000"]
    });
    container.signal("", 9, true).unwrap();
    assert_eq!(container.wait(&id), Wait::Signal(9));
    assert_eq!(container.wait(""), Wait::Signal(9));
}

#[test]
fn container_that_is_paused_stands_still_until_resumed() {
    let Some(agent) = Agent::start() else { return };
    let script = "while read line; do echo $line; done";
    let mut container = agent.create(&agent.spec(&["sh", "-c", script])).unwrap();
    let request = container.request();
    let (code, _) = refusal(agent.client.resume(limit(), &request));
    assert_eq!(code, Code::FAILED_PRECONDITION);
    container.start();
    agent.client.pause(limit(), &request).unwrap();
    let mut stdin = container.streams.stdin.take().unwrap();
    stdin.write_all(b"hello\n").unwrap();
    let (code, message) = refusal(container.exec(&process(&["true"])));
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(message.ends_with("it is paused"), "{message}");
    container.streams.stdout.set_nonblocking(true).unwrap();
    assert!(container.streams.stdout.read(&mut [0]).is_err());
    container.streams.stdout.set_nonblocking(false).unwrap();
    agent.client.resume(limit(), &request).unwrap();
    let mut line = [0; 6];
    container.streams.stdout.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"hello\n");
    agent.client.pause(limit(), &request).unwrap();
    container.delete();
}

#[test]
fn container_is_deleted_in_any_state_and_its_id_is_free_again() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&["sleep", "1000"])).unwrap();
    let again = CreateContainerRequest {
        container_id: container.id.clone(),
        spec_json: serde_json::to_vec(&agent.spec(&["true"])).unwrap(),
        ..Default::default()
    };
    let (code, _) = refusal(agent.client.create_container(limit(), &again));
    assert_eq!(code, Code::ALREADY_EXISTS);
    let request = container.request();
    container.delete();
    let (code, _) = refusal(agent.client.start_container(limit(), &request));
    assert_eq!(code, Code::NOT_FOUND);
    agent.client.create_container(limit(), &again).unwrap();
    agent.client.delete_container(limit(), &request).unwrap();
}

#[test]
fn container_whose_creation_failed_can_be_created_again() {
    let Some(agent) = Agent::start() else { return };
    let id = format!("agent-test-{}", unique());
    let create = |program: &str| CreateContainerRequest {
        container_id: id.clone(),
        spec_json: serde_json::to_vec(&agent.spec(&[program])).unwrap(),
        ..Default::default()
    };
    let (code, _) = refusal(agent.client.create_container(limit(), &create("absent")));
    assert_eq!(code, Code::UNIMPLEMENTED);
    agent.client.create_container(limit(), &create("true")).unwrap();
    let request = ContainerRequest { container_id: id.clone(), ..Default::default() };
    agent.client.delete_container(limit(), &request).unwrap();
}

#[test]
fn id_that_is_a_path_is_an_invalid_argument() {
    let Some(agent) = Agent::start() else { return };
    for id in ["", "..", "a/b"] {
        let request = CreateContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let (code, _) = refusal(agent.client.create_container(limit(), &request));
        assert_eq!(code, Code::INVALID_ARGUMENT, "{id:?}");
    }
}

#[test]
fn shutdown_kills_what_runs() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&["sleep", "1000"])).unwrap();
    container.start();
    std::mem::forget(container);
    agent.shutdown();
}

#[test]
fn container_that_was_not_started_can_be_killed() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&["sleep", "1000"])).unwrap();
    container.signal("", 9, false).unwrap();
    assert_eq!(container.wait(""), Wait::Signal(9));
    let (code, message) = refusal(agent.client.start_container(limit(), &container.request()));
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(message.ends_with("it is stopped"), "{message}");
}
