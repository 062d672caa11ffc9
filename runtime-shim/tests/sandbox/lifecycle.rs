//! Containers from creation to deletion, as clients drive them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use bulkhead_runtime::fd_message;
use rustix::process::Signal;
use serde_json::Value;

use super::rig::{Rig, await_file, feed, send, stderr};

#[test]
fn exit_code_and_output_pass_through_run() {
    let Some(rig) = Rig::new("run") else { return };
    rig.bundle("e", &["echo", "hello"]);
    assert_eq!(rig.succeed(&["run", "-b", "e", "c"]), "hello\n");
    rig.bundle("e", &["exit", "7"]);
    assert_eq!(rig.run(&["run", "-b", "e", "c"]).status.code(), Some(7));
    rig.bundle("e", &["complain"]);
    assert_eq!(stderr(&rig.run(&["run", "-b", "e", "c"])), "complaint\n");
    rig.assert_clean();
}

#[test]
fn large_input_comes_back_whole() {
    let Some(rig) = Rig::new("run") else { return };
    rig.bundle("e", &["cat"]);
    let bytes: Vec<u8> = (0..4_000_000u32).map(|i| (i * 31 % 251) as u8).collect();
    let child = rig.command(&["run", "-b", "e", "c"]).stdin(Stdio::piped()).spawn().unwrap();
    let output = feed(child, &bytes);
    assert!(output.status.success() && output.stdout == bytes, "{}", stderr(&output));
    rig.assert_clean();
}

#[test]
fn created_container_starts_runs_and_stops_as_its_state_says() {
    let Some(rig) = Rig::new("run") else { return };
    let created = rig.create("c", "b");
    assert!(created.status.success(), "{}", stderr(&created));
    assert_eq!(rig.status("c"), "created");
    let state: Value = serde_json::from_str(&rig.succeed(&["state", "c"])).unwrap();
    assert_eq!(state["pid"], rig.supervisor());
    assert_eq!(state["annotations"]["org.example"], "x");
    assert_eq!(state["rootfs"], rig.path("b/rootfs").to_str().unwrap());
    let taken = rig.create("c", "b");
    assert!(stderr(&taken).contains("container with given ID already exists"));
    fs::write(rig.path("pid"), state["pid"].to_string()).unwrap();

    rig.succeed(&["start", "c"]);
    assert_eq!(rig.status("c"), "running");
    let again = rig.run(&["start", "c"]);
    assert!(stderr(&again).contains("cannot start an already running container"));
    assert_eq!(rig.succeed(&["list", "-q"]), "c\n");
    assert_eq!(rig.succeed(&["list", "-f", "json"]).lines().count(), 1);
    let pids: Vec<u32> =
        serde_json::from_str(&rig.succeed(&["ps", "--format", "json", "c"])).unwrap();
    assert_eq!(pids, [vec![rig.supervisor()], rig.children("c")].concat());
    assert_eq!(rig.succeed(&["ps", "c"]).lines().count(), 2);
    let refused = rig.run(&["delete", "c"]);
    assert!(stderr(&refused).contains("cannot delete container c that is not stopped: running"));

    rig.succeed(&["kill", "c", "TERM"]);
    await_end(rig.supervisor());
    assert_eq!(rig.status("c"), "stopped");
    let gone = rig.run(&["kill", "c"]);
    assert!(stderr(&gone).contains("container not running"));
    assert!(stderr(&rig.run(&["exec", "c", "ls"])).contains("cannot exec in a stopped container"));
    rig.succeed(&["delete", "c"]);
    assert!(stderr(&rig.run(&["state", "c"])).contains("container does not exist"));
    rig.assert_clean();
}

/// Waits for the end of a process that is not a child.
pub fn await_end(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
}

#[test]
fn created_container_is_deleted_without_force() {
    let Some(rig) = Rig::new("run") else { return };
    assert!(rig.create("c", "b").status.success());
    rig.succeed(&["delete", "c"]);
    rig.assert_clean();
}

