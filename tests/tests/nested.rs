//! Containers inside the container: Podman with overlay storage, a bridge and nftables, in the
//! guest, for a container that asks for the rights.

use std::fs;

use bulkhead_tests::bundle::busybox_root;
use bulkhead_tests::disk::Mounted;
use bulkhead_tests::{Bundle, Created, Leftovers, unique_id};
use serde_json::json;
use tempfile::TempDir;

/// What `docker run --privileged` and `podman run --privileged` give, as far as Podman needs it.
const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
];

/// First process: divides the cgroup, as the first process of docker:dind does, and stays.
const INIT: &str = "set -e; cd /sys/fs/cgroup; mkdir init; echo 0 > init/cgroup.procs; \
     for name in $(cat cgroup.controllers); do echo +$name > cgroup.subtree_control; done; \
     mkdir -p /etc/containers/networks; echo ready; exec sleep 100000";

/// Podman's configuration, with the runtime and the plugins that Debian has.
const CONFIGURATION: &str = "[network]\nnetwork_backend = \"cni\"\n\
     cni_plugin_dirs = [\"/usr/lib/cni\"]\nnetwork_config_dir = \"/etc/containers/networks\"\n\
     [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";

/// A container that shows this machine's files, in which Podman is installed, and discards what
/// is changed.
struct Machine {
    /// Unmounted before the directory that it is in is removed with all in it.
    _root: Mounted,
    container: Created,
    _layer: Mounted,
    _scratch: TempDir,
}

impl Machine {
    fn start() -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let layer = Mounted::new(&["-t", "tmpfs", "upper"], scratch.path());
        let path = |name: &str| scratch.path().join(name);
        for name in ["upper", "work", "upper/etc", "upper/etc/containers", "upper/srv"] {
            fs::create_dir(path(name)).expect("a directory");
        }
        fs::write(path("upper/etc/containers/containers.conf"), CONFIGURATION).expect("a file");
        busybox_root(&path("upper/srv/root"));
        let bundle = privileged();
        let options = format!(
            "lowerdir=/,upperdir={},workdir={}",
            path("upper").display(),
            path("work").display()
        );
        let root = Mounted::new(&["-t", "overlay", "-o", &options, "root"], &bundle.root(""));
        let container = Created::new(unique_id("nested"), bundle);
        container.start();
        container.prints("ready");
        Self { _root: root, container, _layer: layer, _scratch: scratch }
    }

    /// What `script` prints, which succeeds.
    #[track_caller]
    fn shell(&self, script: &str) -> String {
        let outcome = self.container.command(&["exec"], &["/bin/bash", "-ec", script]);
        outcome.expect(0).text()
    }
}

fn privileged() -> Bundle {
    let mut bundle = Bundle::new(&["/bin/bash", "-c", INIT]);
    bundle.edit(|config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(CAPABILITIES);
        }
        config["process"]["noNewPrivileges"] = json!(false);
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
        config["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
        config["annotations"] = json!({"io.bulkhead.memory-mib": "512"});
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        for mount in mounts.iter_mut() {
            if ["cgroup", "sysfs"].contains(&mount["type"].as_str().expect("a type")) {
                mount["options"] = json!(["rw", "nosuid", "noexec", "nodev"]);
            }
        }
        // Overlays want attributes of their upper layer that a share does not keep for guests.
        for place in ["/run", "/tmp", "/var/tmp", "/var/lib/containers"] {
            mounts.push(json!({"destination": place, "type": "tmpfs", "source": "tmpfs"}));
        }
    });
    bundle
}

#[test]
fn podman_runs_with_overlay_limits_and_published_port() {
    let before = Leftovers::now();
    let machine = Machine::start();
    machine.shell("tar -C /srv/root -c . | podman --storage-driver overlay import - busybox");
    machine.shell(
        "podman --storage-driver overlay run --detach --name web --memory 48m --publish 8080:80 \
         busybox /bin/sh -c 'cd /mnt; cat /sys/fs/cgroup/memory.max > page; \
         mount | grep \"^overlay on / \" >> page; exec httpd -f -p 80'",
    );
    let page =
        machine.shell("until busybox wget -q -O - http://127.0.0.1:8080/page; do sleep 0.2; done");
    assert!(page.starts_with("50331648\noverlay on / type overlay"), "{page}");
    // The port is a rule of the guest, not of this machine.
    let rules = machine.shell("nft list ruleset");
    assert!(rules.contains("dnat") && rules.contains("masquerade"), "{rules}");
    machine.shell("podman --storage-driver overlay rm --force --time 0 web");
    machine.container.command(&["kill"], &["KILL"]).expect(0);
    assert_eq!(machine.container.wait(), 128 + 9);
    machine.container.delete().expect(0);
    drop(machine);
    before.assert_none();
}
