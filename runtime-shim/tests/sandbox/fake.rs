//! The processes that `bulkhead` starts, played by this test binary: a file server that does
//! nothing, and a VMM that plays the scenario in its "kernel", with an agent inside.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use bulkhead_protocol::agent::client as api;
use bulkhead_protocol::control::{CONTROL_FD, ExitReason, Reply, Request, VmState};
use bulkhead_protocol::vm::RawVmConfig;
use bulkhead_runtime::fd_message;
use serde_json::Value;
use ttrpc::proto::{Codec, MESSAGE_TYPE_RESPONSE, MessageHeader};
use ttrpc::{Code, Response, Status};

use super::rig::await_file;

/// The control socket, if this process was started by `bulkhead`.
fn control() -> Option<OwnedFd> {
    // SAFETY: only looks whether the descriptor is a socket.
    let kind = unsafe { rustix::fd::BorrowedFd::borrow_raw(CONTROL_FD) };
    if rustix::net::sockopt::socket_type(kind).is_err() {
        println!("skipped: run by bulkhead only");
        return None;
    }
    // SAFETY: it was inherited for this function, which is called once.
    Some(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) })
}

/// Waits for the end of the control socket.
fn await_end(control: &OwnedFd) -> ! {
    while !matches!(fd_message::receive(control, &mut [0; 1 << 16]), Ok((0, _)) | Err(_)) {}
    std::process::exit(0)
}

fn reply(control: &OwnedFd, reply: &Reply) {
    fd_message::send(control, &serde_json::to_vec(reply).unwrap(), &[]).unwrap();
}

fn exited(control: &OwnedFd, reason: ExitReason) -> ! {
    reply(control, &Reply::Exited { reason });
    std::process::exit(0)
}

#[test]
#[ignore = "a process that the other tests start"]
fn fsd() {
    let Some(control) = control() else { return };
    let mut buffer = [0; 1 << 16];
    let (_, fds) = fd_message::receive(&control, &mut buffer).unwrap();
    assert!(fds.len() >= 2);
    await_end(&control);
}

#[test]
#[ignore = "a process that the other tests start"]
fn vmm() {
    let Some(control) = control() else { return };
    let mut buffer = vec![0; 1 << 16];
    let (length, fds) = fd_message::receive(&control, &mut buffer).unwrap();
    let Ok(Request::Configure { config }) = serde_json::from_slice(&buffer[..length]) else {
        panic!("not configured first");
    };
    let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
    play(control, *config, &mut fds);
}

fn play(control: OwnedFd, config: RawVmConfig, fds: &mut [Option<OwnedFd>]) {
    let mut take = |index: bulkhead_protocol::vm::FdIndex| fds[index.0 as usize].take().unwrap();
    let mut scenario = String::new();
    File::from(take(config.kernel)).read_to_string(&mut scenario).unwrap();
    let mut console = File::from(take(config.console.unwrap()));
    let vsock = config.vsock.unwrap();
    let mut dial = UnixStream::from(take(vsock.dials[0].socket));
    let listener = UnixListener::from(take(vsock.listener));
    match scenario.as_str() {
        "die" => std::process::exit(3),
        "garbage" => {
            fd_message::send(&control, b"garbage", &[]).unwrap();
            await_end(&control);
        }
        "refuse" => {
            let message = "no memory\x1b[2J".to_owned();
            exited(&control, ExitReason::Error { message });
        }
        "fail" => {
            reply(&control, &Reply::Failed { message: "not now".into() });
            await_end(&control);
        }
        _ => {}
    }
    reply(&control, &Reply::Done { state: VmState::Ready });
    let (length, _) = fd_message::receive(&control, &mut [0; 64]).unwrap();
    assert!(length > 0);
    reply(&control, &Reply::Done { state: VmState::Running });
    match scenario.as_str() {
        "silent" => await_end(&control),
        "flood-console" => while console.write_all(&[b'x'; 4096]).is_ok() {},
        "panic" => {
            console.write_all(b"Kernel panic - not \x1b[31msyncing\r\n").unwrap();
            exited(&control, ExitReason::Panic);
        }
        "triple-fault" => exited(&control, ExitReason::TripleFault),
        "power-off" => exited(&control, ExitReason::PowerOff),
        "version" => {
            dial.write_all(&[9]).unwrap();
            await_end(&control);
        }
        "no-agent" => {
            dial.write_all(&[1]).unwrap();
            drop(listener);
            await_end(&control);
        }
        _ => {}
    }
    let garbage = scenario == "agent-garbage";
    let agent = Agent { garbage, deaf: scenario == "deaf", ..Agent::default() };
    let shared = Arc::new((Mutex::new(agent), Condvar::new()));
    dial.write_all(&[1]).unwrap();
    let serving = Arc::clone(&shared);
    let socket = control.try_clone().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (shared, control) = (Arc::clone(&serving), socket.try_clone().unwrap());
            std::thread::spawn(move || serve(stream.unwrap(), &shared, &control));
        }
    });
    while scenario == "flood-ready" && dial.write_all(&[1; 4096]).is_ok() {}
    await_end(&control);
}

