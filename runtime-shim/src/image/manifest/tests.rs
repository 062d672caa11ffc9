use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::image::reference::{Reference, Transport};
use crate::image::testing::{Compression, ImageFiles, TarStream};
use crate::image::{self, ImageError};

fn layer() -> Vec<u8> {
    TarStream::new().file("f", b"x").finish()
}

fn open(files: &ImageFiles, selector: Selector) -> Result<Image, ImageError> {
    let dir = tempfile::tempdir().unwrap();
    files.write_to(dir.path());
    let reference =
        Reference { transport: Some(Transport::Directory), path: dir.path().into(), selector };
    image::open(&reference, dir.path(), 1 << 20)
}

fn one(change: impl FnOnce(&mut ImageFiles)) -> Result<Image, ImageError> {
    let layer = layer();
    let mut files = ImageFiles::layout(&json!({}), &[(&layer, Compression::Gzip)]);
    change(&mut files);
    open(&files, Selector::Only)
}

fn platform(architecture: &str) -> Value {
    json!({"os": "linux", "architecture": architecture})
}

fn own() -> String {
    Arch::default().to_string()
}

fn named(reference: &str) -> Selector {
    Selector::Name(reference.to_owned())
}

/// A layout with images of the given names, told apart by their entry points.
fn several(names: &[&str]) -> ImageFiles {
    let (layer, mut files) = (layer(), ImageFiles::default());
    let add = |files: &mut ImageFiles, name: &str| {
        let config = json!({"Entrypoint": [name]});
        files.manifest(&config, &[(&layer, Compression::None)], Some(name))
    };
    let manifests: Vec<Value> = names.iter().map(|name| add(&mut files, name)).collect();
    files.index(&manifests);
    files
}

fn entrypoint(image: &Image) -> String {
    image.config.config().as_ref().unwrap().entrypoint().as_ref().unwrap()[0].clone()
}

#[test]
fn only_image_needs_no_selection() {
    let image = one(|_| {}).unwrap();
    assert_eq!(image.layers.len(), 1);
    assert_eq!(image.layers[0].diff_id, Sha256Digest::of(&layer()));
}

#[test]
fn image_is_selected_by_name_position_or_digest() {
    let files = several(&["a", "b"]);
    assert_eq!(entrypoint(&open(&files, named("b")).unwrap()), "b");
    assert_eq!(entrypoint(&open(&files, Selector::Position(1)).unwrap()), "b");
    let index: ImageIndex = serde_json::from_slice(&files.0["index.json"]).unwrap();
    let digest = Sha256Digest::from_descriptor(index.manifests()[0].digest()).unwrap();
    assert_eq!(entrypoint(&open(&files, Selector::Digest(digest)).unwrap()), "a");
}

#[test]
fn several_images_without_selection_are_listed() {
    let error = open(&several(&["a", "b"]), Selector::Only).unwrap_err();
    assert_eq!(error.to_string(), "there are several images, choose one: :a, :b");
    let error = open(&several(&["a", "b"]), named("c")).unwrap_err();
    assert_eq!(error.to_string(), "the image \"c\" is not there; there are: :a, :b");
    let error = open(&several(&["a"]), Selector::Position(1)).unwrap_err();
    assert!(matches!(error, ImageError::Manifest(ManifestError::NoSuchImage { .. })));
}

#[test]
fn docker_names_are_completed() {
    for name in ["busybox", "library/busybox:latest", "docker.io/library/busybox"] {
        assert_eq!(normal_name(name), "busybox:latest", "{name}");
    }
    assert_eq!(normal_name("localhost:5000/a/b"), "localhost:5000/a/b:latest");
    assert_eq!(normal_name("a/b:v1"), "a/b:v1");
}

#[test]
fn variant_for_this_machine_is_found_in_nested_indexes() {
    let (layer, mut files) = (layer(), ImageFiles::default());
    let mut variant = |architecture: &str| {
        let config = json!({"Entrypoint": [architecture]});
        let mut manifest = files.manifest(&config, &[(&layer, Compression::Zstd)], None);
        manifest["platform"] = platform(architecture);
        manifest
    };
    let variants = [variant("s390x"), variant("unknown"), variant(&own())];
    let inner = json!({"schemaVersion": 2, "manifests": variants});
    let inner = files.json_blob("application/vnd.oci.image.index.v1+json", &inner);
    files.index(&[inner]);
    assert_eq!(entrypoint(&open(&files, Selector::Only).unwrap()), own());
}

#[test]
fn image_for_other_machines_only_is_refused_with_their_names() {
    let (layer, mut files) = (layer(), ImageFiles::default());
    let mut manifest = files.manifest(&json!({}), &[(&layer, Compression::None)], None);
    manifest["platform"] = platform("s390x");
    files.index(&[manifest]);
    let error = open(&files, Selector::Only).unwrap_err().to_string();
    assert!(error.ends_with("there are: linux/s390x"), "{error}");
}

