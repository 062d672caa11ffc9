use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use bulkhead_protocol::id::ContainerId;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::eventually::eventually;
use crate::image::manifest::Image;
use crate::image::reference::{Reference, Selector, Transport};
use crate::image::testing::{Compression, ImageFiles, TarStream};
use crate::privilege::is_root;

#[derive(Default)]
struct Counted {
    total: AtomicU64,
    done: AtomicU64,
}

impl Progress for Counted {
    fn start(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }
    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

const LIMIT: u64 = 1 << 30;

fn image(layers: &[&[u8]]) -> (TempDir, Image) {
    changed_image(layers, |_| {})
}

fn changed_image(layers: &[&[u8]], change: impl FnOnce(&Path)) -> (TempDir, Image) {
    let dir = tempfile::tempdir().unwrap();
    let stored: Vec<_> = layers.iter().map(|layer| (*layer, Compression::Gzip)).collect();
    ImageFiles::layout(&json!({}), &stored).write_to(dir.path());
    change(dir.path());
    let transport = Some(Transport::Directory);
    let path = dir.path().to_owned();
    let reference = Reference { transport, path, selector: Selector::Only };
    let image = crate::image::open(&reference, dir.path(), LIMIT).unwrap();
    (dir, image)
}

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

fn count(store: &Store, directory: &str) -> usize {
    std::fs::read_dir(store.path().join(directory)).unwrap().count()
}

#[test]
fn store_is_closed_to_others() {
    let (_dir, store) = store();
    assert_eq!(std::fs::metadata(store.path()).unwrap().mode() & 0o777, 0o700);
    std::fs::set_permissions(store.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(Store::open(store.path()), Err(StoreError::Exposed(_))));
}

#[test]
fn directory_that_is_no_store_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(dir.path().join("mine"), "x").unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Exposed(_))));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(std::fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o755);
}

#[test]
fn layer_is_unpacked_once() {
    if !is_root() {
        return;
    }
    let layer = TarStream::new().file("f", b"x").finish();
    let (_image_dir, image) = image(&[&layer, &layer]);
    let (_dir, store) = store();
    let progress = Counted::default();
    store.unpack_image(&image, LIMIT, &progress).unwrap();
    assert_eq!(count(&store, "layers/sha256"), 1);
    assert_eq!(count(&store, "work"), 0);
    let stored = image.layers[0].blob.size();
    assert_eq!(progress.total.into_inner(), stored);
    assert_eq!(progress.done.into_inner(), stored);
    let again = Counted::default();
    store.unpack_image(&image, LIMIT, &again).unwrap();
    assert_eq!((again.total.into_inner(), again.done.into_inner()), (0, 0));
}

#[test]
fn concurrent_launches_share_layers() {
    if !is_root() {
        return;
    }
    let data = vec![7; 1 << 20];
    let layers: Vec<Vec<u8>> =
        (0..6).map(|at| TarStream::new().file(&format!("f{at}"), &data).finish()).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let (_image_dir, image) = image(&layers);
    let (_dir, store) = store();
    let path = store.path();
    std::thread::scope(|scope| {
        let launches = [(); 4].map(|()| {
            scope.spawn(|| {
                Store::open(path).unwrap().unpack_image(&image, LIMIT, &Counted::default())
            })
        });
        for launch in launches {
            launch.join().unwrap().unwrap();
        }
    });
    assert_eq!((count(&store, "layers/sha256"), count(&store, "work")), (6, 0));
}

#[test]
fn layer_with_other_bytes_than_its_digest_leaves_nothing() {
    if !is_root() {
        return;
    }
    // The gzip header's time: the data stays the same, only the stored digest changes.
    let change = |path: &Path| {
        for entry in std::fs::read_dir(path.join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            if bytes.starts_with(&[0x1f, 0x8b]) {
                bytes[4] ^= 1;
                std::fs::write(path, bytes).unwrap();
            }
        }
    };
    let layer = TarStream::new().file("f", b"x").finish();
    let (_image_dir, image) = changed_image(&[&layer], change);
    let (_dir, store) = store();
    let error = store.unpack_image(&image, LIMIT, &Counted::default()).unwrap_err();
    assert!(
        matches!(error, StoreError::Layer { source: LayerError::Digest { .. }, .. }),
        "{error:?}"
    );
    assert_eq!((count(&store, "layers/sha256"), count(&store, "work")), (0, 0));
}

#[test]
fn layer_with_another_diff_id_leaves_nothing() {
    if !is_root() {
        return;
    }
    let (_image_dir, mut image) = image(&[&TarStream::new().file("f", b"x").finish()]);
    image.layers[0].diff_id = crate::image::digest::Sha256Digest::of(b"another");
    let (_dir, store) = store();
    let error = store.unpack_image(&image, LIMIT, &Counted::default()).unwrap_err();
    assert!(
        matches!(error, StoreError::Layer { source: LayerError::DiffId { .. }, .. }),
        "{error:?}"
    );
    assert_eq!((count(&store, "layers/sha256"), count(&store, "work")), (0, 0));
}