/// The state of the guest.
#[derive(Default)]
struct Agent {
    garbage: bool,
    deaf: bool,
    streams: HashMap<u64, UnixStream>,
    processes: HashMap<String, Process>,
}

impl Agent {
    /// Takes the stream `number`, which ends at once when its process has ended before it came.
    fn connected(&mut self, number: u64, stream: UnixStream) {
        let late =
            |process: &Process| process.ended.is_some() && process.streams().contains(&number);
        if self.processes.values().any(late) {
            let _ = stream.shutdown(Shutdown::Both);
        } else {
            self.streams.insert(number, stream);
        }
    }
}

#[derive(Default)]
struct Process {
    args: Vec<String>,
    stdio: api::Stdio,
    ended: Option<api::WaitResponse>,
}

impl Process {
    fn streams(&self) -> [u64; 3] {
        [self.stdio.stdin, self.stdio.stdout, self.stdio.stderr]
    }
}

type Shared = (Mutex<Agent>, Condvar);

fn serve(mut stream: UnixStream, shared: &Arc<Shared>, control: &OwnedFd) {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    reader.read_line(&mut line).unwrap();
    stream.write_all(b"OK 1073741824\n").unwrap();
    if line == "CONNECT 1025\n" {
        let mut number = [0; 8];
        reader.read_exact(&mut number).unwrap();
        assert!(reader.buffer().is_empty(), "bytes before the process exists");
        let (agent, changed) = &**shared;
        agent.lock().unwrap().connected(u64::from_le_bytes(number), stream);
        changed.notify_all();
        return;
    }
    let mut header = [0; 10];
    if reader.read_exact(&mut header).is_err() {
        return;
    }
    let header = MessageHeader::from(header);
    let mut body = vec![0; header.length as usize];
    reader.read_exact(&mut body).unwrap();
    let request = ttrpc::Request::decode(body).unwrap();
    let (garbage, deaf) = {
        let agent = shared.0.lock().unwrap();
        (agent.garbage, agent.deaf)
    };
    if garbage {
        stream.write_all(&[0xff; 64]).unwrap();
        return;
    }
    if deaf && request.method == "Signal" {
        std::thread::park();
    }
    let mut response = Response::new();
    match answer(&request.method, &request.payload, shared, control) {
        Ok(payload) => response.payload = payload,
        Err(code) => {
            let mut status = Status::new();
            status.code = code.into();
            status.message = "refused".into();
            response.status = Some(status).into();
        }
    }
    let body = response.encode().unwrap();
    let mut header = MessageHeader::new_response(header.stream_id, body.len() as u32);
    header.type_ = MESSAGE_TYPE_RESPONSE;
    let mut frame = Vec::from(header);
    frame.extend(body);
    let _ = stream.write_all(&frame);
    if request.method == "Shutdown" {
        exited(control, ExitReason::PowerOff);
    }
}

