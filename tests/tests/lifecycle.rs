//! A container's life through the OCI command line: run, create, start, exec, kill, delete.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, Read, Write, pipe};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use bulkhead_tests::process::{preserve, run_with_input};
use bulkhead_tests::terminal::OnTerminal;
use bulkhead_tests::{Bundle, Created, Leftovers, bulkhead, run, unique_id};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// `bulkhead run` of the bundle in the foreground.
fn run_bundle(bundle: &Bundle, input: &[u8]) -> bulkhead_tests::Outcome {
    let id = unique_id("run");
    run_with_input(bulkhead().args(["run", "--bundle"]).arg(bundle.path()).arg(&id), input)
}

/// A created container that is force-deleted at the end of the test.
struct Container(Created);

impl Container {
    fn create(bundle: Bundle) -> Self {
        Self(Created::new(unique_id("life"), bundle))
    }

    fn started(bundle: Bundle) -> Self {
        let container = Self::create(bundle);
        container.command(&["start"]).expect(0);
        container
    }

    /// Starts what [`idle`] runs, and waits until it can be ended by a signal: the first process
    /// of a pid namespace ignores what it has no handler for.
    fn idling() -> Self {
        let container = Self::started(idle());
        container.0.prints("ready");
        container
    }

    /// `bulkhead WORDS... ID`.
    fn command(&self, words: &[&str]) -> bulkhead_tests::Outcome {
        self.0.command(words, &[])
    }

    fn exec(&self, args: &[&str]) -> bulkhead_tests::Outcome {
        self.0.command(&["exec"], args)
    }

    fn kill(&self, signal: &str) -> bulkhead_tests::Outcome {
        self.0.command(&["kill"], &[signal])
    }

    fn status(&self) -> String {
        let outcome = self.command(&["state"]).expect(0);
        let state: Value = serde_json::from_slice(&outcome.stdout).expect("state is JSON");
        state["status"].as_str().expect("status").to_owned()
    }
}

/// A container that does nothing until it is killed.
fn idle() -> Bundle {
    Bundle::script("trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done")
}

#[test]
fn run_echo_prints_and_exits_zero() {
    let before = Leftovers::now();
    let outcome = run_bundle(&Bundle::new(&["/bin/echo", "hello", "world"]), b"").expect(0);
    assert_eq!(outcome.text(), "hello world");
    assert_eq!(outcome.stderr, "");
    before.assert_none();
}

#[test]
fn run_inside_has_a_kernel_of_its_own() {
    let outcome = run_bundle(&Bundle::new(&["/bin/uname", "-r"]), b"").expect(0);
    let host = rustix::system::uname();
    assert_ne!(outcome.text(), host.release().to_string_lossy());
    assert!(outcome.text().starts_with("6.12."), "{}", outcome.text());
}

#[test]
fn run_passes_exit_code_and_signal() {
    run_bundle(&Bundle::script("exit 42"), b"").expect(42);
    // The init of a PID namespace is immune to its own signals; a child is not.
    let child = "sh -c 'kill -9 $$'; exit $?";
    run_bundle(&Bundle::script(child), b"").expect(137);
}

#[test]
fn run_keeps_streams_apart_and_in_order() {
    let script = "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let outcome = run_bundle(&Bundle::script(script), b"").expect(0);
    let lines = |word: &str| (0..2000).map(|i| format!("{word} {i}\n")).collect::<String>();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), lines("out"));
    assert_eq!(outcome.stderr, lines("err"));
}

