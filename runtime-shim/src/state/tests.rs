//! Claims, races, liveness and removal.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::eventually::eventually;
use crate::process::ProcessId;

fn record(id: &str) -> Record {
    Record {
        oci_version: "1.2.0".into(),
        id: id.parse().unwrap(),
        status: Status::Creating,
        bundle: "/b".into(),
        rootfs: "/b/rootfs".into(),
        created: timestamp(UNIX_EPOCH),
        annotations: Default::default(),
        owner: 0,
        supervisor: ProcessId::own().unwrap(),
        children: vec![],
        sandbox: None,
        network: None,
        cgroup: None,
        poststop: vec![],
        uplink: None,
        scratch: None,
        call_limit_s: 10,
    }
}

fn claim(store: &Store, id: &str) -> Result<ContainerDir, StateError> {
    store.claim(&record(id), &Default::default())
}

fn names(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn timestamp_is_rfc_3339_in_utc() {
    let at = |s, n| timestamp(UNIX_EPOCH + Duration::new(s, n));
    assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
    assert_eq!(at(951_782_399, 5), "2000-02-28T23:59:59.000000005Z");
    assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
    assert_eq!(at(1_795_555_445, 0), "2026-11-24T21:24:05.000000000Z");
    assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
}

#[test]
fn claimed_id_is_alive_until_its_lock_goes() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    let dir = claim(&store, "a").unwrap();
    assert_eq!(store.view(&dir.id).unwrap().status(), Status::Creating);
    let mut changed = record("a");
    changed.status = Status::Running;
    dir.write_record(&changed).unwrap();
    assert_eq!(store.view(&dir.id).unwrap().status(), Status::Running);
    let id = dir.id.clone();
    drop(dir);
    await_stop(&store, &id);
}

/// Waits until nobody holds the lock of a container's directory.
#[track_caller]
fn await_stop(store: &Store, id: &ContainerId) {
    eventually(|| (store.view(id).unwrap().status() == Status::Stopped).then_some(()));
}

#[test]
fn directory_that_others_can_write_is_not_used() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    let dir = claim(&store, "a").unwrap();
    let victim = dir.id.clone();
    drop(dir);
    for mode in [0o770, 0o1777] {
        std::fs::set_permissions(root.path(), Permissions::from_mode(mode)).unwrap();
        for refused in [
            claim(&store, "b").map(drop),
            store.view(&victim).map(drop),
            store.list().map(drop),
            delete(&store, &victim, true),
        ] {
            let Err(StateError::Foreign { mode: found, .. }) = refused else {
                panic!("{mode:o}: {refused:?}");
            };
            assert_eq!(found, mode);
        }
    }
    std::fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(names(root.path()), ["a"]);
    await_stop(&store, &victim);
}

#[test]
fn second_claim_of_an_id_fails_and_leaves_the_first() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    let dir = claim(&store, "a").unwrap();
    assert!(matches!(claim(&store, "a"), Err(StateError::Exists(_))));
    drop(dir);
    assert!(matches!(claim(&store, "a"), Err(StateError::Exists(_))));
    assert_eq!(names(root.path()), ["a"]);
}

#[test]
fn claims_at_once_have_one_winner() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    let won = std::thread::scope(|scope| {
        let claims: Vec<_> = (0..8).map(|_| scope.spawn(|| claim(&store, "a").is_ok())).collect();
        claims.into_iter().map(|c| c.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(won, 1);
    assert_eq!(names(root.path()), ["a"]);
}

#[test]
fn delete_of_a_running_container_needs_force() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let mut running = record("a");
    running.status = Status::Running;
    running.supervisor = ProcessId::of(child.id()).unwrap();
    let dir = store.claim(&running, &Default::default()).unwrap();
    let id = dir.id.clone();
    let refused = delete(&store, &id, false).unwrap_err();
    assert_eq!(refused.to_string(), "cannot delete container a that is not stopped: running");
    // Here the lock is this process's, not the child's, so it must go by hand.
    let holder = std::thread::spawn(move || {
        child.wait().unwrap();
        drop(dir);
    });
    delete(&store, &id, true).unwrap();
    holder.join().unwrap();
    assert!(names(root.path()).is_empty());
}

#[test]
fn forced_delete_kills_recorded_children_and_removes_scratch() {
    let root = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    std::fs::write(scratch.path().join("x"), "x").unwrap();
    let store = Store::new(root.path());
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let mut left = record("a");
    left.children = vec![ProcessId::of(child.id()).unwrap()];
    left.scratch = Some(scratch.path().to_owned());
    let dir = store.claim(&left, &Default::default()).unwrap();
    drop(dir.create(LOG).unwrap());
    let id = dir.id.clone();
    drop(dir);
    // While it lives, its supervisor would be killed, which is this process.
    await_stop(&store, &id);
    delete(&store, &id, true).unwrap();
    assert!(child.try_wait().unwrap().is_some());
    assert!(!scratch.path().exists());
    assert!(names(root.path()).is_empty());
}

#[test]
fn delete_of_an_absent_container_succeeds_only_with_force() {
    let root = tempfile::tempdir().unwrap();
    for path in [root.path().to_owned(), root.path().join("absent")] {
        let store = Store::new(path);
        let id = "a".parse().unwrap();
        assert!(matches!(delete(&store, &id, false), Err(StateError::Absent(_))));
        delete(&store, &id, true).unwrap();
    }
}

#[test]
fn forced_delete_sweeps_what_a_killed_creation_left() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    let (id, other): (ContainerId, ContainerId) = ("a".parse().unwrap(), "b".parse().unwrap());
    let kept = super::store::unfinished_name(&other);
    for name in [&super::store::unfinished_name(&id), &kept] {
        std::fs::create_dir(root.path().join(name)).unwrap();
        std::fs::write(root.path().join(name).join("state.json.new"), "{").unwrap();
    }
    assert!(store.list().unwrap().is_empty());
    delete(&store, &id, true).unwrap();
    assert_eq!(names(root.path()), [kept]);
}

#[test]
fn socket_path_of_the_longest_id_fits_an_address() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    let dir = claim(&store, &"x".repeat(255)).unwrap();
    let path = dir.path(CONTROL_SOCKET);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
}

#[test]
fn container_whose_record_cannot_be_read_is_told_and_deleted_by_force() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    let dir = claim(&store, "a").unwrap();
    let id = dir.id.clone();
    std::fs::write(root.path().join("a/state.json"), "{").unwrap();
    assert!(matches!(delete(&store, &id, true), Err(StateError::Read { .. })), "it lives");
    drop(dir);
    let listed = store.list().unwrap();
    assert!(matches!(&listed[..], [Err(StateError::Read { .. })]), "{listed:?}");
    assert!(matches!(delete(&store, &id, false), Err(StateError::Read { .. })));
    eventually(|| delete(&store, &id, true).ok());
    assert!(names(root.path()).is_empty());
}
