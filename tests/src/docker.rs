//! Docker's daemon with `bulkhead` as its default runtime, and storage of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::image::tar;
use crate::process::{Outcome, run, runtime_script};

/// A daemon that ends when this is dropped.
pub struct Docker {
    daemon: Daemon,
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
        let mut command = Command::new("dockerd");
        command
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
            .args([
                "--default-runtime",
                "bulkhead",
                "--storage-driver",
                "overlay2",
                "--bip",
                address,
            ])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        let ready = || run(client(&directory, "docker").arg("version")).code == 0;
        // It stays, whichever container is the first to be run.
        fs::create_dir_all("/sys/fs/cgroup/docker").expect("cgroup");
        let daemon = Daemon::start(&mut command, &path("log"), ready);
        Self { daemon, directory }
    }

    /// `docker WORDS...`.
    pub fn run(&self, words: &[&str]) -> Outcome {
        run(&mut self.command(words))
    }

    /// The same, not yet run.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut docker = self.client("docker");
        docker.args(words);
        docker
    }

    /// A program that drives the daemon.
    pub fn client(&self, program: &str) -> Command {
        client(&self.directory, program)
    }

    /// Makes an image of a root file system.
    #[track_caller]
    pub fn import(&self, root: &Path, name: &str) {
        let archive = self.path("root.tar");
        fs::write(&archive, tar(root)).expect("an archive");
        self.import_archive(&archive, name);
        fs::remove_file(archive).expect("removing");
    }

    /// Makes an image of an archive of one.
    #[track_caller]
    pub fn import_archive(&self, archive: &Path, name: &str) {
        run(self.client("docker").arg("import").arg(archive).arg(name)).expect(0);
    }

    /// What the daemon has said.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It ends its own containerd, and waits for it.
        self.daemon.end();
        // The daemon leaves its rules, and forwards for nobody but its own from then on.
        for iptables in ["iptables", "ip6tables"] {
            run(Command::new(iptables).args(["--policy", "FORWARD", "ACCEPT"]));
        }
    }
}

/// A client of the daemon in `directory`.
fn client(directory: &TempDir, program: &str) -> Command {
    let path = |name: &str| directory.path().join(name);
    let mut client = Command::new(program);
    client.env("DOCKER_HOST", format!("unix://{}", path("socket").display()));
    client.env("DOCKER_CONFIG", path("config"));
    client
}