#[test]
fn signal_to_run_reaches_the_workload() {
    let Some(rig) = Rig::new("run") else { return };
    let mut child = rig.command(&["run", "-b", "b", "c"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    send(child.id(), Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    rig.assert_clean();
}

#[test]
fn exec_passes_output_input_and_exit_code() {
    let Some(rig) = Rig::new("run") else { return };
    assert!(rig.create("c", "b").status.success());
    rig.succeed(&["start", "c"]);
    assert_eq!(rig.succeed(&["exec", "c", "echo", "hi"]), "hi\n");
    assert_eq!(rig.run(&["exec", "c", "exit", "9"]).status.code(), Some(9));
    let absent = rig.run(&["exec", "c", "absent"]);
    assert_eq!(absent.status.code(), Some(255));
    let cat = rig.command(&["exec", "c", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    assert_eq!(feed(cat, b"through").stdout, b"through");
    rig.succeed(&["delete", "--force", "c"]);
    rig.assert_clean();
}

#[test]
fn detached_exec_has_a_process_that_lives_as_long() {
    let Some(rig) = Rig::new("run") else { return };
    assert!(rig.create("c", "b").status.success());
    rig.succeed(&["start", "c"]);
    let out = fs::File::create(rig.path("exec-out")).unwrap();
    let args = ["exec", "--detach", "--pid-file", "exec-pid", "c", "sleep"];
    let status = rig.command(&args).stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
    assert!(status.success());
    let pid = fs::read_to_string(rig.path("exec-pid")).unwrap().parse().unwrap();
    await_file(&rig.path("exec-out"));
    send(pid, Signal::TERM);
    await_end(pid);
    rig.succeed(&["delete", "--force", "c"]);
    rig.assert_clean();
}

#[test]
fn exec_drops_the_labels_that_its_container_was_created_without() {
    let Some(rig) = Rig::new("run") else { return };
    let label = |process: &mut Value| {
        process["apparmorProfile"] = "docker-default".into();
        process["selinuxLabel"] = "system_u".into();
    };
    rig.bundle_with("l", &["sleep"], |spec| label(&mut spec["process"]));
    assert!(rig.create("c", "l").status.success());
    rig.succeed(&["start", "c"]);
    assert_eq!(rig.succeed(&["exec", "c", "echo", "hi"]), "hi\n");
    let mut process =
        serde_json::json!({"user": {"uid": 0, "gid": 0}, "args": ["echo", "p"], "cwd": "/"});
    label(&mut process);
    fs::write(rig.path("process.json"), process.to_string()).unwrap();
    assert_eq!(rig.succeed(&["exec", "--process", "process.json", "c"]), "p\n");
    rig.succeed(&["delete", "--force", "c"]);
    rig.assert_clean();
}

#[test]
fn exec_whose_pid_file_cannot_be_written_leaves_no_process() {
    let Some(rig) = Rig::new("run") else { return };
    assert!(rig.create("c", "b").status.success());
    rig.succeed(&["start", "c"]);
    for flags in [&["--pid-file", "a/b"][..], &["--detach", "--pid-file", "a/b"]] {
        let args = [&["exec"], flags, &["c", "sleep"]].concat();
        let out = fs::File::create(rig.path("exec-out")).unwrap();
        let err = fs::File::create(rig.path("exec-err")).unwrap();
        let status = rig.command(&args).stdout(out).stderr(err).status().unwrap();
        assert_eq!(status.code(), Some(255));
        let shown = fs::read_to_string(rig.path("exec-err")).unwrap();
        assert!(shown.starts_with("bulkhead: writing the pid file: a/b: "), "{shown}");
        assert_eq!(rig.succeed(&["ps", "c"]).lines().count(), 2);
    }
    rig.succeed(&["delete", "--force", "c"]);
    rig.assert_clean();
}

#[test]
fn pidfd_of_the_process_of_the_pid_file_is_sent() {
    let Some(rig) = Rig::new("run") else { return };
    let listener = UnixListener::bind(rig.path("pidfd")).unwrap();
    let received = |word: &str, pid: u32| {
        let (client, _) = listener.accept().unwrap();
        let mut buffer = [0; 16];
        let (length, fds) = fd_message::receive(&client, &mut buffer).unwrap();
        assert_eq!((&buffer[..length], fds.len()), (word.as_bytes(), 1));
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fds[0].as_raw_fd())).unwrap();
        assert!(info.contains(&format!("Pid:\t{pid}\n")), "{pid}: {info}");
    };
    let quiet = |args: &[&str]| {
        let mut command = rig.command(args);
        assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    };
    quiet(&["create", "-b", "b", "--pid-file", "pid", "--pidfd-socket", "pidfd", "c"]);
    received("standard", rig.supervisor());
    rig.succeed(&["start", "c"]);
    let exec = ["exec", "-d", "--pid-file", "exec-pid", "--pidfd-socket", "pidfd", "c", "sleep"];
    quiet(&exec);
    let pid = fs::read_to_string(rig.path("exec-pid")).unwrap();
    received("setns", pid.parse().unwrap());
    rig.succeed(&["delete", "--force", "c"]);
    drop(listener);
    fs::remove_file(rig.path("pidfd")).unwrap();
    let failed = rig.run(&["create", "-b", "b", "--pidfd-socket", "pidfd", "c"]);
    assert!(stderr(&failed).contains("sending the pidfd: --pidfd-socket pidfd: "));
    rig.assert_clean();
}

#[test]
fn guest_that_does_not_let_its_workload_be_killed_is_killed() {
    let Some(rig) = Rig::new("deaf") else { return };
    let out = fs::File::create(rig.path("out")).unwrap();
    let args = ["run", "-d", "-b", "b", "--pid-file", "pid", "c"];
    let mut command = rig.command(&args);
    // A boot takes no such time, and two fifths of it are how long a guest may keep silent then.
    command.env("BULKHEAD_BOOT_TIMEOUT_S", "30").stdout(out.try_clone().unwrap()).stderr(out);
    assert!(command.status().unwrap().success());
    rig.succeed(&["kill", "c", "KILL"]);
    await_end(rig.supervisor());
    rig.succeed(&["delete", "c"]);
    rig.assert_clean();
}

#[test]
fn kernel_that_panics_under_its_workload_is_named() {
    let Some(rig) = Rig::new("run") else { return };
    rig.bundle("p", &["panic"]);
    let output = rig.run(&["run", "-b", "p", "c"]);
    let line = "bulkhead: running the container: the guest kernel panicked";
    assert!(stderr(&output).starts_with(line), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(255));
    assert_eq!(output.stdout.len(), 1 << 20, "its output is whole");
    rig.assert_clean();
}

#[test]
fn any_process_killed_leaves_nothing_after_delete() {
    let Some(rig) = Rig::new("run") else { return };
    for victim in 0..3 {
        assert!(rig.create("c", "b").status.success());
        if victim != 1 {
            rig.succeed(&["start", "c"]);
        }
        let supervisor = rig.supervisor();
        let pid = match victim {
            0 => supervisor,
            n => rig.children("c")[n - 1],
        };
        send(pid, Signal::KILL);
        rig.succeed(&["delete", "--force", "c"]);
        rig.assert_clean();
    }
}

#[test]
fn creation_whose_client_is_killed_leaves_nothing_after_delete() {
    let Some(rig) = Rig::new("silent") else { return };
    let mut child = rig.command(&["create", "-b", "b", "c"]).spawn().unwrap();
    await_file(&rig.path("state").join("c/state.json"));
    child.kill().unwrap();
    child.wait().unwrap();
    rig.succeed(&["delete", "--force", "c"]);
    rig.assert_clean();
}

#[test]
fn two_creations_of_one_id_have_one_winner() {
    let Some(rig) = Rig::new("run") else { return };
    let null = || fs::File::create("/dev/null").unwrap();
    let mut creations: Vec<_> = (0..4)
        .map(|_| {
            let mut command = rig.command(&["create", "-b", "b", "c"]);
            command.stdout(null()).stderr(null()).spawn().unwrap()
        })
        .collect();
    let won = creations.iter_mut().filter_map(|c| c.wait().unwrap().success().then_some(()));
    assert_eq!(won.count(), 1);
    assert_eq!(rig.status("c"), "created");
    rig.succeed(&["delete", "--force", "c"]);
    rig.assert_clean();
}

#[test]
fn terminal_of_a_created_container_goes_to_the_console_socket() {
    use std::os::unix::net::UnixListener;
    let Some(rig) = Rig::new("run") else { return };
    rig.bundle_with("t", &["cat"], |spec| spec["process"]["terminal"] = true.into());
    let refused = rig.create("c", "t");
    assert!(stderr(&refused).contains("without setting console socket"), "{}", stderr(&refused));
    let listener = UnixListener::bind(rig.path("console")).unwrap();
    let args = ["create", "-b", "t", "--console-socket", "console", "--pid-file", "pid", "c"];
    let out = fs::File::create(rig.path("out")).unwrap();
    let mut command = rig.command(&args);
    command.stdout(out.try_clone().unwrap()).stderr(out);
    assert!(command.status().unwrap().success());
    let (client, _) = listener.accept().unwrap();
    let (_, mut fds) = bulkhead_runtime::fd_message::receive(&client, &mut [0; 64]).unwrap();
    let mut master = fs::File::from(fds.remove(0));
    rig.succeed(&["start", "c"]);
    use std::io::{Read, Write};
    master.write_all(b"typed\n").unwrap();
    let mut bytes = [0; 6];
    master.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"typed\n");
    rig.succeed(&["delete", "--force", "c"]);
    rig.assert_clean();
}
