//! Container images for the suites: layers that tests fill, written in each form that
//! `bulkhead launch` reads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::bundle::busybox_root;

/// Tag of every image.
pub const TAG: &str = "v1";

/// An image in a directory of its own, removed when dropped.
pub struct Image {
    directory: TempDir,
    config: Value,
    layers: Vec<Vec<u8>>,
}

impl Image {
    /// An image whose one layer is a busybox root and whose configuration says `config`.
    pub fn busybox(config: Value) -> Self {
        let directory = tempfile::Builder::new().prefix("image-").tempdir().expect("temp dir");
        let mut image = Self { directory, config, layers: Vec::new() };
        image.layer(busybox_root);
        image
    }

    /// Puts what `fill` makes in a directory on top of the other layers; holes stay holes.
    pub fn layer(&mut self, fill: impl FnOnce(&Path)) {
        let tree = tempfile::tempdir().expect("temp dir");
        fill(tree.path());
        self.layers.push(tar_with(tree.path(), &["--sparse"]));
    }

    /// The image as an OCI image layout directory.
    pub fn layout(&self) -> String {
        format!("{}:{TAG}", self.write_layout("layout").display())
    }

    /// The image as an OCI archive.
    pub fn oci_archive(&self) -> String {
        format!("oci-archive:{}:{TAG}", self.oci_archive_file().display())
    }

    /// The file of that.
    pub fn oci_archive_file(&self) -> PathBuf {
        self.archive(&self.write_layout("for-archive"))
    }

    /// The image as `docker save` wrote it before version 25.
    pub fn docker_archive(&self) -> String {
        let directory = self.directory.path().join("docker");
        let config = self.image_config();
        let name = format!("{}.json", hex(&config));
        write(&directory.join(&name), &config);
        let mut names = Vec::new();
        for (at, layer) in self.layers.iter().enumerate() {
            let name = format!("{at}/layer.tar");
            write(&directory.join(&name), layer);
            names.push(name);
        }
        let manifest =
            json!([{"Config": name, "RepoTags": [format!("image:{TAG}")], "Layers": names}]);
        write(&directory.join("manifest.json"), manifest.to_string().as_bytes());
        self.archive(&directory).display().to_string()
    }

    fn write_layout(&self, name: &str) -> PathBuf {
        let directory = self.directory.path().join(name);
        let blob = |media_type: &str, bytes: &[u8]| {
            let digest = hex(bytes);
            write(&directory.join("blobs/sha256").join(&digest), bytes);
            json!({
                "mediaType": format!("application/vnd.oci.image.{media_type}"),
                "digest": format!("sha256:{digest}"),
                "size": bytes.len(),
            })
        };
        let layers: Vec<Value> =
            self.layers.iter().map(|layer| blob("layer.v1.tar", layer)).collect();
        let config = blob("config.v1+json", &self.image_config());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers,
        });
        let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": TAG});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        write(&directory.join("index.json"), index.to_string().as_bytes());
        write(&directory.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
        directory
    }

    fn image_config(&self) -> Vec<u8> {
        let diff_ids: Vec<String> =
            self.layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        config.to_string().into_bytes()
    }

    fn archive(&self, directory: &Path) -> PathBuf {
        let path = directory.with_extension("tar");
        fs::write(&path, tar(directory)).expect("writing an archive");
        path
    }
}

/// An archive of what is in `directory`.
pub fn tar(directory: &Path) -> Vec<u8> {
    tar_with(directory, &[])
}

fn tar_with(directory: &Path, options: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    command.args(["--create", "--numeric-owner"]).args(options);
    command.arg("--directory").arg(directory).arg(".");
    crate::run(&mut command).expect(0).stdout
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("a file has a directory")).expect("directory");
    fs::write(path, bytes).expect("writing a file of an image");
}