#[test]
fn bytes_behind_the_archive_count_for_the_digests() {
    if !is_root() {
        return;
    }
    let mut layer = TarStream::new().file("f", b"x").finish();
    layer.extend_from_slice(&[b'z'; 100_000]);
    let (_image_dir, image) = image(&[&layer]);
    let (_dir, store) = store();
    store.unpack_image(&image, LIMIT, &Counted::default()).unwrap();
    assert_eq!(count(&store, "layers/sha256"), 1);
}

#[test]
fn decompression_bomb_is_stopped_and_cleaned_up() {
    if !is_root() {
        return;
    }
    let bomb = TarStream::new().file("zeros", &vec![0; 20 << 20]).finish();
    let behind = [TarStream::new().finish(), vec![0; 20 << 20]].concat();
    for layer in [bomb, behind] {
        let (_image_dir, image) = image(&[&layer]);
        assert!(image.layers[0].blob.size() < 1 << 20);
        let (_dir, store) = store();
        let error = store.unpack_image(&image, 1 << 20, &Counted::default()).unwrap_err();
        assert!(error.fix().contains("--unpack-max"), "{error:?}");
        assert_eq!((count(&store, "layers/sha256"), count(&store, "work")), (0, 0));
    }
}

#[test]
fn full_disk_is_named_and_cleaned_up() {
    if !is_root() {
        return;
    }
    // A tmpfs of its own, seen by this thread alone and gone with it.
    std::thread::spawn(|| {
        // SAFETY: nothing but the mount namespace and the thread's directories is unshared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=2m")).unwrap();
        let layer = TarStream::new().file("f", &vec![7; 8 << 20]).finish();
        let (_image_dir, image) = image(&[&layer]);
        let store = Store::open(&dir.path().join("store")).unwrap();
        let error = store.unpack_image(&image, LIMIT, &Counted::default()).unwrap_err();
        assert!(matches!(error, StoreError::Full(_)), "{error:?}");
        assert_eq!((count(&store, "layers/sha256"), count(&store, "work")), (0, 0));
        drop(store);
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn unfinished_layer_of_a_killed_process_is_collected() {
    let (_dir, store) = store();
    let name = crate::image::digest::Sha256Digest::of(b"layer").to_string();
    let work = store.path().join("work");
    std::fs::create_dir_all(work.join(&name).join("half/done")).unwrap();
    let lock_path = work.join(format!("{name}.lock"));
    std::fs::write(&lock_path, "").unwrap();
    // While somebody holds the lock it is under way.
    let held = std::fs::File::open(&lock_path).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    Store::open(store.path()).unwrap();
    assert!(work.join(&name).exists());
    drop(held);
    eventually(|| {
        Store::open(store.path()).unwrap();
        (count(&store, "work") == 0).then_some(())
    });
}

fn id(text: &str) -> ContainerId {
    text.parse().unwrap()
}

#[test]
fn container_directory_is_removed_unless_handed_over() {
    let (dir, store) = store();
    let state = dir.path().join("state/c1");
    drop(store.claim_container(&id("c1"), &state).unwrap());
    assert_eq!(count(&store, "containers"), 0);
    let claim = store.claim_container(&id("c1"), &state).unwrap();
    let path = claim.path().to_owned();
    let again = store.claim_container(&id("c1"), &state);
    assert!(matches!(again, Err(StoreError::Exists(_))));
    std::fs::create_dir_all(&state).unwrap();
    claim.hand_over();
    Store::open(store.path()).unwrap();
    assert!(path.is_dir(), "its state exists");
    crate::image::remove::remove_path(&path).unwrap();
    assert_eq!(count(&store, "containers"), 0);
}

#[test]
fn container_directory_without_state_or_maker_is_collected() {
    let (dir, store) = store();
    let state = dir.path().join("state/c1");
    let claim = store.claim_container(&id("c1"), &state).unwrap();
    Store::open(store.path()).unwrap();
    assert_eq!(count(&store, "containers"), 1, "its maker holds it");
    claim.hand_over();
    // Killed between the directory and its link.
    std::fs::create_dir(store.path().join("containers/c2")).unwrap();
    eventually(|| {
        Store::open(store.path()).unwrap();
        (count(&store, "containers") == 0).then_some(())
    });
}

#[test]
fn lock_of_a_removed_file_is_not_taken_for_the_new_one() {
    let (_dir, store) = store();
    let work = store.work.as_fd();
    let first = lock::acquire_transient(work, c"l").unwrap();
    assert!(lock::try_transient(work, c"l").unwrap().is_none());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lock::acquire_transient(work, c"l").map(|_| ()));
        lock::release(first, work, c"l").unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert!(lock::try_transient(work, c"nothing").unwrap().is_none());
    assert!(work.as_raw_fd() >= 0);
}
