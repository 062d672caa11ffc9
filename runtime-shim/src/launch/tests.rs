//! Specifications against what `docker run` with the same flags would make.

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Capability, LinuxNamespaceType, Process};
use serde_json::{Value, json};

use super::network::NetworkChoice;
use super::settings::{Settings, Volume};
use super::spec::{Accounts, Plan, SpecError};
use super::user::UserError;
use super::*;
use crate::supervisor::lead;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn image(config: &Value) -> ImageConfiguration {
    serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": []},
    }))
    .unwrap()
}

fn accounts() -> Accounts {
    Accounts {
        passwd: b"root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n".to_vec(),
        group: b"web:x:33:\nlog:x:4:web\n".to_vec(),
    }
}

fn spec(config: &Value, settings: &Settings) -> Result<Spec, SpecError> {
    let plan = Plan::new(&image(config), settings)?;
    plan.spec(&ID.parse().unwrap(), &accounts(), Path::new("/store/containers/c"))
}

fn process(config: &Value, settings: &Settings) -> Process {
    spec(config, settings).unwrap().process().clone().unwrap()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn run(command: &[&str]) -> Settings {
    Settings { command: strings(command), ..Settings::default() }
}

#[test]
fn entrypoint_and_command_are_merged_as_docker_does() {
    let both = json!({"Entrypoint": ["/entry", "-x"], "Cmd": ["a", "b"]});
    let command = json!({"Cmd": ["sh"]});
    let nulls = json!({"Entrypoint": null, "Cmd": ["sh", "-c", "true"]});
    let entrypoint = |text: &str, command: &[&str]| Settings {
        entrypoint: Some(text.to_owned()),
        ..run(command)
    };
    for (config, settings, expected) in [
        (&both, run(&[]), vec!["/entry", "-x", "a", "b"]),
        (&both, run(&["c"]), vec!["/entry", "-x", "c"]),
        (&both, entrypoint("/new", &[]), vec!["/new"]),
        (&both, entrypoint("/new", &["c"]), vec!["/new", "c"]),
        (&both, entrypoint("", &["c"]), vec!["c"]),
        (&command, run(&[]), vec!["sh"]),
        (&command, run(&["echo", ""]), vec!["echo", ""]),
        (&nulls, run(&[]), vec!["sh", "-c", "true"]),
    ] {
        let process = process(config, &settings);
        assert_eq!(process.args().as_deref(), Some(&strings(&expected)[..]), "{settings:?}");
    }
    for (config, settings) in [
        (&both, entrypoint("", &[])),
        (&json!({}), run(&[])),
        (&json!({}), run(&[""])),
        (&json!({"Cmd": [""]}), run(&[])),
    ] {
        assert!(matches!(spec(config, &settings), Err(SpecError::NoCommand)), "{settings:?}");
    }
    assert!(
        Plan::new(
            &serde_json::from_value(json!({
                "architecture": "amd64", "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": []},
            }))
            .unwrap(),
            &run(&["sh"])
        )
        .is_ok()
    );
}

#[test]
fn environment_is_dockers() {
    let config = json!({"Cmd": ["sh"], "Env": ["PATH=/image", "A=image", "B=image", "broken"]});
    let env = |settings: &Settings| process(&config, settings).env().clone().unwrap();
    let plain = run(&[]);
    assert_eq!(
        env(&plain),
        ["PATH=/image", "HOSTNAME=0123456789ab", "A=image", "B=image", "HOME=/root"]
    );
    let settings = Settings {
        env: strings(&["A=caller", "B", "HOME=/h", "TERM=vt100"]),
        hostname: Some("h".into()),
        terminal: true,
        ..plain
    };
    let expected = ["PATH=/image", "HOSTNAME=h", "TERM=vt100", "A=caller", "HOME=/h"];
    assert_eq!(env(&settings), expected);
    let bare = process(&json!({"Cmd": ["sh"]}), &Settings { terminal: true, ..run(&[]) });
    assert_eq!(
        bare.env().clone().unwrap(),
        [env::PATH, "HOSTNAME=0123456789ab", "TERM=xterm", "HOME=/root"]
    );
}

#[test]
fn user_is_the_callers_or_the_images() {
    let config = json!({"Cmd": ["sh"], "User": "web"});
    let user = |user: Option<&str>| {
        let process = process(&config, &Settings { user: user.map(str::to_owned), ..run(&[]) });
        let user = process.user();
        (user.uid(), user.gid(), user.additional_gids().clone().unwrap())
    };
    assert_eq!(user(None), (33, 33, vec![33, 4]));
    assert_eq!(user(Some("0")), (0, 0, vec![0]));
    assert_eq!(user(Some("1000:4")), (1000, 4, vec![4]));
    let unknown = Settings { user: Some("nobody".into()), ..run(&[]) };
    assert!(matches!(spec(&config, &unknown), Err(SpecError::User(UserError::NoUser(_)))));
}

