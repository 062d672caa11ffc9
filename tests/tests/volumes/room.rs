//! Bundles and containers of this suite.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_tests::{Bundle, Created, Outcome, bulkhead, run, unique_id};
use serde_json::{Value, json};

/// How long anything may take that is waited for.
pub const LIMIT: Duration = Duration::from_secs(600);
/// Between two looks.
const STEP: Duration = Duration::from_millis(100);

/// All that root of a machine has.
const CAPABILITIES: [&str; 18] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
];

/// Adds a mount to the bundle.
pub fn mount(bundle: &mut Bundle, mount: Value) {
    bundle.edit(|config| config["mounts"].as_array_mut().expect("mounts").push(mount));
}

/// Binds `source` of the host.
pub fn bind(bundle: &mut Bundle, source: &Path, destination: &str, options: &[&str]) {
    mount(
        bundle,
        json!({
            "destination": destination, "type": "bind", "source": source, "options": options,
        }),
    );
}

/// Gives the container root's capabilities, device nodes and many open files.
pub fn privileged(bundle: &mut Bundle) {
    bundle.edit(|config| {
        let process = &mut config["process"];
        for set in ["bounding", "effective", "permitted"] {
            process["capabilities"][set] = json!(CAPABILITIES);
        }
        process["noNewPrivileges"] = json!(false);
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 20_000, "soft": 1024}]);
        config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    });
}

/// Puts a program of this checkout or of the cache into the root.
pub fn add_program(bundle: &Bundle, program: &Path, name: &str) {
    let path = bundle.root(name);
    fs::copy(program, &path).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
}

/// A bundle that sleeps, with root's privileges and with the host's own `/usr`, so that any
/// program of the host runs in it.
pub fn with_usr() -> Bundle {
    let mut bundle = Bundle::new(&["/bin/sleep", "100000"]);
    for name in ["lib", "lib64"] {
        symlink(format!("usr/{name}"), bundle.root(name)).expect("a link");
    }
    for name in ["passwd", "group"] {
        fs::copy(format!("/etc/{name}"), bundle.root(&format!("etc/{name}"))).expect("a copy");
    }
    bind(&mut bundle, Path::new("/usr"), "/usr", &["rbind", "ro"]);
    privileged(&mut bundle);
    bundle.edit(|config| config["process"]["env"] = json!(["PATH=/usr/bin:/bin", "NO_COLOR=1"]));
    bundle
}

/// The program `file-probe` of this package.
pub fn probe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_file-probe"))
}

/// Creates and starts a container of the bundle.
pub fn start(bundle: Bundle) -> Created {
    let container = Created::new(unique_id("volume"), bundle);
    container.start();
    container
}

/// Runs a shell script in the container.
pub fn shell(container: &Created, script: &str) -> Outcome {
    container.command(&["exec"], &["/bin/sh", "-c", script])
}

/// `bulkhead run` of the bundle.
pub fn run_bundle(bundle: &Bundle) -> Outcome {
    run(bulkhead().args(["run", "--bundle"]).arg(bundle.path()).arg(unique_id("volume")))
}

/// Waits until `found` finds something; fails with what it said last.
#[track_caller]
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match found() {
            Ok(value) => return value,
            Err(said) => assert!(begun.elapsed() < LIMIT, "{what}: after {LIMIT:?}: {said}"),
        }
        std::thread::sleep(STEP);
    }
}