#[test]
fn run_pipe_through_container_keeps_every_byte() {
    let input: Vec<u8> =
        (0..8u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let outcome = run_bundle(&Bundle::new(&["/bin/cat"]), &input).expect(0);
    assert_eq!(Sha256::digest(&outcome.stdout), Sha256::digest(&input));
}

#[test]
fn run_program_that_ignores_input_ends() {
    run_bundle(&Bundle::new(&["/bin/true"]), &vec![0; 1 << 20]).expect(0);
}

#[test]
fn run_on_terminal_has_size_echo_and_resize() {
    let mut bundle = Bundle::script(
        "stty size; read line; echo got $line; \
         until stty size | grep -q '44 88'; do sleep 0.1; done; echo resized; exit 3",
    );
    bundle.edit(|config| config["process"]["terminal"] = json!(true));
    let id = unique_id("tty");
    let mut command = bulkhead();
    command.args(["run", "--bundle"]).arg(bundle.path()).arg(&id);
    let mut terminal = OnTerminal::start(command, 33, 77);
    terminal.wait_for("33 77");
    terminal.resize(44, 88);
    terminal.type_in("abc\n");
    terminal.wait_for("got abc");
    let (code, shown) = terminal.finish();
    assert_eq!(code, 3, "{shown}");
    assert!(shown.contains("resized"), "{shown}");
}

/// Reads descriptor 3, writes 4, and asks over the socket 5.
const ALL_THREE: &str = "cat <&3; echo written >&4; echo asked >&5; cat <&5; \
                         ls /proc/self/fd | tr '\\n' ' '";

/// The caller's ends of what [`ALL_THREE`] uses.
struct Behind {
    written: PipeReader,
    asked: UnixStream,
}

impl Behind {
    /// Gives `command` the other ends.
    fn give(command: &mut Command) -> Self {
        let (reader, mut filled) = pipe().expect("a pipe");
        filled.write_all(b"of the caller\n").expect("room in the pipe");
        let (written, writer) = pipe().expect("a pipe");
        let (asked, socket) = UnixStream::pair().expect("sockets");
        command.args(["--preserve-fds", "3"]);
        preserve(command, vec![reader.into(), writer.into(), socket.into()]);
        Self { written, asked }
    }

    /// Answers, once it was asked, and sees the ends of both.
    #[track_caller]
    fn serve(self) {
        let Self { mut written, asked } = self;
        let (mut said, mut text) = (BufReader::new(&asked), String::new());
        said.read_line(&mut text).expect("the question");
        (&asked).write_all(b"answered\n").expect("the answer");
        asked.shutdown(Shutdown::Write).expect("the end of the answer");
        said.read_to_string(&mut text).expect("the end of the socket");
        written.read_to_string(&mut text).expect("the end of the pipe");
        assert_eq!(text, "asked\nwritten\n");
    }
}

#[test]
fn descriptors_after_the_standard_streams_are_the_processes() {
    let before = Leftovers::now();
    let expected = "of the caller\nanswered\n0 1 2 3 4 5 6";
    let run_all = |mut command: Command, words: &[&str]| {
        let behind = Behind::give(&mut command);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("bulkhead starts");
        // It holds the process's ends, too.
        drop(command);
        behind.serve();
        let outcome = child.wait_with_output().expect("waiting");
        let [out, err] =
            [&outcome.stdout, &outcome.stderr].map(|text| String::from_utf8_lossy(text));
        assert_eq!((outcome.status.code(), out.trim_end()), (Some(0), expected), "{err}");
    };
    let bundle = Bundle::script(ALL_THREE);
    let mut command = bulkhead();
    command.args(["run", "--bundle"]).arg(bundle.path());
    run_all(command, &[&unique_id("run")]);

    let idling = Container::idling();
    let mut command = bulkhead();
    command.arg("exec");
    run_all(command, &[&idling.0.id, "/bin/sh", "-c", ALL_THREE]);

    // A supervisor that the caller does not wait for, and an added process.
    let id = unique_id("create");
    let mut command = bulkhead();
    command.args(["create", "--bundle"]).arg(bundle.path());
    let behind = Behind::give(&mut command);
    command.arg(&id).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().expect("bulkhead starts").success());
    drop(command);
    run(bulkhead().args(["start", &id])).expect(0);
    behind.serve();
    run(bulkhead().args(["delete", "--force", &id])).expect(0);
    let mut command = bulkhead();
    command.args(["exec", "--detach"]);
    let behind = Behind::give(&mut command);
    command.args([&idling.0.id, "/bin/sh", "-c", ALL_THREE]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().expect("bulkhead starts").success());
    drop(command);
    behind.serve();

    // What is more than a stream of bytes stays outside.
    let file = File::open("/etc/passwd").expect("a file");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    for (fd, what) in [(OwnedFd::from(file), "file"), (listener.into(), "listen")] {
        let mut command = bulkhead();
        command.args(["run", "--bundle"]).arg(bundle.path()).args(["--preserve-fds", "1"]);
        preserve(&mut command, vec![fd]);
        let refused = run(command.arg(unique_id("refused"))).expect(1).stderr;
        assert!(refused.contains("descriptor 3") && refused.contains(what), "{refused}");
    }
    drop(idling);
    before.assert_none();
}

