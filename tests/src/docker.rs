//! Docker's daemon with `bulkhead` as its default runtime, and storage of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::{Outcome, run, runtime_script};

/// How long the daemon may take to answer; an emulated machine is slow.
const LIMIT: Duration = Duration::from_secs(240);
/// Between two questions.
const STEP: Duration = Duration::from_millis(500);

/// A daemon that ends when this is dropped.
pub struct Docker {
    daemon: Child,
    directory: TempDir,
}

impl Docker {
    /// A daemon whose bridge has `address` (with the length of its prefix).
    #[track_caller]
    pub fn start(address: &str) -> Self {
        let builder = tempfile::Builder::new().prefix("docker-").tempdir_in("/var/tmp");
        let directory = builder.expect("a directory in /var/tmp");
        let path = |name: &str| directory.path().join(name);
        runtime_script(&path("runtime"));
        let log = File::create(path("log")).expect("the log");
        let daemon = Command::new("dockerd")
            .arg("--host")
            .arg(format!("unix://{}", path("socket").display()))
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("run"))
            .arg("--pidfile")
            .arg(path("pid"))
            .arg("--add-runtime")
            .arg(format!("bulkhead={}", path("runtime").display()))
            .args(["--default-runtime", "bulkhead", "--storage-driver", "vfs", "--bip", address])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("dockerd is installed");
        let mut docker = Self { daemon, directory };
        let deadline = Instant::now() + LIMIT;
        while docker.run(&["version"]).code != 0 {
            let ended = docker.daemon.try_wait().expect("waiting for dockerd");
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}\n{}", docker.log());
            std::thread::sleep(STEP);
        }
        docker
    }

    /// `docker WORDS...`.
    pub fn run(&self, words: &[&str]) -> Outcome {
        run(self.command().args(words))
    }

    /// Makes an image of a root file system.
    #[track_caller]
    pub fn import(&self, root: &Path, name: &str) {
        let archive = self.path("root.tar");
        let mut tar = Command::new("tar");
        tar.args(["--create", "--numeric-owner", "--directory"]).arg(root).arg("--file");
        run(tar.arg(&archive).arg(".")).expect(0);
        run(self.command().arg("import").arg(&archive).arg(name)).expect(0);
        fs::remove_file(archive).expect("removing");
    }

    /// What the daemon has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let mut docker = Command::new("docker");
        docker.arg("--host").arg(format!("unix://{}", self.path("socket").display()));
        docker.env("DOCKER_CONFIG", self.path("config"));
        docker
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It ends its own containerd, and waits for it.
        let pid = i32::try_from(self.daemon.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + LIMIT;
        while self.daemon.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() > deadline {
                let _ = self.daemon.kill();
            }
            std::thread::sleep(STEP);
        }
        // The daemon leaves its rules, and forwards for nobody but its own from then on.
        for iptables in ["iptables", "ip6tables"] {
            run(Command::new(iptables).args(["--policy", "FORWARD", "ACCEPT"]));
        }
    }
}
