//! The quick steps of the demo.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use bulkhead_tests::memory::cost;
use bulkhead_tests::terminal::OnTerminal;
use bulkhead_tests::{Outcome, bulkhead, run, unique_id};
use serde_json::{Value, json};

use crate::Stage;

/// `launch --rm IMAGE WORDS…`.
fn launch(image: &Path, words: &[&str]) -> Outcome {
    run(bulkhead().args(["launch", "--rm"]).arg(image).args(words))
}

/// Standard output of a command that must succeed.
fn output(outcome: Outcome) -> Result<String> {
    ensure!(outcome.code == 0, "exit code {}: {}", outcome.code, outcome.stderr.trim_end());
    Ok(outcome.text())
}

/// Another kernel runs inside.
pub fn hello(stage: &Stage) -> Result<String> {
    let inside = output(launch(&stage.busybox, &["uname", "-r"]))?;
    let outside = output(run(Command::new("uname").arg("-r")))?;
    ensure!(inside != outside, "inside and outside run the same kernel, {inside}");
    Ok(format!("Linux {inside} inside, {outside} outside"))
}

/// Python of Debian, with its libraries.
pub fn debian(stage: &Stage) -> Result<String> {
    let script = "import platform, hashlib; print(platform.python_version(), \
                  hashlib.sha256(b'bulkhead').hexdigest()[:12])";
    let shown = output(launch(&stage.debian, &["python3", "-c", script]))?;
    ensure!(shown.ends_with(" 35877f0234bd"), "{shown}");
    Ok(format!("Python {shown}"))
}

/// 42 in, 42 out.
pub fn exit_code(stage: &Stage) -> Result<String> {
    let code = launch(&stage.busybox, &["sh", "-c", "exit 42"]).code;
    ensure!(code == 42, "exit code {code}, not 42");
    Ok("exit 42 is 42".to_owned())
}

/// A terminal of the size of the caller's.
pub fn terminal(stage: &Stage) -> Result<String> {
    let mut command = bulkhead();
    command.args(["launch", "--rm", "-i", "-t"]).arg(&stage.busybox);
    command.args(["sh", "-c", "test -t 0 && stty size"]);
    let (code, shown) = OnTerminal::start(command, 33, 111).finish();
    ensure!(code == 0 && shown.contains("33 111"), "exit code {code}: {shown}");
    Ok("33 rows and 111 columns inside as outside".to_owned())
}

/// The bundle's root is a live directory of the host.
pub fn bundle(stage: &Stage) -> Result<String> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let rootfs = directory.path().join("rootfs");
    fs::create_dir(&rootfs).context("cannot make rootfs")?;
    output(run(Command::new("tar").arg("-xf").arg(&stage.root).arg("-C").arg(&rootfs)))?;
    output(run(bulkhead().args(["spec", "--bundle"]).arg(directory.path())))?;
    let config = directory.path().join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).context("config.json")?)
        .context("config.json is no JSON")?;
    let script = "open('/srv/note', 'w').write('written inside')";
    spec["process"]["args"] = json!(["python3", "-c", script]);
    spec["process"]["terminal"] = json!(false);
    spec["root"]["readonly"] = json!(false);
    fs::write(&config, spec.to_string()).context("cannot write config.json")?;
    let mut command = bulkhead();
    command.args(["run", "--bundle"]).arg(directory.path()).arg(unique_id("demo"));
    output(run(&mut command))?;
    let note = fs::read_to_string(rootfs.join("srv/note")).context("the file is not there")?;
    ensure!(note == "written inside", "the file holds {note:?}");
    Ok("Python inside wrote rootfs/srv/note".to_owned())
}

/// A container in the background, removed when dropped.
struct Background {
    id: String,
}

impl Background {
    fn start(image: &Path) -> Result<Self> {
        let id = unique_id("demo");
        let mut command = bulkhead();
        command.args(["launch", "-d", "--name", &id]).arg(image).args(["sleep", "100000"]);
        output(run(&mut command))?;
        Ok(Self { id })
    }

    fn exec(&self, words: &[&str]) -> Outcome {
        run(bulkhead().args(["exec", &self.id]).args(words))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let outcome = run(bulkhead().args(["delete", "--force", &self.id]));
        if outcome.code != 0 {
            eprintln!("{} is left behind: {}", self.id, outcome.stderr);
        }
    }
}

/// A second process in a running container.
pub fn exec(stage: &Stage) -> Result<String> {
    let container = Background::start(&stage.busybox)?;
    let first = output(container.exec(&["cat", "/proc/1/cmdline"]))?;
    ensure!(first.starts_with("sleep"), "process 1 is {first:?}");
    let code = container.exec(&["sh", "-c", "exit 7"]).code;
    ensure!(code == 7, "exit code {code}, not 7");
    Ok("it sees `sleep` as process 1, and its exit code passes through".to_owned())
}

/// Neither processes nor files are shared.
pub fn isolation(stage: &Stage) -> Result<String> {
    let (one, two) = (Background::start(&stage.busybox)?, Background::start(&stage.busybox)?);
    output(one.exec(&["sh", "-c", "echo secret > /tmp/one; sleep 4242 > /dev/null 2>&1 &"]))?;
    let own = output(one.exec(&["cat", "/tmp/one"]))?;
    ensure!(own == "secret", "the first container lost its file");
    let file = two.exec(&["cat", "/tmp/one"]);
    ensure!(file.code != 0, "the second container read the first one's file");
    let processes = output(two.exec(&["ps", "-o", "args"]))?;
    ensure!(!processes.contains("4242"), "the second container sees the first one's process");
    let ids = |container: &Background| output(container.exec(&["cat", BOOT_ID]));
    let (first, second) = (ids(&one)?, ids(&two)?);
    ensure!(first != second, "both run in one kernel");
    Ok("own files, own processes, own kernel each".to_owned())
}

/// It differs from kernel to kernel, and from boot to boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Host memory of a sandbox.
pub fn memory(stage: &Stage) -> Result<String> {
    let container = Background::start(&stage.busybox)?;
    let cost = cost(&container.id)?;
    let mib = |kib: u64| kib as f64 / 1024.0;
    Ok(format!(
        "bulkhead-vmm {:.1} MiB, all host processes {:.1} MiB, guest {:.1} MiB in use",
        mib(cost.monitor_kib),
        mib(cost.sandbox_kib),
        mib(cost.guest_kib),
    ))
}
