//! OCI bundles for the suites: a busybox root and a `config.json` that `bulkhead spec` wrote.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::bulkhead;

/// A bundle in a directory of its own, removed when dropped.
pub struct Bundle {
    directory: TempDir,
    config: Value,
}

impl Bundle {
    /// A bundle that runs `args` without a terminal in a busybox root.
    pub fn new(args: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("bundle-").tempdir().expect("temp dir");
        busybox_root(&directory.path().join("rootfs"));
        let outcome = crate::run(bulkhead().arg("spec").arg("--bundle").arg(directory.path()));
        assert_eq!(outcome.code, 0, "bulkhead spec: {}", outcome.stderr);
        let text = fs::read(directory.path().join("config.json")).expect("spec wrote config.json");
        let config = serde_json::from_slice(&text).expect("config.json is JSON");
        let mut bundle = Self { directory, config };
        bundle.edit(|config| {
            config["process"]["args"] = json!(args);
            config["process"]["terminal"] = json!(false);
            config["root"]["readonly"] = json!(false);
        });
        bundle
    }

    /// A bundle that runs a shell script.
    pub fn script(text: &str) -> Self {
        Self::new(&["/bin/sh", "-c", text])
    }

    /// Changes the configuration and writes it.
    pub fn edit(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.config);
        let text = serde_json::to_vec_pretty(&self.config).expect("JSON");
        fs::write(self.path().join("config.json"), text).expect("writing config.json");
    }

    /// The bundle's directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path inside the root file system, as the host sees it.
    pub fn root(&self, path: &str) -> PathBuf {
        self.path().join("rootfs").join(path)
    }
}

/// Makes a root file system of busybox with its applets as links.
pub fn busybox_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "run", "mnt"] {
        fs::create_dir_all(root.join(directory)).expect("directory of the root");
    }
    let busybox = root.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).expect("busybox-static is installed");
    let output = Command::new(&busybox).arg("--list").output().expect("busybox runs");
    for applet in String::from_utf8_lossy(&output.stdout).lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet)).expect("applet link");
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:\n")
        .expect("etc/passwd");
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").expect("etc/group");
}
