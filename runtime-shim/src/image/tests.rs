//! Images of every form on disk, from the file to the mounted root.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_protocol::id::ContainerId;
use serde_json::json;
use tempfile::TempDir;

use super::manifest::Image;
use super::rootfs::Rootfs;
use super::store::Progress;
use super::testing::{Compression, ImageFiles, TarStream, compress, has_program};
use super::*;
use crate::privilege::is_root;

struct Silent;

impl Progress for Silent {
    fn start(&self, _: u64) {}
    fn advance(&self, _: u64) {}
}

const LIMIT: u64 = 1 << 30;

fn open_text(text: &str) -> Result<Image, ImageError> {
    let scratch = tempfile::tempdir().unwrap();
    open(&Reference::parse(text).unwrap(), scratch.path(), LIMIT)
}

/// A store in a directory of its own.
struct Fixture {
    dir: TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    /// Unpacks and mounts `image`, and gives `check` the path of its root.
    fn mounted(&self, image: &Image, check: impl FnOnce(&Path, &Rootfs)) {
        self.store.unpack_image(image, LIMIT, &Silent).unwrap();
        let id: ContainerId = "c1".parse().unwrap();
        let claim = self.store.claim_container(&id, &self.dir.path().join("state")).unwrap();
        let root = overlay::mount_root(&self.store, &claim, image).unwrap();
        use std::os::fd::AsRawFd;
        let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
        check(&path, &Rootfs::new(&root));
    }
}

fn busybox() -> Option<Vec<u8>> {
    let found = std::fs::read("/bin/busybox").or_else(|_| std::fs::read("/usr/bin/busybox")).ok();
    if found.is_none() {
        println!("skipped: busybox-static is not installed");
    }
    found
}

fn two_layers(busybox: &[u8]) -> [Vec<u8>; 2] {
    let base = TarStream::new()
        .dir("bin/")
        .program("bin/busybox", busybox)
        .hard_link("bin/sh", "bin/busybox")
        .dir("etc/")
        .file("etc/removed", b"1")
        .file("etc/kept", b"1")
        .dir("data/")
        .file("data/old", b"1")
        .finish();
    let top = TarStream::new()
        .dir("etc/")
        .file("etc/.wh.removed", b"")
        .dir("data/")
        .file("data/.wh..wh..opq", b"")
        .file("data/new", b"2")
        .finish();
    [base, top]
}

