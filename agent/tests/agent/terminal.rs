//! Containers and processes with a terminal.

use std::io::{Read, Write};

use bulkhead_protocol::agent::client::ResizeTtyRequest;
use serde_json::{Value, json};

use crate::harness::{Agent, Container, Streams, Wait, limit, process};

fn with_terminal(mut process: Value) -> Value {
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"height": 33, "width": 77});
    process
}

/// Reads until `end` has come.
fn read_until(streams: &mut Streams, end: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(end.as_bytes()) {
        streams.stdout.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

fn resize(container: &Container<'_>, exec_id: &str) {
    let request = ResizeTtyRequest {
        container_id: container.id.clone(),
        exec_id: exec_id.to_owned(),
        rows: 11,
        columns: 22,
        ..Default::default()
    };
    container.agent.client.resize_tty(limit(), &request).unwrap();
}

/// Talks to `stty size; read; stty size` on a terminal.
fn talk(container: &Container<'_>, exec_id: &str, streams: &mut Streams) {
    assert_eq!(read_until(streams, "ready\r\n"), "33 77\r\nready\r\n");
    resize(container, exec_id);
    let stdin = streams.stdin.as_mut().unwrap();
    stdin.write_all(b"word\n").unwrap();
    // The terminal echoes, the shell answers.
    assert_eq!(read_until(streams, "end\r\n"), "word\r\n11 22\r\ngot word end\r\n");
}

const SCRIPT: &str = "stty size; echo ready; read word; stty size; echo got $word end; exit 5";

#[test]
fn container_with_terminal_echoes_and_is_resized() {
    let Some(agent) = Agent::start() else { return };
    let mut spec = agent.spec(&[]);
    spec["process"] = with_terminal(process(&["sh", "-c", SCRIPT]));
    let mut container = agent.create(&spec).unwrap();
    container.start();
    let mut streams = std::mem::replace(&mut container.streams, agent_streams(&agent));
    talk(&container, "", &mut streams);
    assert_eq!(container.wait(""), Wait::Code(5));
    assert_eq!(streams.read(), (String::new(), String::new()));
}

fn agent_streams(agent: &Agent) -> Streams {
    Streams { stdin: None, stdout: agent.stream().1, stderr: agent.stream().1 }
}

#[test]
fn exec_with_terminal_echoes_and_is_resized() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&["sleep", "1000"])).unwrap();
    container.start();
    let process = with_terminal(process(&["sh", "-c", SCRIPT]));
    let (id, mut streams) = container.exec(&process).unwrap();
    talk(&container, &id, &mut streams);
    assert_eq!(container.wait(&id), Wait::Code(5));
    assert_eq!(streams.read().0, "");
}

#[test]
fn terminal_output_is_complete_when_the_process_has_ended() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&["sleep", "1000"])).unwrap();
    container.start();
    // The child keeps the terminal open, so its end is not what ends the output.
    let script = "trap '' HUP; sleep 900 & head -c 30000 /dev/zero | tr '\\0' x; echo end; exit 6";
    let mut process = with_terminal(process(&["sh", "-c", script]));
    process["env"] = json!(["PATH=/bin"]);
    let tr = agent.root().join("bin/tr");
    std::os::unix::fs::symlink("busybox", tr).unwrap();
    let (id, mut streams) = container.exec(&process).unwrap();
    let reader = std::thread::spawn(move || streams.read().0);
    assert_eq!(container.wait(&id), Wait::Code(6));
    let output = reader.join().unwrap();
    assert!(output.ends_with("xend\r\n"), "{} bytes", output.len());
    assert_eq!(output.len(), 30_005);
}

#[test]
fn terminal_belongs_to_the_user() {
    let Some(agent) = Agent::start() else { return };
    let mut spec = agent.spec(&[]);
    let script = "tty; stat -c %u $(tty); echo again > /dev/tty";
    spec["process"] = with_terminal(process(&["sh", "-c", script]));
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let mut container = agent.create(&spec).unwrap();
    container.start();
    assert_eq!(container.streams.read().0, "/dev/pts/0\r\n1000\r\nagain\r\n");
    assert_eq!(container.wait(""), Wait::Code(0));
}