#[test]
fn capabilities_are_dockers_and_effective_for_root_only() {
    let capabilities = |user: &str| {
        let settings = Settings { user: Some(user.into()), ..run(&["sh"]) };
        process(&json!({}), &settings).capabilities().clone().unwrap()
    };
    let count = |set: &Option<std::collections::HashSet<Capability>>| set.as_ref().unwrap().len();
    let root = capabilities("0");
    assert_eq!((count(root.bounding()), count(root.effective())), (14, 14));
    assert!(!root.bounding().as_ref().unwrap().contains(&Capability::SysAdmin));
    let other = capabilities("1000");
    let sets = [other.effective(), other.permitted(), other.inheritable(), other.ambient()];
    assert_eq!(count(other.bounding()), 14);
    assert!(sets.into_iter().all(|set| count(set) == 0));
}

#[test]
fn working_directory_is_absolute_and_clean() {
    let cwd = |image: &str, own: Option<&str>| {
        let settings = Settings { workdir: own.map(str::to_owned), ..run(&["sh"]) };
        spec(&json!({"WorkingDir": image}), &settings)
            .map(|spec| spec.process().as_ref().unwrap().cwd().display().to_string())
    };
    for (image, own, expected) in [
        ("", None, "/"),
        ("/srv/../etc/", None, "/etc"),
        ("srv", None, "/srv"),
        ("../../..", None, "/"),
        ("/srv", Some("/tmp/x"), "/tmp/x"),
    ] {
        assert_eq!(cwd(image, own).unwrap(), expected, "{image:?} {own:?}");
    }
    assert!(matches!(cwd("", Some("tmp")), Err(SpecError::Workdir(_))));
}

#[test]
fn resources_are_limits_of_the_cgroup() {
    let settings = Settings {
        memory: Some(512 << 20),
        cpu_quota_us: Some(150_000),
        read_only: true,
        hostname: Some("h".into()),
        ..run(&["sh"])
    };
    let spec = spec(&json!({}), &settings).unwrap();
    let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
    assert_eq!(resources.memory().unwrap().limit(), Some(512 << 20));
    let cpu = resources.cpu().clone().unwrap();
    assert_eq!((cpu.quota(), cpu.period()), (Some(150_000), Some(100_000)));
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    assert_eq!(spec.hostname().as_deref(), Some("h"));
}

fn binds(spec: &Spec) -> Vec<(String, String, bool)> {
    let mounts = spec.mounts().as_ref().unwrap().iter();
    mounts
        .filter(|mount| mount.typ().as_deref() == Some("bind"))
        .filter(|mount| !is_own_file(mount))
        .map(|mount| {
            let source = mount.source().as_ref().unwrap().display().to_string();
            let read_only = mount.options().iter().flatten().any(|option| option == "ro");
            (source, mount.destination().display().to_string(), read_only)
        })
        .collect()
}

/// Whether it is one of the files that every container has.
fn is_own_file(mount: &oci_spec::runtime::Mount) -> bool {
    mount.source().as_ref().is_some_and(|path| path.starts_with("/store/containers/c/etc"))
}

#[test]
fn files_of_the_network_are_mounted_where_the_caller_mounts_nothing() {
    let volumes = vec![volume(Some("/own"), "/etc/hosts", true)];
    let settings = Settings { volumes, ..run(&["sh"]) };
    let spec = spec(&json!({}), &settings).unwrap();
    let mounts = spec.mounts().as_ref().unwrap().iter().filter(|mount| is_own_file(mount));
    let places: Vec<_> = mounts.map(|mount| mount.destination().display().to_string()).collect();
    assert_eq!(places, ["/etc/hostname", "/etc/resolv.conf"]);
    assert_eq!(binds(&spec), [("/own".to_owned(), "/etc/hosts".to_owned(), true)]);
}

#[test]
fn network_namespace_of_the_caller_is_named_in_the_specification() {
    let path = |network| {
        let spec = spec(&json!({}), &Settings { network, ..run(&["sh"]) }).unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        let network = namespaces.iter().find(|n| n.typ() == LinuxNamespaceType::Network).unwrap();
        network.path().clone()
    };
    assert_eq!(path(NetworkChoice::Path("/run/netns/x".into())), Some("/run/netns/x".into()));
    assert_eq!(path(NetworkChoice::Default), None);
    assert_eq!(path(NetworkChoice::None), None);
}

