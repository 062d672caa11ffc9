//! System containers: the first process is a distribution's init, which boots to its multi-user
//! state, runs services in a cgroup tree of its own, and shuts down when it is told to.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use bulkhead_tests::process::read_until;
use bulkhead_tests::{Bundle, Created, Leftovers, is_full, run, unique_id, wait_until};
use serde_json::{Value, json};

/// SIGRTMIN+3, at which systemd halts (systemd(1)).
const HALT: &str = "37";

fn add(list: &mut Value, entry: Value) {
    list.as_array_mut().expect("a list").push(entry);
}

/// A container as Podman makes it for an image whose program is an init (podman-run(1),
/// `--systemd`): its cgroup can be written, and what an init writes at boot lies in memory.
fn system_bundle(args: &[&str]) -> Bundle {
    let mut bundle = Bundle::new(args);
    bundle.edit(|config| {
        add(&mut config["process"]["env"], json!("container=oci"));
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        for mount in mounts.iter_mut().filter(|mount| mount["type"] == "cgroup") {
            mount["options"] = json!(["rw", "nosuid", "noexec", "nodev", "relatime"]);
        }
        for place in ["/run", "/run/lock", "/tmp", "/var/log/journal"] {
            let options = json!(["rw", "nosuid", "nodev"]);
            mounts.push(json!({
                "destination": place, "type": "tmpfs", "source": "tmpfs", "options": options
            }));
        }
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!([
                "CAP_CHOWN",
                "CAP_DAC_OVERRIDE",
                "CAP_FOWNER",
                "CAP_FSETID",
                "CAP_KILL",
                "CAP_NET_BIND_SERVICE",
                "CAP_SETFCAP",
                "CAP_SETGID",
                "CAP_SETPCAP",
                "CAP_SETUID",
                "CAP_SYS_CHROOT",
            ]);
        }
        config["process"]["noNewPrivileges"] = json!(false);
    });
    bundle
}

/// A bundle of the Debian whose archive `variable` names, with `init` as its program.
fn debian(variable: &str, init: &str) -> Bundle {
    let bundle = system_bundle(&[init]);
    let root = bundle.root("");
    fs::remove_dir_all(&root).expect("the root of busybox");
    fs::create_dir(&root).expect("a root");
    let archive = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set"));
    run(Command::new("tar").arg("-C").arg(&root).arg("-xf").arg(archive)).expect(0);
    bundle
}

/// Lets the init end itself by reboot(2), which in a container ends that.
fn allow_reboot(bundle: &mut Bundle) {
    bundle.edit(|config| {
        for set in ["bounding", "effective", "permitted"] {
            add(&mut config["process"]["capabilities"][set], json!("CAP_SYS_BOOT"));
        }
    });
}

/// Has systemd start `commands`' service once it has reached its multi-user state.
fn add_service(bundle: &Bundle, commands: &str) {
    let service = format!(
        "[Unit]\nAfter=multi-user.target\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\n{commands}\
         [Install]\nWantedBy=multi-user.target\n"
    );
    let units = bundle.root("etc/systemd/system");
    fs::write(units.join("probe.service"), service).expect("a unit");
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted).expect("a directory of links");
    std::os::unix::fs::symlink("../probe.service", wanted.join("probe.service")).expect("a link");
}

fn script(file: &Path, text: &str) {
    fs::write(file, text).expect("a script");
    fs::set_permissions(file, Permissions::from_mode(0o755)).expect("its mode");
}

fn written(file: &Path) -> String {
    read_until(file, |text| text.ends_with('\n'))
}

