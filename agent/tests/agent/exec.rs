//! Processes added to a running container.

use std::io::Read;

use serde_json::json;
use ttrpc::Code;

use crate::harness::{Agent, Wait, process, refusal};

const SLEEP: [&str; 2] = ["sleep", "1000"];

#[test]
fn exec_joins_the_container_and_reports_its_own_code() {
    let Some(agent) = Agent::start() else { return };
    // A container that has been started is about to run its program; this one says when it does.
    let mut container = agent.create(&agent.spec(&["sh", "-c", "echo up; read line"])).unwrap();
    container.start();
    let mut up = [0; 3];
    container.streams.stdout.read_exact(&mut up).unwrap();
    let script = "hostname; cat; ps -o args | grep -c '^sh -c echo up'; exit 3";
    let (id, mut streams) = container.exec(&process(&["sh", "-c", script])).unwrap();
    streams.send(b"input\n");
    let (out, err) = streams.read();
    assert_eq!((out.as_str(), err.as_str()), ("inside\ninput\n1\n", ""));
    assert_eq!(container.wait(&id), Wait::Code(3));
    container.delete();
}

#[test]
fn exec_of_missing_program_is_refused_with_runcs_words() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&SLEEP)).unwrap();
    container.start();
    let cases = [
        ("foo", Code::UNIMPLEMENTED, "exec: \"foo\": executable file not found in $PATH"),
        ("/etc/passwd", Code::PERMISSION_DENIED, "exec: \"/etc/passwd\": permission denied"),
    ];
    for (program, code, words) in cases {
        let refused = refusal(container.exec(&process(&[program])));
        assert_eq!(refused, (code, words.to_owned()));
    }
}

#[test]
fn exec_of_file_that_is_no_program_says_so() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&SLEEP)).unwrap();
    container.start();
    let file = agent.root().join("bin/garbage");
    std::fs::write(&file, "\0garbage").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    let refused = refusal(container.exec(&process(&["garbage"])));
    let words = "exec /bin/garbage: exec format error".to_owned();
    assert_eq!(refused, (Code::INTERNAL, words));
}

/// libcontainer drops the seccomp policy of a process added to a container.
#[test]
fn exec_runs_under_the_seccomp_policy_of_the_container() {
    let Some(agent) = Agent::start() else { return };
    for no_new_privileges in [true, false] {
        let mut spec = agent.spec(&SLEEP);
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
        });
        let container = agent.create(&spec).unwrap();
        container.start();
        let script =
            "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd):' /proc/self/status; mkdir /tmp/x";
        let mut process = process(&["sh", "-c", script]);
        process["noNewPrivileges"] = json!(no_new_privileges);
        let (id, mut streams) = container.exec(&process).unwrap();
        let (out, err) = streams.read();
        assert_eq!(container.wait(&id), Wait::Code(1));
        let flag = u8::from(no_new_privileges);
        let caps = "0000000020000420";
        assert_eq!(
            out,
            format!("CapEff:\t{caps}\nCapBnd:\t{caps}\nNoNewPrivs:\t{flag}\nSeccomp:\t2\n")
        );
        assert!(err.contains("Not supported") || err.contains("not supported"), "{err}");
        container.delete();
    }
}

#[test]
fn exec_needs_a_running_container_and_a_new_id() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&["true"])).unwrap();
    let (code, words) = refusal(container.exec(&process(&["true"])));
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(words.ends_with("it is created"), "{words}");
    container.start();
    assert_eq!(container.wait(""), Wait::Code(0));
    let (code, words) = refusal(container.exec(&process(&["true"])));
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(words.ends_with("it is stopped"), "{words}");
}

/// A client kills the process of the host that waits for an added process; nobody can forward
/// that.
#[test]
fn exec_whose_waiter_hangs_up_is_killed_and_forgotten() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&SLEEP)).unwrap();
    container.start();
    let (id, mut streams) = container.exec(&process(&["sh", "-c", "echo up; cat"])).unwrap();
    let mut up = [0; 3];
    streams.stdout.read_exact(&mut up).unwrap();
    drop(container.begin_wait(&id));
    assert_eq!(streams.read().0, "");
    let (code, _) = refusal(container.signal(&id, 15, false));
    assert_eq!(code, Code::NOT_FOUND);
    // The container's init has another life.
    drop(container.begin_wait(""));
    let (id, mut streams) = container.exec(&process(&["echo", "on"])).unwrap();
    assert_eq!(streams.read().0, "on\n");
    assert_eq!(container.wait(&id), Wait::Code(0));
    container.delete();
}

#[test]
fn exec_in_many_at_once_mixes_nothing() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&SLEEP)).unwrap();
    container.start();
    std::thread::scope(|scope| {
        for number in 0..12u32 {
            let container = &container;
            scope.spawn(move || {
                let script = format!("echo {number}; exit {number}");
                let (id, mut streams) = container.exec(&process(&["sh", "-c", &script])).unwrap();
                assert_eq!(streams.read().0, format!("{number}\n"));
                assert_eq!(container.wait(&id), Wait::Code(number));
            });
        }
    });
}

#[test]
fn exec_that_leaves_a_child_with_its_output_is_waited_for_at_once() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&SLEEP)).unwrap();
    container.start();
    let script = "echo before; sleep 900 & exit 4";
    let (id, mut streams) = container.exec(&process(&["sh", "-c", script])).unwrap();
    assert_eq!(container.wait(&id), Wait::Code(4));
    // Half-closed although the sleep still holds the pipe.
    assert_eq!(streams.read().0, "before\n");
    container.delete();
}

/// Everything written before the end is in the stream before `Wait` returns, each time.
#[test]
fn output_is_handed_over_before_the_end_is_told() {
    let Some(agent) = Agent::start() else { return };
    let container = agent.create(&agent.spec(&SLEEP)).unwrap();
    container.start();
    for round in 0..40 {
        // Every other one leaves a child that holds the pipe.
        let child = if round % 2 == 0 { "sleep 900 &" } else { "" };
        let script = format!("{child} head -c 60000 /dev/zero");
        let (id, mut streams) = container.exec(&process(&["sh", "-c", &script])).unwrap();
        assert_eq!(container.wait(&id), Wait::Code(0));
        streams.stdout.set_nonblocking(true).unwrap();
        let mut output = Vec::new();
        streams.stdout.read_to_end(&mut output).unwrap();
        assert_eq!(output.len(), 60_000, "round {round}");
    }
}