#[test]
fn run_writes_are_in_the_bundle_with_owner_and_mode() {
    let mut bundle = Bundle::script(
        "echo data > /mnt/file; chown 1234:5678 /mnt/file; chmod 4751 /mnt/file; \
         ln -s file /mnt/link; ln /mnt/file /mnt/hard; mkdir -m 1777 /mnt/dir; \
         dd if=/dev/zero of=/mnt/big bs=1M count=4 2>/dev/null; mv /mnt/big /mnt/dir/moved; \
         truncate -s 10M /mnt/sparse; mknod /mnt/fifo p",
    );
    bundle.edit(|config| {
        let capabilities = json!(["CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD"]);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = capabilities.clone();
        }
    });
    run_bundle(&bundle, b"").expect(0);
    let file = fs::symlink_metadata(bundle.root("mnt/file")).expect("file");
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (1234, 5678, 0o4751));
    assert_eq!(file.nlink(), 2);
    assert_eq!(fs::read_to_string(bundle.root("mnt/hard")).expect("hard link"), "data\n");
    assert_eq!(fs::read_link(bundle.root("mnt/link")).expect("link").to_str(), Some("file"));
    let directory = fs::metadata(bundle.root("mnt/dir")).expect("dir");
    assert_eq!(directory.permissions().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(bundle.root("mnt/dir/moved")).expect("moved").len(), 4 << 20);
    assert_eq!(fs::metadata(bundle.root("mnt/sparse")).expect("sparse").len(), 10 << 20);
}

#[test]
fn container_goes_through_the_states_of_the_specification() {
    let before = Leftovers::now();
    {
        let container = Container::create(idle());
        assert_eq!(container.status(), "created");
        let list = run(bulkhead().args(["list", "--quiet"])).expect(0);
        assert!(list.text().lines().any(|line| line == container.0.id), "{}", list.text());
        container.command(&["start"]).expect(0);
        assert_eq!(container.status(), "running");
        let again = container.command(&["start"]).expect(1);
        assert!(again.stderr.contains("cannot start"), "{}", again.stderr);
        let delete = container.command(&["delete"]).expect(1);
        assert!(delete.stderr.contains("not stopped"), "{}", delete.stderr);
        let ps = container.command(&["ps", "--format", "json"]).expect(0);
        let pids: Vec<u32> = serde_json::from_slice(&ps.stdout).expect("a list of pids");
        let names = pids.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")));
        let names: Vec<String> = names.map(|name| name.expect("a process of the host")).collect();
        assert_eq!(names, ["bulkhead\n", "bulkhead-fsd\n", "bulkhead-vmm\n"]);
        container.0.prints("ready");
        container.kill("TERM").expect(0);
        assert_eq!(container.0.wait(), 7);
        assert_eq!(container.status(), "stopped");
        container.command(&["delete"]).expect(0);
        let gone = container.command(&["state"]).expect(1);
        assert!(gone.stderr.contains("does not exist"), "{}", gone.stderr);
        container.command(&["delete", "--force"]).expect(0);
    }
    before.assert_none();
}