#[test]
fn indexes_nested_without_end_are_refused() {
    let mut files = ImageFiles::default();
    let mut inner = json!({
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": format!("sha256:{}", Sha256Digest::of(b"")),
        "size": 0,
    });
    for _ in 0..=DEPTH_MAX {
        let index = json!({"schemaVersion": 2, "manifests": [inner]});
        inner = files.json_blob("application/vnd.oci.image.index.v1+json", &index);
    }
    files.index(&[inner.clone()]);
    let error = open(&files, Selector::Only).unwrap_err();
    assert!(matches!(error, ImageError::Manifest(ManifestError::Nesting)), "{error}");
    // Many side by side, each empty.
    let empty = json!({"schemaVersion": 2, "manifests": []});
    let mut empty = files.json_blob("application/vnd.oci.image.index.v1+json", &empty);
    empty["platform"] = platform("s390x");
    files.index(&vec![empty; INDEXES_MAX + 1]);
    let error = open(&files, Selector::Only).unwrap_err();
    assert!(matches!(error, ImageError::Manifest(ManifestError::Nesting)), "{error}");
}

#[test]
fn document_with_other_bytes_than_its_digest_is_refused() {
    let result = one(|files| {
        for (name, bytes) in &mut files.0 {
            if name.starts_with("blobs/") && bytes.starts_with(b"{") {
                // Still JSON of the same length: only the digest tells.
                let last = bytes.len() - 1;
                bytes[last] = b'}';
                let text = String::from_utf8(bytes.clone()).unwrap();
                *bytes = text.replacen("schemaVersion\":2", "schemaVersion\":3", 1).into_bytes();
            }
        }
    });
    assert!(
        matches!(result, Err(ImageError::Manifest(ManifestError::Digest { .. }))),
        "{result:?}"
    );
}

#[test]
fn blob_of_another_length_than_its_descriptor_is_refused() {
    let result = one(|files| {
        for (name, bytes) in &mut files.0 {
            if name.starts_with("blobs/") && !bytes.starts_with(b"{") {
                bytes.push(0);
            }
        }
    });
    assert!(matches!(result, Err(ImageError::Manifest(ManifestError::Size { .. }))));
}

#[test]
fn document_beyond_the_limit_is_refused_before_it_is_read() {
    let result = one(|files| {
        let large = vec![b' '; usize::try_from(DOCUMENT_MAX).unwrap() + 1];
        files.0.insert("index.json".into(), large);
    });
    assert!(matches!(result, Err(ImageError::Manifest(ManifestError::Large { .. }))));
}

#[test]
fn malformed_documents_are_refused() {
    for text in ["", "{", "[]", "null", "{\"manifests\":{}}", &"[".repeat(100_000)] {
        let result = one(|files| drop(files.0.insert("index.json".into(), text.into())));
        assert!(matches!(result, Err(ImageError::Manifest(ManifestError::Json { .. }))), "{text}");
    }
}

#[test]
fn layout_without_its_files_is_named_as_such() {
    let result = one(|files| drop(files.0.remove("oci-layout")));
    assert!(matches!(result, Err(ImageError::NotAnImage(_))));
    let result = one(|files| files.0.retain(|name, _| !name.starts_with("blobs/")));
    assert!(matches!(result, Err(ImageError::Manifest(ManifestError::Missing(_)))));
    let result = one(|files| {
        files.0.insert("oci-layout".into(), br#"{"imageLayoutVersion":"2.0"}"#.to_vec());
    });
    assert!(matches!(result, Err(ImageError::Manifest(ManifestError::Version(_)))));
}

#[test]
fn layer_that_is_no_layer_is_refused() {
    let mut files = ImageFiles::default();
    let blob = files.blob("application/vnd.oci.image.layer.v1.tar+encrypted", b"x".to_vec());
    let config = json!({
        "architecture": own(), "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", Sha256Digest::of(b"x"))]},
    });
    let config = files.json_blob("application/vnd.oci.image.config.v1+json", &config);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [blob]});
    let manifest = files.json_blob("application/vnd.oci.image.manifest.v1+json", &manifest);
    files.index(&[manifest]);
    let error = open(&files, Selector::Only).unwrap_err();
    assert!(matches!(error, ImageError::Manifest(ManifestError::LayerType { .. })), "{error}");
}

#[test]
fn layers_without_diff_ids_and_none_at_all_are_refused() {
    let config = |ids: &[&str]| -> ImageConfiguration {
        serde_json::from_value(json!({
            "architecture": own(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids},
        }))
        .unwrap()
    };
    let id = Sha256Digest::of(b"");
    let result = Image::new(config(&["sha256:x"]), id, vec![]);
    assert!(matches!(result, Err(ManifestError::LayerCount { layers: 0, diff_ids: 1 })));
    assert!(matches!(Image::new(config(&[]), id, vec![]), Err(ManifestError::Empty)));
}

#[test]
fn links_of_a_layout_directory_do_not_lead_out() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    std::fs::create_dir(&layout).unwrap();
    std::fs::write(dir.path().join("secret"), "root:x:0:0").unwrap();
    std::os::unix::fs::symlink("../secret", layout.join("index.json")).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let open = |selector| {
        let transport = Some(Transport::Directory);
        image::open(&Reference { transport, path: PathBuf::from(&layout), selector }, &layout, 0)
    };
    assert!(matches!(open(Selector::Only), Err(ImageError::Source(SourceError::File { .. }))));
    // A pipe is refused without waiting for a writer.
    std::fs::remove_file(layout.join("index.json")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, layout.join("index.json"), fifo, mode, 0).unwrap();
    assert!(matches!(open(Selector::Only), Err(ImageError::Source(SourceError::NotRegular(_)))));
}
