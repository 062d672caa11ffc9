//! Podman and Buildah with `bulkhead` as their runtime, CNI for networks, and storage of their own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::bundle::busybox_root;
use crate::image::tar;
use crate::process::{Outcome, run, runtime_script};

/// The image of the container that each pod has before all others.
pub const INFRA: &str = "localhost/infra";

/// A Podman whose storage is removed when this is dropped.
pub struct Podman {
    directory: TempDir,
}

impl Podman {
    /// Without any container. Networks are made by the CNI plugins, cgroups by Podman itself.
    pub fn new() -> Self {
        let podman = Self::with_cgroups_of("cgroupfs");
        // These stay, whichever container is the first to be run.
        fs::create_dir_all("/sys/fs/cgroup/libpod_parent/conmon").expect("cgroups");
        podman
    }

    /// The same with cgroups made by `manager`.
    pub fn with_cgroups_of(manager: &str) -> Self {
        let builder = tempfile::Builder::new().prefix("podman-").tempdir_in("/var/tmp");
        let podman = Self { directory: builder.expect("a directory in /var/tmp") };
        let runtime = podman.path("runtime");
        runtime_script(&runtime);
        let config = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"/usr/lib/cni\"]\n\
             network_config_dir = {networks:?}\n\
             [engine]\ncgroup_manager = {manager:?}\nevents_logger = \"file\"\n\
             runtime = \"bulkhead\"\ninfra_image = {INFRA:?}\n[engine.runtimes]\nbulkhead = [{runtime:?}]\n",
            networks = podman.path("networks"),
        );
        fs::write(podman.path("containers.conf"), config).expect("the configuration");
        podman
    }

    /// `podman WORDS...`.
    pub fn run(&self, words: &[&str]) -> Outcome {
        run(&mut self.command(words))
    }

    /// The same, not yet run.
    pub fn command(&self, words: &[&str]) -> Command {
        self.on_storage("podman", words)
    }

    /// `buildah WORDS...`, which takes the runtime as one of them.
    pub fn buildah(&self, words: &[&str]) -> Command {
        self.on_storage("buildah", words)
    }

    /// The program that calls the `bulkhead` under test.
    pub fn runtime(&self) -> PathBuf {
        self.path("runtime")
    }

    /// Makes an image of a busybox root, whose containers run `command` unless told otherwise.
    #[track_caller]
    pub fn import_busybox(&self, name: &str, command: &str) {
        let root = tempfile::tempdir().expect("temp dir");
        busybox_root(root.path());
        let archive = self.path("busybox.tar");
        fs::write(&archive, tar(root.path())).expect("an archive");
        let command = format!("CMD {command}");
        let changes = ["--change", "ENV PATH=/bin", "--change", &command];
        run(self.command(&["import"]).args(changes).arg(archive).arg(name)).expect(0);
    }

    fn on_storage(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.env("CONTAINERS_CONF", self.path("containers.conf"));
        command.arg("--root").arg(self.path("root")).arg("--runroot").arg(self.path("run"));
        command.args(["--storage-driver", "vfs"]).args(words);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}