#[test]
fn create_of_taken_id_is_refused() {
    let container = Container::create(idle());
    let bundle = idle();
    let second =
        run(bulkhead().args(["create", "--bundle"]).arg(bundle.path()).arg(&container.0.id));
    let second = second.expect(1);
    assert!(second.stderr.contains("exists"), "{}", second.stderr);
    assert_eq!(container.status(), "created");
}

#[test]
fn kill_by_signal_is_reported_as_128_and_number() {
    let container = Container::idling();
    container.kill("KILL").expect(0);
    assert_eq!(container.0.wait(), 137);
}

#[test]
fn exec_runs_beside_the_init_with_its_own_result() {
    let mut bundle = idle();
    bundle.edit(|config| {
        config["process"]["env"] = json!(["PATH=/bin", "COLOUR=green"]);
        config["process"]["cwd"] = json!("/tmp");
    });
    let container = Container::started(bundle);
    let id = container.0.id.clone();

    let inherited = container.exec(&["sh", "-c", "echo $COLOUR; pwd; echo oops >&2; exit 9"]);
    let inherited = inherited.expect(9);
    assert_eq!(inherited.text(), "green\n/tmp");
    assert_eq!(inherited.stderr, "oops\n");

    let own = run(bulkhead().args([
        "exec",
        "--cwd",
        "/root",
        "--env",
        "COLOUR=red",
        "--user",
        "1000:1000",
        &id,
        "sh",
        "-c",
        "echo $COLOUR; pwd; id -u; id -g",
    ]));
    assert_eq!(own.expect(0).text(), "red\n/root\n1000\n1000");

    let echoed = run_with_input(bulkhead().args(["exec", &id, "cat"]), b"through\n").expect(0);
    assert_eq!(echoed.text(), "through");

    let missing = container.exec(&["no-such-program"]).expect(255);
    assert!(missing.stderr.contains("executable file not found"), "{}", missing.stderr);
    let refused = container.exec(&["/etc/passwd"]).expect(255);
    assert!(refused.stderr.contains("permission denied"), "{}", refused.stderr);

    let signalled = container.exec(&["sh", "-c", "kill -15 $$"]);
    signalled.expect(143);
    assert_eq!(container.status(), "running");
}

#[test]
fn exec_on_terminal_and_many_at_once() {
    let container = Container::idling();
    let mut command = bulkhead();
    command.args(["exec", "--tty", &container.0.id, "sh", "-c", "tty; stty size; exit 4"]);
    let (code, shown) = OnTerminal::start(command, 20, 50).finish();
    assert_eq!(code, 4, "{shown}");
    assert!(shown.contains("/dev/pts/") && shown.contains("20 50"), "{shown}");

    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|i| {
                let container = &container;
                scope.spawn(move || {
                    (i, container.exec(&["sh", "-c", &format!("echo n{i}; exit {i}")]))
                })
            })
            .collect();
        for thread in threads {
            let (i, outcome) = thread.join().expect("the thread ends");
            assert_eq!(outcome.expect(i).text(), format!("n{i}"));
        }
    });
}