fn answer(
    method: &str,
    payload: &[u8],
    shared: &Arc<Shared>,
    control: &OwnedFd,
) -> Result<Vec<u8>, Code> {
    match method {
        "CreateContainer" => {
            let request = api::CreateContainerRequest::decode(payload).unwrap();
            let spec: Value = serde_json::from_slice(&request.spec_json).unwrap();
            assert_eq!(spec["root"]["path"], "/run/bulkhead/share/root");
            let args = args_of(&spec["process"]);
            check_process(&spec["process"])?;
            if args[0] == "hold" {
                hold(Path::new(&args[1]));
            }
            let stdio = request.stdio.unwrap_or_default();
            add(shared, String::new(), args, stdio);
            Ok(api::CreateContainerResponse::new().encode().unwrap())
        }
        "StartContainer" => {
            start(shared, String::new(), control);
            Ok(vec![])
        }
        "Exec" => {
            let request = api::ExecRequest::decode(payload).unwrap();
            let process = serde_json::from_slice(&request.process_json).unwrap();
            let args = args_of(&process);
            check_process(&process)?;
            let stdio = request.stdio.clone().unwrap_or_default();
            add(shared, request.exec_id.clone(), args, stdio);
            start(shared, request.exec_id, control);
            Ok(vec![])
        }
        "Wait" => {
            let request = api::ProcessRequest::decode(payload).unwrap();
            let (agent, changed) = &**shared;
            let mut agent = agent.lock().unwrap();
            loop {
                let process = agent.processes.get(&request.exec_id).ok_or(Code::NOT_FOUND)?;
                if let Some(ended) = &process.ended {
                    return Ok(ended.encode().unwrap());
                }
                agent = changed.wait(agent).unwrap();
            }
        }
        "Signal" => {
            let request = api::SignalRequest::decode(payload).unwrap();
            end(shared, &request.exec_id, 0, request.signal);
            Ok(vec![])
        }
        "Processes" => {
            let mut reply = api::ProcessesResponse::new();
            let agent = shared.0.lock().unwrap();
            let live = agent.processes.values().filter(|p| p.ended.is_none());
            for (process, pid) in live.zip(1..) {
                let mut info = api::ProcessInfo::new();
                (info.pid, info.command) = (pid, process.args[0].clone());
                reply.processes.push(info);
            }
            Ok(reply.encode().unwrap())
        }
        "Shutdown" | "ResizeTty" => Ok(vec![]),
        _ => Err(Code::INTERNAL),
    }
}

fn args_of(process: &Value) -> Vec<String> {
    let args = process["args"].as_array().unwrap();
    args.iter().map(|a| a.as_str().unwrap().to_owned()).collect()
}

/// Refuses what the real agent refuses.
fn check_process(process: &Value) -> Result<(), Code> {
    if process.get("apparmorProfile").or(process.get("selinuxLabel")).is_some() {
        return Err(Code::INVALID_ARGUMENT);
    }
    match args_of(process)[0].rsplit('/').next().unwrap() {
        "absent" => Err(Code::UNIMPLEMENTED),
        "unusable" => Err(Code::PERMISSION_DENIED),
        _ => Ok(()),
    }
}

/// Makes the file `path.held` and waits for `path`.
fn hold(path: &Path) {
    std::fs::write(path.with_extension("held"), "x").unwrap();
    await_file(path);
}

fn add(shared: &Arc<Shared>, name: String, args: Vec<String>, stdio: api::Stdio) {
    let process = Process { args, stdio, ended: None };
    shared.0.lock().unwrap().processes.insert(name, process);
}

fn end(shared: &Arc<Shared>, name: &str, code: u32, signal: u32) {
    let (agent, changed) = &**shared;
    let mut agent = agent.lock().unwrap();
    if let Some(process) = agent.processes.get_mut(name) {
        let mut ended = api::WaitResponse::new();
        (ended.code, ended.signal) = (code, signal);
        process.ended.get_or_insert(ended);
        for number in process.streams() {
            if let Some(stream) = agent.streams.remove(&number) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
    changed.notify_all();
}

/// Takes a stream, waiting until it has come.
fn stream(shared: &Arc<Shared>, number: u64) -> UnixStream {
    let (agent, changed) = &**shared;
    let mut agent = agent.lock().unwrap();
    loop {
        if let Some(stream) = agent.streams.get(&number) {
            return stream.try_clone().unwrap();
        }
        agent = changed.wait(agent).unwrap();
    }
}

/// Runs a program of the fake guest in a thread.
fn start(shared: &Arc<Shared>, name: String, control: &OwnedFd) {
    let (args, stdio) = {
        let agent = shared.0.lock().unwrap();
        let process = &agent.processes[&name];
        (process.args.clone(), process.stdio.clone())
    };
    let (shared, control) = (Arc::clone(shared), control.as_fd().try_clone_to_owned().unwrap());
    std::thread::spawn(move || {
        let mut out = stream(&shared, stdio.stdout);
        match args[0].as_str() {
            "echo" => out.write_all((args[1].clone() + "\n").as_bytes()).unwrap(),
            "cat" => {
                let mut input = stream(&shared, stdio.stdin);
                std::io::copy(&mut input, &mut out).unwrap();
            }
            "complain" => {
                stream(&shared, stdio.stderr).write_all(b"complaint\n").unwrap();
            }
            "panic" => {
                out.write_all(&[b'x'; 1 << 20]).unwrap();
                exited(&control, ExitReason::Panic);
            }
            "flood" => loop {
                reply(&control, &Reply::Done { state: VmState::Running });
            },
            "sleep" => {
                out.write_all(b"up\n").unwrap();
                return;
            }
            _ => {}
        }
        let code = if args[0] == "exit" { args[1].parse().unwrap() } else { 0 };
        end(&shared, &name, code, 0);
    });
}