#[test]
fn systemd_boots_runs_services_and_halts() {
    let before = Leftovers::now();
    let bundle = debian("BULKHEAD_SYSTEM_ROOT", "/sbin/init");
    add_service(
        &bundle,
        "ExecStart=/bin/sh -c 'cat /proc/self/cgroup > /served'\n\
         ExecStop=/bin/sh -c 'echo in order > /stopped'\n",
    );
    let container = Created::new(unique_id("system"), bundle);
    container.start();
    let exec = |args: &[&str]| container.command(&["exec"], args);
    assert_eq!(written(&container.bundle.root("served")), "0::/system.slice/probe.service\n");

    let state = exec(&["systemctl", "is-system-running", "--wait"]);
    let failed = exec(&["systemctl", "list-units", "--failed", "--no-pager"]);
    assert_eq!(state.text(), "running", "{}{}", state.stderr, failed.text());
    // What is added goes where the init is: the kernel lets nothing into a divided cgroup.
    assert_eq!(exec(&["cat", "/proc/self/cgroup"]).expect(0).text(), "0::/init.scope");
    exec(&["mkdir", "/sys/fs/cgroup/probe"]).expect(0);
    let in_part =
        |part| container.command(&["exec", "--cgroup", part], &["cat", "/proc/self/cgroup"]);
    assert_eq!(in_part("/probe").expect(0).text(), "0::/probe");
    assert!(in_part("nowhere").expect(255).stderr.contains("no such part of its cgroup"));
    // A limit of a unit is one of its cgroup.
    let limited = exec(&[
        "systemd-run",
        "--quiet",
        "--pipe",
        "--wait",
        "--property=MemoryMax=64M",
        "sh",
        "-c",
        "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max",
    ]);
    assert_eq!(limited.expect(0).text(), (64 << 20).to_string());
    let processes = container.command(&["ps"], &[]).expect(0).text();
    assert!(processes.lines().count() > 4, "init, journal, bus, logins: {processes}");

    container.command(&["kill"], &[HALT]).expect(0);
    assert_eq!(container.wait(), 0);
    assert_eq!(written(&container.bundle.root("stopped")), "in order\n");
    container.delete().expect(0);
    before.assert_none();
}

/// OpenRC's own init, in an image that says to OpenRC what it is, as those of distributions do.
#[test]
fn openrc_boots_runs_services_and_halts() {
    if !is_full() {
        println!("skipped: --full is not given");
        return;
    }
    let before = Leftovers::now();
    let mut bundle = debian("BULKHEAD_OPENRC_ROOT", "/sbin/openrc-init");
    allow_reboot(&mut bundle);
    let settings = "rc_sys=docker\nrc_cgroup_mode=unified\n";
    fs::write(bundle.root("etc/rc.conf"), settings).expect("rc.conf");
    let service = "#!/sbin/openrc-run\n\
                   supervisor=supervise-daemon\n\
                   command=/bin/sh\n\
                   command_args=/etc/probe\n\
                   stop_post() { echo in order >/stopped; }\n";
    script(&bundle.root("etc/init.d/probe"), service);
    let program = "echo $$ >/probe.pid; cat /proc/self/cgroup >>/served; exec sleep 100000\n";
    fs::write(bundle.root("etc/probe"), program).expect("a program");
    let link = bundle.root("etc/runlevels/default/probe");
    std::os::unix::fs::symlink("/etc/init.d/probe", link).expect("a link");
    let container = Created::new(unique_id("system"), bundle);
    container.start();
    let exec = |args: &[&str]| container.command(&["exec"], args);
    let served = container.bundle.root("served");
    assert_eq!(written(&served), "0::/probe\n");
    wait_until("the default runlevel", || {
        exec(&["rc-status", "--runlevel"]).text() == "default"
            && exec(&["rc-service", "probe", "status"]).text().contains("started")
    });
    let failed = exec(&["rc-status", "--crashed"]);
    assert_eq!(failed.text(), "", "{}", failed.stderr);
    // What ends is started again.
    exec(&["sh", "-c", "kill $(cat /probe.pid)"]).expect(0);
    read_until(&served, |text| text.lines().count() == 2);

    container.command(&["kill"], &["TERM"]).expect(0);
    // SIGINT is how the kernel tells that a pid namespace has halted (reboot(2)).
    assert_eq!(container.wait(), 128 + 2);
    assert_eq!(written(&container.bundle.root("stopped")), "in order\n");
    container.delete().expect(0);
    before.assert_none();
}

#[test]
fn busybox_init_runs_services_and_reboots() {
    let before = Leftovers::now();
    let mut bundle = system_bundle(&["/bin/init"]);
    allow_reboot(&mut bundle);
    let table = "::sysinit:/bin/echo set up\n\
                 ::respawn:/bin/sh -c 'echo served; exec sleep 100000'\n\
                 ::shutdown:/bin/echo in order\n";
    fs::write(bundle.root("etc/inittab"), table).expect("inittab");
    let container = Created::new(unique_id("system"), bundle);
    container.start();
    assert_eq!(container.prints("served"), "set up\nserved\n");
    // What ends is started again.
    container.command(&["exec"], &["killall", "sleep"]).expect(0);
    container.prints("served\nserved");
    container.command(&["kill"], &["TERM"]).expect(0);
    // SIGHUP is how the kernel tells that a pid namespace has rebooted (reboot(2)).
    assert_eq!(container.wait(), 128 + 1);
    container.prints("in order");
    container.delete().expect(0);
    before.assert_none();
}
