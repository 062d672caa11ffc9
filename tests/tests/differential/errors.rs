//! What both runtimes say and how they end when something is wrong, in each state of a container.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Instant;

use bulkhead_tests::{Bundle, LIMIT, Outcome, bulkhead, unique_id};
use serde_json::{Value, json};

/// One of the two runtimes with a container of its own, which is deleted at the end.
struct Side {
    program: fn() -> Command,
    id: String,
    bundle: Bundle,
}

impl Side {
    /// runc and bulkhead, without a container yet.
    fn both() -> [Self; 2] {
        let runc = || Command::new("runc");
        [runc as fn() -> Command, bulkhead].map(|program| Self {
            program,
            id: unique_id("errors"),
            bundle: Bundle::script("while :; do sleep 1; done"),
        })
    }

    fn name(&self) -> String {
        (self.program)().get_program().to_string_lossy().into_owned()
    }

    /// Runs a line in which ID and BUNDLE stand for this side's. Output goes to files: what is
    /// created inherits them.
    fn run(&self, line: &str) -> Outcome {
        let file = |name: &str| self.bundle.path().join(name);
        let bundle = self.bundle.path().to_string_lossy().into_owned();
        let arguments = line.split(' ').map(|word| match word {
            "ID" => &self.id,
            "BUNDLE" => &bundle,
            "EMPTY" => "",
            word => word,
        });
        let status = (self.program)()
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(file("stdout")).expect("file"))
            .stderr(File::create(file("stderr")).expect("file"))
            .status()
            .expect("the program starts");
        Outcome {
            code: status.code().expect("it exits"),
            stdout: fs::read(file("stdout")).expect("stdout"),
            stderr: fs::read_to_string(file("stderr")).expect("stderr"),
        }
    }

    /// Waits until the container is in this state.
    fn await_status(&self, status: &str) {
        let limit = Instant::now() + LIMIT;
        loop {
            let state: Value =
                serde_json::from_slice(&self.run("state ID").expect(0).stdout).expect("JSON");
            if state["status"] == status {
                return;
            }
            assert!(Instant::now() < limit, "{}: {state}", self.name());
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.run("delete --force ID");
    }
}

/// Each line must end with this code under both, and say this (in letters of any case).
#[track_caller]
fn assert_both(sides: &[Side], cases: &[(&str, i32, &str)]) {
    for (line, code, words) in cases {
        for side in sides {
            let Outcome { code: was, stderr, .. } = side.run(line);
            assert_eq!(was, *code, "{} {line}: {stderr}", side.name());
            // runc's log escapes quotes.
            let said = stderr.replace('\\', "").to_lowercase().contains(&words.to_lowercase());
            assert!(said, "{} {line}: {stderr}", side.name());
        }
    }
}

#[test]
fn errors_without_a_container_agree() {
    let sides = Side::both();
    let absent = "container does not exist";
    let invalid = "invalid container ID format";
    assert_both(
        &sides,
        &[
            ("state ID", 1, absent),
            ("start ID", 1, absent),
            ("kill ID", 1, absent),
            ("kill ID FOO", 1, absent),
            ("delete ID", 1, absent),
            ("delete --force ID", 0, ""),
            ("pause ID", 1, absent),
            ("resume ID", 1, absent),
            ("ps ID", 1, absent),
            ("events ID", 1, absent),
            ("update ID", 1, absent),
            ("update --cpu-quota x ID", 1, absent),
            ("checkpoint ID", 1, absent),
            ("exec ID ls", 255, absent),
            ("exec ID", 255, absent),
            ("state a/b", 1, invalid),
            ("delete --force ../b", 1, invalid),
            ("exec a/b ls", 255, invalid),
            ("create --bundle BUNDLE a/b", 1, invalid),
            ("run --bundle BUNDLE a/b", 1, invalid),
            ("state EMPTY", 1, "container id cannot be empty"),
            ("create --bundle BUNDLE EMPTY", 1, "container id cannot be empty"),
            ("create --bundle /nowhere ID", 1, "no such file or directory"),
            ("create --bundle / ID", 1, "config.json not found"),
            ("create --bundle BUNDLE --console-socket /s ID", 1, "cannot use console socket if "),
            ("spec --bundle BUNDLE", 1, "File config.json exists. Remove it first"),
            ("list --format yaml", 1, "format"),
            ("--log-format xml list", 1, "log-format"),
        ],
    );
}

#[test]
fn errors_of_a_configuration_agree() {
    let mut sides = Side::both();
    let create = "create --bundle BUNDLE ID";
    let write = |sides: &[Side], text: &str| {
        for side in sides {
            fs::write(side.bundle.path().join("config.json"), text).expect("config.json");
        }
    };
    for (text, words) in [("{", "EOF"), ("", "EOF"), ("[]", "json"), ("nonsense", "")] {
        write(&sides, text);
        assert_both(&sides, &[(create, 1, words)]);
    }
    let process = json!({"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"});
    for (change, value, words) in [
        ("terminal", json!(true), "cannot allocate tty if "),
        ("cwd", json!("rel"), "absolute path"),
        ("args", json!([]), "args"),
    ] {
        for side in &mut sides {
            side.bundle.edit(|config| {
                config["process"] = process.clone();
                config["process"][change] = value.clone();
            });
        }
        assert_both(&sides, &[(create, 1, words)]);
    }
    sides.iter_mut().for_each(|side| side.bundle.edit(|config| config["process"] = Value::Null));
    assert_both(&sides, &[(create, 1, "process")]);
}

#[test]
fn errors_of_each_state_agree() {
    let sides = Side::both();
    let create = "create --bundle BUNDLE ID";
    assert_both(
        &sides,
        &[
            (create, 0, ""),
            (create, 1, "container with given ID already exists"),
            ("start ID", 0, ""),
        ],
    );
    sides.iter().for_each(|side| side.await_status("running"));
    assert_both(
        &sides,
        &[
            ("start ID", 1, "cannot start an already running container"),
            ("delete ID", 1, "that is not stopped: running"),
            ("resume ID", 1, "container not paused"),
            ("kill ID FOO", 1, "unknown signal \"FOO\""),
            ("update --cpu-quota x ID", 1, "invalid value for cpu-quota"),
            ("ps --format yaml ID", 1, "format"),
            ("exec ID", 255, "args cannot be empty"),
            ("exec ID no-such-program", 255, "executable file not found in $PATH"),
            ("exec ID /etc/passwd", 255, "permission denied"),
            ("exec --cwd /nowhere ID ls", 255, "no such file or directory"),
            ("exec ID false", 1, ""),
            ("pause ID", 0, ""),
            ("pause ID", 1, "container not running"),
            ("start ID", 1, "cannot start a container in the paused state"),
            ("exec ID ls", 255, "cannot exec in a paused container"),
            ("delete ID", 1, "that is not stopped: paused"),
            ("resume ID", 0, ""),
            ("kill ID KILL", 0, ""),
        ],
    );
    sides.iter().for_each(|side| side.await_status("stopped"));
    assert_both(
        &sides,
        &[
            ("kill ID", 1, "container not running"),
            ("start ID", 1, "cannot start a container that has stopped"),
            ("pause ID", 1, "container not running"),
            ("exec ID ls", 255, "cannot exec in a stopped container"),
            ("delete ID", 0, ""),
            ("state ID", 1, "container does not exist"),
        ],
    );
}
