//! One runtime under comparison: a directory with its bundle, and the container that `exec` joins.

use std::cell::OnceCell;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bulkhead_tests::process::{preserve, run_with_input};
use bulkhead_tests::terminal::OnTerminal;
use bulkhead_tests::{Outcome, run, unique_id};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::case::{Case, Form};

/// Programs that scripts start by a path of their own, and those that must be found in `PATH`.
const APPLETS: [&str; 8] = ["sh", "cat", "echo", "env", "id", "sleep", "true", "false"];

/// A runtime with what it is given.
pub struct Side {
    program: fn() -> Command,
    base: Value,
    directory: TempDir,
    joined: OnceCell<String>,
}

impl Side {
    /// A runtime that is given changes of `base`.
    pub fn new(program: fn() -> Command, base: Value) -> Self {
        let directory = tempfile::Builder::new().prefix("side-").tempdir().expect("temp dir");
        fs::copy("/bin/busybox", directory.path().join("busybox")).expect("busybox-static");
        let side = Self { program, base, directory, joined: OnceCell::new() };
        side.bundle("exec");
        side
    }

    /// Runs a variation. `sandbox` is the microVM that it may use.
    pub fn outcome(&self, case: &Case, sandbox: &str) -> Outcome {
        if case.form == Form::Exec {
            return self.exec(case, sandbox);
        }
        let bundle = self.bundle("run");
        let mut config = self.base.clone();
        if case.form != Form::Alone {
            config["annotations"] = json!({"io.bulkhead.sandbox": sandbox});
        }
        case.edits.iter().for_each(|edit| edit(&mut config));
        write_json(&bundle.join("config.json"), &config);
        let mut command = (self.program)();
        command.arg("run").arg("--bundle").arg(&bundle);
        preserved(case, &mut command);
        command.arg(unique_id("differs"));
        match (case.form, case.input) {
            (Form::Terminal(rows, columns), _) => {
                let (code, shown) = OnTerminal::start(command, rows, columns).finish();
                Outcome { code, stdout: shown.into_bytes(), stderr: String::new() }
            }
            (_, Some(text)) => run_with_input(&mut command, text.as_bytes()),
            _ => run(&mut command),
        }
    }

    /// Adds a process to the container that is there for it.
    fn exec(&self, case: &Case, sandbox: &str) -> Outcome {
        let id = self.joined.get_or_init(|| self.start_joined(sandbox));
        let mut process = self.base["process"].clone();
        case.edits.iter().for_each(|edit| edit(&mut process));
        let file = self.directory.path().join("process.json");
        write_json(&file, &process);
        let mut command = (self.program)();
        command.arg("exec");
        preserved(case, &mut command);
        command.arg("--process").arg(&file).arg(id);
        run(&mut command)
    }

    fn start_joined(&self, sandbox: &str) -> String {
        let bundle = self.directory.path().join("exec");
        let mut config = self.base.clone();
        config["annotations"] = json!({"io.bulkhead.sandbox": sandbox});
        config["process"]["args"] = json!(["/bin/sh", "-c", "while :; do sleep 1; done"]);
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
        });
        write_json(&bundle.join("config.json"), &config);
        let id = unique_id("joined");
        let said = File::create(self.directory.path().join("said")).expect("file");
        let status = (self.program)()
            .args(["run", "--detach", "--bundle"])
            .arg(&bundle)
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(said.try_clone().expect("dup"))
            .stderr(said)
            .status()
            .expect("the program starts");
        let said = fs::read_to_string(self.directory.path().join("said")).expect("said");
        assert!(status.success(), "{:?}: {said}", (self.program)());
        id
    }

    /// A new bundle in place of the one of this name: what a variation made in its root must not
    /// be there for the next.
    fn bundle(&self, name: &str) -> PathBuf {
        let bundle = self.directory.path().join(name);
        if bundle.exists() {
            fs::remove_dir_all(&bundle).expect("the last bundle");
        }
        let root = bundle.join("rootfs");
        for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "opt"] {
            fs::create_dir_all(root.join(directory)).expect("directory of the root");
        }
        let write = |path: &str, text: &str, mode: u32| {
            let path = bundle.join(path);
            fs::write(&path, text).expect("file");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("mode");
        };
        fs::hard_link(self.directory.path().join("busybox"), root.join("bin/busybox"))
            .expect("busybox");
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).expect("applet link");
        }
        fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).expect("mode");
        write(
            "rootfs/etc/passwd",
            "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n",
            0o644,
        );
        write("rootfs/etc/group", "root:x:0:\nuser:x:1000:\n", 0o644);
        write("rootfs/opt/script", "#!/bin/sh\necho script $# $0 $1\n", 0o755);
        write("rootfs/opt/plain", "echo plain\n", 0o755);
        write("rootfs/opt/text", "echo text\n", 0o644);
        write("rootfs/opt/lost", "#!/no/interpreter\n", 0o755);
        write("rootfs/opt/secret", "secret\n", 0o600);
        fs::create_dir_all(bundle.join("data/sub")).expect("data");
        write("data/file", "data\n", 0o644);
        write("data/run", "#!/bin/sh\necho ran\n", 0o755);
        write("data/setid", "", 0o4755);
        write("single", "single\n", 0o644);
        bundle
    }

    /// Removes the container that `exec` joined.
    pub fn end(&self) {
        if let Some(id) = self.joined.get() {
            run((self.program)().args(["delete", "--force", id])).expect(0);
        }
    }
}

/// Gives `command` the descriptor of the variation.
fn preserved(case: &Case, command: &mut Command) {
    if let Some(text) = case.preserved {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(text.as_bytes()).expect("room in the pipe");
        command.args(["--preserve-fds", "1"]);
        preserve(command, vec![reader.into()]);
    }
}

fn write_json(path: &Path, value: &Value) {
    fs::write(path, serde_json::to_vec(value).expect("JSON")).expect("writing JSON");
}
