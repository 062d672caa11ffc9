//! containerd with storage of its own, and its client `ctr`, which has runc's shim call `bulkhead`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::image::Image;
use crate::process::{run, runtime_script, wait_until};

/// The name of the one image.
pub const IMAGE: &str = "image:v1";

/// A containerd that ends when this is dropped.
pub struct Containerd {
    daemon: Daemon,
    directory: TempDir,
}

impl Containerd {
    /// With one image, of busybox.
    #[track_caller]
    pub fn start() -> Self {
        let builder = tempfile::Builder::new().prefix("containerd-").tempdir_in("/var/tmp");
        let directory = builder.expect("a directory in /var/tmp");
        let path = |name: &str| directory.path().join(name);
        runtime_script(&path("runtime"));
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("socket"),
        );
        fs::write(path("config.toml"), config).expect("the configuration");
        // The cgroup of a containerd namespace stays, whoever makes it.
        fs::create_dir_all("/sys/fs/cgroup/default").expect("a cgroup");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(path("config.toml"));
        let ready = || run(client(&directory).arg("version")).code == 0;
        let daemon = Daemon::start(&mut command, &path("log"), ready);
        let containerd = Self { daemon, directory };
        let image = Image::busybox(json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}));
        let mut import = client(&containerd.directory);
        import.args(["image", "import", "--base-name", "image"]).arg(image.oci_archive_file());
        run(&mut import).expect(0);
        containerd
    }

    /// `ctr WORDS...`.
    pub fn ctr(&self, words: &[&str]) -> Command {
        let mut command = client(&self.directory);
        command.args(words);
        command
    }

    /// `ctr run FLAGS... IMAGE ID PROGRAM...`.
    pub fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Command {
        let mut command = self.ctr(&["run", "--runtime", "io.containerd.runc.v2"]);
        command.arg("--runc-binary").arg(self.path("runtime")).args(flags);
        command.args([IMAGE, id]).args(program);
        command
    }

    /// What containerd says of the task of container `id`, such as `RUNNING`.
    #[track_caller]
    pub fn status(&self, id: &str) -> Option<String> {
        let tasks = run(&mut self.ctr(&["task", "ls"])).expect(0).text();
        let mut rows = tasks.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        rows.find_map(|row| match row[..] {
            [task, _, status] if task == id => Some(status.to_owned()),
            _ => None,
        })
    }

    /// Fails if there is a container, a task, the snapshot of one, or the directory of one; ends
    /// containerd, and waits until its shims have ended, which they do by themselves.
    #[track_caller]
    pub fn end_empty(mut self) {
        for list in ["container", "task"] {
            assert_eq!(run(&mut self.ctr(&[list, "ls", "-q"])).expect(0).text(), "", "{list}");
        }
        let snapshots = run(&mut self.ctr(&["snapshot", "ls"])).expect(0).text();
        assert!(!snapshots.contains("Active"), "{snapshots}");
        for place in ["root", "state"] {
            let tasks = self.path(place).join("io.containerd.runtime.v2.task/default");
            let left: Vec<_> = fs::read_dir(tasks).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        self.daemon.end();
        wait_until("the end of the shims", || !self.has_shim());
    }

    fn has_shim(&self) -> bool {
        let socket = self.path("socket").display().to_string();
        let lines = fs::read_dir("/proc").expect("/proc").flatten();
        let mut lines = lines.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines.any(|line| String::from_utf8_lossy(&line).contains(&socket))
    }

    /// What the daemon has said.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// A file or directory of the daemon's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// `ctr` for the daemon in `directory`.
fn client(directory: &TempDir) -> Command {
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(directory.path().join("socket"));
    ctr
}