#[test]
fn exec_detached_writes_pid_file_and_ends_with_status() {
    let container = Container::idling();
    let directory = tempfile::tempdir().expect("temp dir");
    let pid_file = directory.path().join("pid");
    let status = bulkhead()
        .args(["exec", "--detach", "--pid-file"])
        .arg(&pid_file)
        .args([&container.0.id, "sh", "-c", "exit 5"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("bulkhead starts");
    assert!(status.success());
    let pid = fs::read_to_string(&pid_file).expect("pid file").parse().expect("a number");
    let pid = rustix::process::Pid::from_raw(pid);
    let (_, status) = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty())
        .expect("a child of its subreaper")
        .expect("ended");
    assert_eq!(status.exit_status(), Some(5));
}

#[test]
fn two_containers_cannot_see_each_other() {
    let one = Container::started(Bundle::script("touch /tmp/one; exec sleep 1000"));
    let two = Container::started(Bundle::script("touch /tmp/two; exec sleep 2000"));
    // A container that was started may still have to make its file and to become its program.
    let until = "until ps -o args | grep -q '^sleep ...0'; do sleep 0.1; done";
    for container in [&one, &two] {
        container.exec(&["sh", "-c", until]).expect(0);
    }
    let seen = one.exec(&["sh", "-c", "ls /tmp; ps -o args"]).expect(0).text();
    assert!(seen.contains("one") && seen.contains("sleep 1000"), "{seen}");
    assert!(!seen.contains("two") && !seen.contains("sleep 2000"), "{seen}");
    let seen = two.exec(&["sh", "-c", "ls /tmp; ps -o args"]).expect(0).text();
    assert!(!seen.contains("one") && !seen.contains("sleep 1000"), "{seen}");
}

#[test]
fn bind_mounts_are_live_and_read_only_is_enforced() {
    let shared = tempfile::tempdir().expect("temp dir");
    fs::write(shared.path().join("in"), "from the host\n").expect("file");
    let mut bundle = Bundle::script(
        "cat /data/in; echo back > /data/out; cat /etc/one; echo x > /ro/in; echo code $?",
    );
    let source = shared.path().to_str().expect("UTF-8").to_owned();
    bundle.edit(|config| {
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        let bind = |to: &str, from: String, options: &[&str]| {
            json!({"destination": to, "type": "bind", "source": from, "options": options})
        };
        mounts.push(bind("/data", source.clone(), &["rbind", "rw"]));
        mounts.push(bind("/ro", source.clone(), &["rbind", "ro"]));
        mounts.push(bind("/etc/one", format!("{source}/in"), &["bind", "ro"]));
    });
    let outcome = run_bundle(&bundle, b"").expect(0);
    assert_eq!(outcome.text(), "from the host\nfrom the host\ncode 1");
    assert!(outcome.stderr.contains("Read-only"), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(shared.path().join("out")).expect("written"), "back\n");
    assert_eq!(fs::read_to_string(shared.path().join("in")).expect("kept"), "from the host\n");
}

#[test]
fn run_detached_leaves_a_running_container() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("subreaper");
    let bundle = idle();
    let id = unique_id("detached");
    let status = bulkhead()
        .args(["run", "--detach", "--bundle"])
        .arg(bundle.path())
        .arg(&id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("bulkhead starts");
    assert!(status.success());
    let state = run(bulkhead().args(["state", &id])).expect(0);
    assert!(state.text().contains("\"running\""), "{}", state.text());
    run(bulkhead().args(["delete", "--force", &id])).expect(0);
    run(bulkhead().args(["state", &id])).expect(1);
}

#[test]
fn signals_to_run_reach_the_workload() {
    let bundle =
        Bundle::script("trap 'echo caught; exit 6' TERM; echo ready; while :; do sleep 0.1; done");
    let id = unique_id("signal");
    let mut child = bulkhead()
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg(&id)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bulkhead starts");
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("piped")));
    assert_eq!(lines.next().expect("a line").expect("text"), "ready");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("kill");
    assert_eq!(lines.next().expect("a line").expect("text"), "caught");
    assert_eq!(child.wait().expect("ended").code(), Some(6));
}

#[test]
fn memory_limit_is_enforced_in_the_guest() {
    let mut bundle = Bundle::script("head -c 100m /dev/zero | tail | wc -c");
    bundle.edit(|config| {
        config["linux"]["resources"]["memory"] = json!({"limit": 32 << 20});
    });
    let outcome = run_bundle(&bundle, b"");
    assert!(outcome.text() != "104857600", "the limit was not enforced");
}

/// A bundle whose `startContainer` hook is a script of the shell in its root.
fn hooked(program: &str, hook: &str) -> Bundle {
    let mut bundle = Bundle::script(program);
    bundle.edit(|config| {
        config["annotations"] = json!({"org.example.a": "b"});
        config["hooks"] = json!({"startContainer": [
            {"path": "/bin/sh", "args": ["sh", "-c", hook], "timeout": 100},
        ]});
    });
    bundle
}