fn check_two_layers(root: &Path) {
    let has = |name: &str| root.join(name).symlink_metadata().is_ok();
    assert!(has("bin/sh") && has("etc/kept") && has("data/new"));
    assert!(!has("etc/removed"), "hidden by a whiteout");
    assert!(!has("data/old"), "hidden by an opaque directory");
    let list = |name: &str| {
        let entries = std::fs::read_dir(root.join(name)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(list("etc"), ["kept"]);
    assert_eq!(list("data"), ["new"]);
}

#[test]
fn every_form_of_an_image_gives_the_same_root() {
    let Some(busybox) = busybox().filter(|_| is_root()) else { return };
    let [base, top] = two_layers(&busybox);
    let layers = [(base.as_slice(), Compression::Gzip), (top.as_slice(), Compression::Zstd)];
    let layout = ImageFiles::layout(&json!({"Cmd": ["sh"]}), &layers);
    let docker = ImageFiles::docker(&json!({"Cmd": ["sh"]}), &[&base, &top], "busy:v1");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    layout.write_to(&path("layout"));
    let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).unwrap();
    write("oci.tar", &layout.archive());
    write("oci.tar.gz", &compress(&layout.archive(), Compression::Gzip));
    write("docker.tar", &docker.archive());
    write("docker.tar.zst", &compress(&docker.archive(), Compression::Zstd));
    let base = dir.path().display();
    for text in [
        format!("{base}/layout"),
        format!("{base}/layout:v1"),
        format!("oci:{base}/layout:v1"),
        format!("{base}/oci.tar"),
        format!("oci-archive:{base}/oci.tar.gz:v1"),
        format!("{base}/docker.tar"),
        format!("docker-archive:{base}/docker.tar:busy:v1"),
        format!("{base}/docker.tar.zst:@0"),
    ] {
        let image = open_text(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        Fixture::new().mounted(&image, |root, _| check_two_layers(root));
    }
}

#[test]
fn images_of_skopeo_and_umoci_are_read() {
    let programs = ["umoci", "skopeo"].into_iter().all(has_program);
    if !programs || !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(&dir).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    };
    run("umoci", &["init", "--layout", "l"]);
    run("umoci", &["new", "--image", "l:v1"]);
    std::fs::create_dir_all(dir.path().join("tree/etc")).unwrap();
    std::fs::write(dir.path().join("tree/etc/kept"), "1").unwrap();
    std::fs::write(dir.path().join("tree/etc/removed"), "1").unwrap();
    run("umoci", &["insert", "--image", "l:v1", "tree", "/"]);
    run("umoci", &["insert", "--image", "l:v1", "--whiteout", "/etc/removed"]);
    run("umoci", &["config", "--image", "l:v1", "--config.cmd", "true"]);
    run("skopeo", &["copy", "oci:l:v1", "oci-archive:oci.tar:v1"]);
    run("skopeo", &["copy", "oci:l:v1", "docker-archive:docker.tar:busy:v1"]);
    let base = dir.path().display();
    for text in [
        format!("{base}/l:v1"),
        format!("{base}/oci.tar"),
        format!("{base}/docker.tar"),
        format!("docker-archive:{base}/docker.tar:docker.io/library/busy:v1"),
    ] {
        let image = open_text(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let config = image.config.config().as_ref().unwrap();
        assert_eq!(config.cmd().as_deref(), Some(&["true".to_owned()][..]));
        Fixture::new().mounted(&image, |root, _| {
            assert!(root.join("etc/kept").exists(), "{text}");
            assert!(!root.join("etc/removed").exists(), "{text}");
        });
    }
}

#[test]
fn archive_that_is_a_file_system_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rootfs.tar");
    std::fs::write(&path, TarStream::new().file("etc/passwd", b"").finish()).unwrap();
    let error = open_text(path.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, ImageError::NotAnImage(_)), "{error}");
    std::fs::write(&path, b"no archive at all, but longer than nothing").unwrap();
    assert!(matches!(
        open_text(path.to_str().unwrap()),
        Err(ImageError::Source(SourceError::Archive { .. }))
    ));
}

#[test]
fn archive_with_one_name_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("twice.tar");
    let tar = TarStream::new().file("manifest.json", b"[]").file("./manifest.json", b"[]");
    std::fs::write(&path, tar.finish()).unwrap();
    let error = open_text(path.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, ImageError::Source(SourceError::Twice(_))), "{error}");
}

