//! Images for tests: tar streams with any content, valid or not, and layouts around them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use tar::EntryType;

use super::digest::Sha256Digest;

/// Whether `program` can be run; prints why a test is skipped.
pub fn has_program(program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).exists())
    });
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

/// A tar stream under construction. Paths and links are written as they are.
pub struct TarStream(tar::Builder<Vec<u8>>);

impl TarStream {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn header(kind: EntryType, path: &[u8], link: &[u8], size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        header
    }

    pub fn add(mut self, mut header: tar::Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub fn entry(self, kind: EntryType, path: &str, link: &str, data: &[u8]) -> Self {
        let header = Self::header(kind, path.as_bytes(), link.as_bytes(), data.len() as u64);
        self.add(header, data)
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, "", data)
    }

    pub fn program(self, path: &str, data: &[u8]) -> Self {
        let mut header = Self::header(EntryType::Regular, path.as_bytes(), b"", data.len() as u64);
        header.set_mode(0o755);
        self.add(header, data)
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, b"")
    }

    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// How a layer is stored.
#[derive(Clone, Copy, Debug)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

pub fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
    }
}

/// The files of an image, before they go into a directory or an archive.
#[derive(Clone, Default)]
pub struct ImageFiles(pub BTreeMap<String, Vec<u8>>);

impl ImageFiles {
    /// Adds a blob and describes it.
    pub fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Sha256Digest::of(&bytes);
        let size = bytes.len();
        self.0.insert(format!("blobs/sha256/{digest}"), bytes);
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
    }

    pub fn json_blob(&mut self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, serde_json::to_vec(value).unwrap())
    }

    pub fn index(&mut self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        self.0.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
        self.0.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    }

    /// Adds configuration, layers and manifest, and describes the manifest.
    pub fn manifest(
        &mut self,
        config: &Value,
        layers: &[(&[u8], Compression)],
        reference: Option<&str>,
    ) -> Value {
        let described: Vec<Value> = layers
            .iter()
            .map(|(bytes, compression)| {
                let suffix = match compression {
                    Compression::None => "",
                    Compression::Gzip => "+gzip",
                    Compression::Zstd => "+zstd",
                };
                let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
                self.blob(&media_type, compress(bytes, *compression))
            })
            .collect();
        let config = image_config(config, layers.iter().map(|(bytes, _)| *bytes));
        let config = self.json_blob("application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": described});
        let mut manifest = self.json_blob("application/vnd.oci.image.manifest.v1+json", &manifest);
        if let Some(reference) = reference {
            manifest["annotations"] = json!({"org.opencontainers.image.ref.name": reference});
        }
        manifest
    }

    /// A layout with one image.
    pub fn layout(config: &Value, layers: &[(&[u8], Compression)]) -> Self {
        let mut files = Self::default();
        let manifest = files.manifest(config, layers, Some("v1"));
        files.index(&[manifest]);
        files
    }

    /// What `docker save` wrote before version 25.
    pub fn docker(config: &Value, layers: &[&[u8]], tag: &str) -> Self {
        let mut files = Self::default();
        let config = image_config(config, layers.iter().copied());
        let config = serde_json::to_vec(&config).unwrap();
        let config_name = format!("{}.json", Sha256Digest::of(&config));
        files.0.insert(config_name.clone(), config);
        let mut names = Vec::new();
        for (at, layer) in layers.iter().enumerate() {
            let name = format!("{at}/layer.tar");
            files.0.insert(name.clone(), layer.to_vec());
            names.push(name);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": [tag], "Layers": names}]);
        files.0.insert("manifest.json".into(), serde_json::to_vec(&manifest).unwrap());
        files
    }

    pub fn write_to(&self, directory: &Path) {
        for (name, bytes) in &self.0 {
            let path = directory.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    pub fn archive(&self) -> Vec<u8> {
        let add = |tar: TarStream, (name, bytes): (&String, &Vec<u8>)| tar.file(name, bytes);
        self.0.iter().fold(TarStream::new(), add).finish()
    }
}

fn image_config<'a>(config: &Value, layers: impl Iterator<Item = &'a [u8]>) -> Value {
    let diff_ids: Vec<String> =
        layers.map(|bytes| format!("sha256:{}", Sha256Digest::of(bytes))).collect();
    json!({
        "architecture": oci_spec::image::Arch::default().to_string(),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}