#[test]
fn start_hook_runs_in_the_container_before_its_program() {
    let caps = "grep -E '^(CapEff|Seccomp:|NoNew)' /proc/self/status";
    let hook = format!("echo $0 $$; pwd; {caps}; cat");
    let bundle = hooked(&format!("{caps}; cat /seen"), &format!("{{ {hook}; }} > /seen"));
    let outcome = run_bundle(&bundle, b"").expect(0);
    let text = outcome.text();
    let lines: Vec<&str> = text.lines().collect();
    let [own @ .., name, cwd, cap_eff, no_new, seccomp, state] = &lines[..] else {
        panic!("{text}");
    };
    assert_eq!((*name, *cwd), ("sh 2", "/"), "{text}");
    assert_eq!(own, [*cap_eff, *no_new, *seccomp], "confined as the program: {text}");
    let state: Value = serde_json::from_str(state).expect("the state is JSON");
    assert_eq!(state["pid"], 1, "{state}");
    assert_eq!(state["status"], "created", "{state}");
    assert_eq!(state["bundle"], json!(bundle.path()), "{state}");
    assert_eq!(state["annotations"], json!({"org.example.a": "b"}), "{state}");
}

#[test]
fn start_hook_that_fails_ends_the_container_before_its_program() {
    let outcome = run_bundle(&hooked("echo ran", "echo because; exit 3"), b"");
    assert_ne!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(outcome.text(), "");
    let expected = "hooks.startContainer[0] (/bin/sh) exited with code 3: because";
    assert!(outcome.stderr.contains(expected), "{}", outcome.stderr);
}

#[test]
fn mount_namespace_shows_the_host_the_container_and_runs_nothing_of_it() {
    let mut bundle = Bundle::script("touch /seen; sleep 1000");
    let shared = tempfile::tempdir().expect("temp dir");
    bundle.edit(|config| {
        let bind = json!({"destination": "/shared", "type": "bind", "source": shared.path(),
            "options": ["bind"]});
        config["mounts"].as_array_mut().expect("mounts").push(bind);
    });
    let container = Container::create(bundle);
    let process = Path::new("/proc").join(container.0.supervisor.to_string());
    // What `ps`, `top` and the kernel's reports of an OOM call it.
    assert_eq!(fs::read_to_string(process.join("comm")).expect("its name"), "bulkhead\n");
    let namespace = |of: &Path| fs::read_link(of.join("ns/mnt")).expect("a namespace");
    assert_ne!(namespace(&process), namespace(Path::new("/proc/self")));
    let mounts = fs::read_to_string(process.join("mountinfo")).expect("its mounts");
    let options = |line: &str| line.split(' ').nth(5).unwrap_or_default().to_owned();
    for line in mounts.lines() {
        let options = options(line);
        let has = |option| options.split(',').any(|o| o == option);
        assert!(has("nosuid") && has("nodev") && has("noexec"), "{line}");
    }
    // What the specification mounts but the root: nothing of the host.
    let points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(points[0], "/");
    assert!(["/", "/dev", "/proc", "/shared", "/sys"].iter().all(|p| points.contains(p)));
    assert!(!points.iter().any(|point| point.contains("overlay") || *point == "/run"), "{mounts}");

    container.command(&["start"]).expect(0);
    let root = process.join("root");
    bulkhead_tests::wait_until("the program", || root.join("seen").exists());
    fs::write(root.join("shared/file"), "of the host").expect("a file");
    assert_eq!(container.exec(&["cat", "/shared/file"]).expect(0).text(), "of the host");
    assert_eq!(fs::read_dir(root.join("proc")).expect("a directory").count(), 0);
    let pid = container.0.supervisor.to_string();
    let entered = run(Command::new("/usr/bin/nsenter").args(["-m", "-t", &pid, "/bin/true"]));
    assert_eq!(entered.code, 126, "{}", entered.stderr);
    assert!(entered.stderr.contains("Permission denied"), "{}", entered.stderr);
}
