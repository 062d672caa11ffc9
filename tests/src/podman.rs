//! Podman with `bulkhead` as its runtime, CNI for networks, and storage of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Outcome, run, runtime_script};

/// A Podman whose storage is removed when this is dropped.
pub struct Podman {
    directory: TempDir,
}

impl Podman {
    /// Without any container. Networks are made by the CNI plugins.
    pub fn new() -> Self {
        let builder = tempfile::Builder::new().prefix("podman-").tempdir_in("/var/tmp");
        let podman = Self { directory: builder.expect("a directory in /var/tmp") };
        let runtime = podman.path("runtime");
        runtime_script(&runtime);
        let config = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"/usr/lib/cni\"]\n\
             network_config_dir = {networks:?}\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             runtime = \"bulkhead\"\n[engine.runtimes]\nbulkhead = [{runtime:?}]\n",
            networks = podman.path("networks"),
        );
        fs::write(podman.path("containers.conf"), config).expect("the configuration");
        podman
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `podman WORDS...`.
    pub fn run(&self, words: &[&str]) -> Outcome {
        let mut podman = Command::new("podman");
        podman.env("CONTAINERS_CONF", self.path("containers.conf"));
        podman.arg("--root").arg(self.path("root")).arg("--runroot").arg(self.path("run"));
        run(podman.args(["--storage-driver", "vfs"]).args(words))
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}