#[test]
fn compressed_archive_beyond_the_limit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.tar.gz");
    std::fs::write(&path, compress(&vec![0; 10 << 20], Compression::Gzip)).unwrap();
    let reference = Reference::parse(path.to_str().unwrap()).unwrap();
    let error = open(&reference, dir.path(), 1 << 20).unwrap_err();
    assert!(matches!(error, ImageError::Source(SourceError::Large { .. })), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn links_between_members_of_a_docker_archive_are_followed_inside_it() {
    let layer = TarStream::new().file("f", b"x").finish();
    let files = ImageFiles::docker(&json!({}), &[&layer, &layer], "a:b");
    let mut tar = TarStream::new();
    for (name, bytes) in &files.0 {
        tar = match name.as_str() {
            "1/layer.tar" => tar.symlink(name, "../0/layer.tar"),
            _ => tar.file(name, bytes),
        };
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    std::fs::write(&path, tar.finish()).unwrap();
    let image = open_text(path.to_str().unwrap()).unwrap();
    assert_eq!(image.layers[1].blob.size(), layer.len() as u64);
    let tar = TarStream::new().symlink("manifest.json", "../../../etc/passwd");
    std::fs::write(&path, tar.finish()).unwrap();
    assert!(open_text(path.to_str().unwrap()).is_err());
    let tar = TarStream::new().symlink("manifest.json", "manifest.json");
    std::fs::write(&path, tar.finish()).unwrap();
    assert!(open_text(path.to_str().unwrap()).is_err());
}

#[test]
fn repeated_and_opaque_root_layers_are_stacked_as_the_specification_says() {
    if !is_root() {
        return;
    }
    let base = TarStream::new().file("base", b"1").file("f", b"base").finish();
    let hide = TarStream::new().file(".wh..wh..opq", b"").file("f", b"hide").finish();
    let none = Compression::None;
    let files = ImageFiles::layout(&json!({}), &[(&base, none), (&hide, none), (&base, none)]);
    let dir = tempfile::tempdir().unwrap();
    files.write_to(dir.path());
    let image = open_text(dir.path().to_str().unwrap()).unwrap();
    Fixture::new().mounted(&image, |root, _| {
        assert_eq!(std::fs::read_to_string(root.join("f")).unwrap(), "base");
    });
    let files = ImageFiles::layout(&json!({}), &[(&base, none), (&hide, none)]);
    let dir = tempfile::tempdir().unwrap();
    files.write_to(dir.path());
    let image = open_text(dir.path().to_str().unwrap()).unwrap();
    Fixture::new().mounted(&image, |root, _| {
        assert_eq!(std::fs::read_to_string(root.join("f")).unwrap(), "hide");
        assert!(!root.join("base").exists());
    });
}

#[test]
fn many_layers_fit_the_option_page_of_mount() {
    if !is_root() {
        return;
    }
    let layers: Vec<Vec<u8>> = (0..manifest::LAYERS_MAX)
        .map(|at| TarStream::new().file(&format!("f{at}"), b"x").finish())
        .collect();
    let stored: Vec<_> = layers.iter().map(|l| (l.as_slice(), Compression::None)).collect();
    let files = ImageFiles::layout(&json!({}), &stored);
    let dir = tempfile::tempdir().unwrap();
    files.write_to(dir.path());
    let image = open_text(dir.path().to_str().unwrap()).unwrap();
    Fixture::new().mounted(&image, |root, _| {
        assert_eq!(std::fs::read_dir(root).unwrap().count(), manifest::LAYERS_MAX);
    });
}

#[test]
fn mounted_root_is_writable_confined_and_nobody_elses() {
    if !is_root() {
        return;
    }
    let mut data = TarStream::header(::tar::EntryType::Directory, b"data/", b"", 0);
    data.set_mode(0o1770);
    data.set_uid(5);
    let layer = TarStream::new()
        .dir("etc/")
        .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")
        .symlink("leak", "/../../../../etc/hostname")
        .symlink("evil", "/proc/self/root/etc")
        .entry(::tar::EntryType::Fifo, "etc/fifo", "", b"")
        .add(data, b"")
        .finish();
    let files = ImageFiles::layout(&json!({}), &[(&layer, Compression::Gzip)]);
    let dir = tempfile::tempdir().unwrap();
    files.write_to(dir.path());
    let image = open_text(dir.path().to_str().unwrap()).unwrap();
    let fixture = Fixture::new();
    fixture.mounted(&image, |path, root| {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let store = fixture.store.path().to_str().unwrap();
        assert!(!mounts.contains(store), "nobody sees the mount");
        assert!(root.read("etc/passwd", 1000).unwrap().unwrap().starts_with(b"root:"));
        assert_eq!(root.read("leak", 1000).unwrap(), None, "the host's is not seen");
        assert_eq!(root.read("etc/nothing", 1000).unwrap(), None);
        assert!(root.read("etc/passwd", 5).is_err(), "longer than allowed");
        assert!(root.read("etc/fifo", 1000).is_err(), "refused without waiting");
        assert!(root.read("etc", 1000).is_err());
        root.make_directory("/srv/a/b").unwrap();
        assert!(path.join("srv/a/b").is_dir());
        root.make_directory("/srv/a").unwrap();
        root.make_directory("/").unwrap();
        assert!(root.make_directory("/evil/x").is_err());
        assert!(root.make_directory("../x").is_err());
        let target = fixture.dir.path().join("volume");
        std::fs::create_dir(&target).unwrap();
        let opened = std::fs::File::open(&target).unwrap().into();
        root.copy_directory("/data", &opened).unwrap();
        let metadata = std::fs::metadata(&target).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (5, 0o1770));
        assert!(root.copy_directory("/evil", &opened).is_err());
        root.write("etc/hostname", b"long name").unwrap();
        root.write("etc/hostname", b"name").unwrap();
        assert_eq!(std::fs::read(path.join("etc/hostname")).unwrap(), b"name");
        assert!(root.write("etc/fifo", b"x").is_err());
        let device = rustix::fs::makedev(1, 3);
        let kind = rustix::fs::FileType::CharacterDevice;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path.join("null"), kind, mode, device).unwrap();
        assert!(std::fs::read(path.join("null")).is_err(), "devices are not opened on the host");
    });
    let containers = fixture.store.path().join("containers");
    assert_eq!(std::fs::read_dir(containers).unwrap().count(), 0);
}