fn volume(source: Option<&str>, destination: &str, read_only: bool) -> Volume {
    Volume { source: source.map(PathBuf::from), destination: destination.into(), read_only }
}

#[test]
fn volumes_are_bind_mounts_parents_first() {
    let config = json!({"Volumes": {"/data": {}, "/a/b": {}}});
    let volumes = vec![volume(Some("/x"), "/a/b/c", true), volume(Some("/y"), "/a/b", false)];
    let settings = Settings { volumes, ..run(&["sh"]) };
    let plan = Plan::new(&image(&config), &settings).unwrap();
    assert_eq!(plan.directories(), ["/", "/data"]);
    let expected = |source: &str, destination: &str, read_only| {
        (source.to_owned(), destination.to_owned(), read_only)
    };
    assert_eq!(
        binds(&spec(&config, &settings).unwrap()),
        [expected("/y", "/a/b", false), expected("/x", "/a/b/c", true)]
    );
    // With a read-only root a volume without a source is a directory of its own.
    let settings = Settings { read_only: true, volumes: vec![], ..settings };
    let found = binds(&spec(&json!({"Volumes": {"/data": {}}}), &settings).unwrap());
    assert_eq!(found, [expected("/store/containers/c/volumes/0", "/data", false)]);
}

#[test]
fn volumes_that_meet_or_lead_nowhere_are_refused() {
    let volumes = vec![volume(Some("/x"), "/a", true), volume(None, "/a", false)];
    let settings = Settings { volumes, ..run(&["sh"]) };
    assert!(matches!(spec(&json!({}), &settings), Err(SpecError::Twice(_))));
    for path in ["relative", "/", "/..", ""] {
        let result = spec(&json!({"Volumes": {path: {}}}), &run(&["sh"]));
        assert!(matches!(result, Err(SpecError::ImageVolume(_))), "{path}");
    }
}

#[test]
fn image_cannot_annotate_its_container() {
    let config = json!({
        "Labels": {"io.bulkhead.vcpus": "32", "org.example": "x"},
        "StopSignal": "SIGQUIT",
        "ExposedPorts": {"80/tcp": {}},
    });
    let settings = Settings { labels: strings(&["mine=1"]), ..run(&["sh"]) };
    let annotations = spec(&config, &settings).unwrap().annotations().clone().unwrap();
    let mut annotations: Vec<_> = annotations.into_iter().collect();
    annotations.sort();
    let expected = [("mine", "1"), ("org.opencontainers.image.stopSignal", "SIGQUIT")];
    assert_eq!(annotations, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
}

#[test]
fn specification_passes_the_planner() {
    let settings = Settings { memory: Some(64 << 20), read_only: true, ..run(&["true"]) };
    let spec = spec(&json!({"Volumes": {"/data": {}}}), &settings).unwrap();
    let json = serde_json::to_string(&spec).unwrap();
    assert!(json.len() < bulkhead_protocol::limits::SPEC_MAX);
    let id = ID.parse().unwrap();
    crate::plan::plan(&id, Path::new("/"), spec, &crate::plan::Policy::default()).unwrap();
}

#[test]
fn random_ids_are_64_digits_and_differ() {
    let (one, other) = (random_id().unwrap(), random_id().unwrap());
    assert_eq!(one.as_str().len(), 64);
    assert_ne!(one, other);
}

fn request(image: &str, store: &Path) -> LaunchRequest {
    LaunchRequest {
        image: image.to_owned(),
        settings: run(&["true"]),
        id: None,
        detach: false,
        interactive: false,
        remove: true,
        store: store.to_owned(),
        root_mode: Some(RootMode::Share),
        unpack_max: 1 << 20,
        state_root: store.join("state"),
        systemd_cgroup: false,
        debug: false,
    }
}

/// Why `request` is not launched.
fn refusal(request: LaunchRequest) -> Failure {
    lead(|leader| launch(request, leader)).unwrap_err()
}

#[test]
fn own_errors_have_dockers_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let failure = refusal(request("no-such-image", dir.path()));
    assert_eq!(failure.code, 125);
    assert!(failure.to_string().contains("no-such-image"), "{failure}");
    let terminal = LaunchRequest { detach: true, ..request("x", dir.path()) };
    let settings = Settings { terminal: true, ..Settings::default() };
    let failure = refusal(LaunchRequest { settings, ..terminal });
    assert_eq!(failure.code, 125);
}
