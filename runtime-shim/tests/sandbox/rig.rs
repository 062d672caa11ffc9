//! An installation with fake parts, and a bundle.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Everything of one test, in one directory.
pub struct Rig {
    dir: TempDir,
}

impl Rig {
    /// A rig whose VMM plays `scenario`; `None`, with the reason printed, where the machine
    /// cannot run it.
    pub fn new(scenario: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root makes pid namespaces");
            return None;
        }
        if let Err(e) = fs::File::options().read(true).write(true).open("/dev/kvm") {
            println!("skipped: /dev/kvm: {e}");
            return None;
        }
        let rig = Self { dir: tempfile::tempdir().unwrap() };
        for (name, test) in [("bulkhead-vmm", "fake::vmm"), ("bulkhead-fsd", "fake::fsd")] {
            rig.write_script(name, test);
        }
        fs::write(rig.path("vmlinux"), scenario).unwrap();
        fs::write(rig.path("initrd.img"), "").unwrap();
        rig.bundle("b", &["sleep"]);
        Some(rig)
    }

    fn write_script(&self, name: &str, test: &str) {
        let own = std::env::current_exe().unwrap();
        let own = own.display();
        self.script(name, &format!("exec '{own}' --ignored --exact {test} --nocapture"));
    }

    /// Makes the file `name` a shell script of these lines.
    ///
    /// A process of its own writes it: a child that another test forks meanwhile would hold this
    /// process's descriptor until it has become its program, and what is open for writing cannot
    /// be run (`ETXTBSY`).
    pub fn script(&self, name: &str, lines: &str) {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "cat > \"$0\"; chmod 755 \"$0\""]).arg(self.path(name));
        let shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let written = feed(shell, format!("#!/bin/sh\n{lines}\n").as_bytes());
        assert!(written.status.success());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the bundle `name` with a process of `args`.
    pub fn bundle(&self, name: &str, args: &[&str]) {
        self.bundle_with(name, args, |_| {});
    }

    pub fn bundle_with(&self, name: &str, args: &[&str], change: impl FnOnce(&mut Value)) {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["A=b"]},
            "root": {"path": "rootfs"},
            "annotations": {"org.example": "x"},
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "mount"}
            ]}
        });
        change(&mut spec);
        fs::create_dir_all(self.path(name).join("rootfs")).unwrap();
        fs::write(self.path(name).join("config.json"), spec.to_string()).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command
            .arg("--root")
            .arg(self.path("state"))
            .arg("--log")
            .arg(self.path("log.json"))
            .args(["--log-format", "json"])
            .args(args)
            .current_dir(self.dir.path())
            .env("BULKHEAD_LIBEXEC", self.dir.path())
            .env("BULKHEAD_GUEST_DIR", self.dir.path())
            .env("BULKHEAD_BOOT_TIMEOUT_S", "60")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command where the operator's file has this text and mode, in a mount namespace of
    /// its own.
    pub fn run_with_policy(&self, policy: &str, mode: &str, args: &[&str]) -> Output {
        let script = "mount -t tmpfs policy /etc && mkdir /etc/bulkhead \
                      && cat > /etc/bulkhead/config.toml \
                      && chmod \"$0\" /etc/bulkhead/config.toml && exec \"$@\"";
        let inner = self.command(args);
        let variables = inner.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let mut outer = Command::new("unshare");
        outer.args(["--mount", "sh", "-c", script, mode]).arg(inner.get_program());
        outer.args(inner.get_args()).envs(variables).current_dir(self.dir.path());
        outer.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        feed(outer.spawn().unwrap(), policy.as_bytes())
    }

    /// Runs a command that must succeed, and gives its output.
    pub fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {shown}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Creates container `id`, with its output in a file: a pipe would be held open by the
    /// supervisor.
    pub fn create(&self, id: &str, bundle: &str) -> Output {
        let out = fs::File::create(self.path("out")).unwrap();
        let err = fs::File::create(self.path("err")).unwrap();
        let mut command = self.command(&["create", "-b", bundle, "--pid-file", "pid", id]);
        let mut output = command.stdout(out).stderr(err).output().unwrap();
        output.stderr = fs::read(self.path("err")).unwrap();
        output
    }

    pub fn status(&self, id: &str) -> String {
        let state: Value = serde_json::from_str(&self.succeed(&["state", id])).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    pub fn supervisor(&self) -> u32 {
        fs::read_to_string(self.path("pid")).unwrap().parse().unwrap()
    }

    /// Pids of the sandbox processes of `id`, from its record.
    pub fn children(&self, id: &str) -> Vec<u32> {
        let text = fs::read(self.path("state").join(id).join("state.json")).unwrap();
        let record: Value = serde_json::from_slice(&text).unwrap();
        let children = record["children"].as_array().unwrap();
        children.iter().map(|c| c["pid"].as_u64().unwrap() as u32).collect()
    }

    /// Fails if anything of any container is left.
    pub fn assert_clean(&self) {
        if let Ok(entries) = fs::read_dir(self.path("state")) {
            let left: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            assert!(left.is_empty(), "state left: {left:?}");
        }
        let left = self.processes();
        assert!(left.is_empty(), "processes left: {left:?}");
    }

    /// Live processes that hold this rig's kernel or state open, or run its programs.
    fn processes(&self) -> Vec<String> {
        let arguments = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut found = vec![];
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().into_string().unwrap().parse::<u32>() else { continue };
            while self.is_open_in(pid) {
                let seen = arguments(pid);
                // This process, or a child that another test is about to turn into a program.
                if seen == arguments(std::process::id()) {
                    break;
                }
                // A child that becomes a program has no arguments for a moment, and then only
                // what is its own: it is looked at once more.
                if !seen.is_empty() && self.is_open_in(pid) {
                    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                    found.push(format!("{pid} {name}"));
                    break;
                }
            }
        }
        found
    }

    /// Whether a process has something of the rig open.
    fn is_open_in(&self, pid: u32) -> bool {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.flat_map(|fd| fs::read_link(fd.path())).any(|path| path.starts_with(self.dir.path()))
    }
}

/// What a failed command said.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Sends `signal` to `pid`.
pub fn send(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}

/// Writes `input` to a child's stdin, closes it, and gives what it printed.
pub fn feed(mut child: Child, input: &[u8]) -> Output {
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    output
}

/// Longest wait; what takes longer never comes.
const LIMIT: Duration = Duration::from_secs(120);

/// Waits until `path` exists and is not empty.
#[track_caller]
pub fn await_file(path: &Path) {
    await_that(|| fs::metadata(path).is_ok_and(|m| m.len() > 0));
}

/// Waits until something is so.
#[track_caller]
pub fn await_that(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LIMIT, "it has not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}
