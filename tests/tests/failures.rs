//! Everything that can go wrong at a start: one line that names phase, cause and fix, the right
//! exit code, in seconds, and nothing left behind.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bulkhead_tests::terminal::Screen;
use bulkhead_tests::{Bundle, Created, Leftovers, Outcome, bulkhead, run, unique_id, wait_until};
use serde_json::json;
use tempfile::TempDir;

fn run_bundle(command: &mut Command, bundle: &Path) -> Outcome {
    run(command.args(["run", "--bundle"]).arg(bundle).arg(unique_id("fail")))
}

/// One line, of the form `bulkhead: PHASE: CAUSE`, with all of `words`.
#[track_caller]
fn assert_explains(outcome: &Outcome, words: &[&str]) {
    let lines: Vec<_> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "not one line: {}", outcome.stderr);
    assert!(lines[0].starts_with("bulkhead: "), "{}", outcome.stderr);
    for word in words {
        assert!(lines[0].contains(word), "{word:?} is missing: {}", outcome.stderr);
    }
}

#[track_caller]
fn fails(command: &mut Command, bundle: &Path, code: i32, words: &[&str]) {
    let before = Leftovers::now();
    let outcome = run_bundle(command, bundle).expect(code);
    assert_explains(&outcome, words);
    before.assert_none();
}

#[test]
fn missing_bundle() {
    fails(&mut bulkhead(), Path::new("/nonexistent"), 1, &["/nonexistent", "config.json"]);
}

#[test]
fn malformed_configuration() {
    let bundle = Bundle::new(&["/bin/true"]);
    fs::write(bundle.path().join("config.json"), "{\"ociVersion\": ").expect("writing");
    fails(&mut bulkhead(), bundle.path(), 1, &["config.json"]);
}

#[test]
fn huge_configuration() {
    let bundle = Bundle::new(&["/bin/true"]);
    fs::write(bundle.path().join("config.json"), vec![b' '; 100 << 20]).expect("writing");
    fails(&mut bulkhead(), bundle.path(), 1, &["config.json", "at most"]);
}

#[test]
fn missing_root() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.edit(|config| config["root"]["path"] = json!("nowhere"));
    fails(&mut bulkhead(), bundle.path(), 1, &["root", "nowhere"]);
}

#[test]
fn unknown_annotation_and_impossible_fields() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.edit(|config| config["annotations"] = json!({"io.bulkhead.no-such-thing": "1"}));
    fails(&mut bulkhead(), bundle.path(), 1, &["io.bulkhead.no-such-thing"]);

    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.edit(|config| config["annotations"] = json!({"io.bulkhead.vcpus": "many"}));
    fails(&mut bulkhead(), bundle.path(), 1, &["io.bulkhead.vcpus"]);

    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.edit(|config| config["process"]["args"] = json!([]));
    fails(&mut bulkhead(), bundle.path(), 1, &["args"]);

    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.edit(|config| config["process"]["cwd"] = json!("not/absolute"));
    fails(&mut bulkhead(), bundle.path(), 1, &["cwd"]);
}

#[test]
fn invalid_id() {
    let before = Leftovers::now();
    let bundle = Bundle::new(&["/bin/true"]);
    for id in ["..", ".", "../up", "a/b", "/a", "a b", ""] {
        let outcome = run(bulkhead().args(["run", "--bundle"]).arg(bundle.path()).arg(id));
        assert_explains(&outcome.expect(1), &["container", "id"]);
        let outcome = run(bulkhead().args(["delete", "--force", id]));
        assert_explains(&outcome.expect(1), &["container", "id"]);
    }
    before.assert_none();
}

#[test]
fn state_directory_that_others_can_write() {
    let root = tempfile::tempdir().expect("a directory");
    fs::set_permissions(root.path(), Permissions::from_mode(0o777)).expect("a mode");
    let bundle = Bundle::new(&["/bin/true"]);
    let mut command = bulkhead();
    command.arg("--root").arg(root.path());
    fails(&mut command, bundle.path(), 1, &["state directory", "mode 777", "chmod go-w"]);
    let outcome = run(bulkhead().arg("--root").arg(root.path()).args(["delete", "--force", "x"]));
    assert_explains(&outcome.expect(1), &["state directory", "mode 777"]);
    // Made by somebody else, who can change its mode at any time.
    fs::set_permissions(root.path(), Permissions::from_mode(0o755)).expect("a mode");
    chown(root.path(), Some(1000), None).expect("an owner");
    let mut command = bulkhead();
    command.arg("--root").arg(root.path());
    fails(&mut command, bundle.path(), 1, &["state directory", "belongs to user 1000"]);
}

#[test]
fn console_socket_that_has_gone() {
    let before = Leftovers::now();
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.edit(|config| config["process"]["terminal"] = json!(true));
    let socket = bundle.path().join("console");
    // The file stays, as after a caller that was killed.
    drop(UnixListener::bind(&socket).expect("a socket"));
    let mut create = bulkhead();
    create.args(["create", "--bundle"]).arg(bundle.path()).arg("--console-socket").arg(&socket);
    let outcome = run(create.arg(unique_id("fail")));
    assert_explains(&outcome.expect(1), &["console socket", "Connection refused"]);
    before.assert_none();
}

#[test]
fn console_that_goes_away_hangs_up() {
    let before = Leftovers::now();
    let script = "trap 'echo hangup >/told; exit 7' HUP; echo ready; while :; do sleep 0.1; done";
    let mut bundle = Bundle::script(script);
    bundle.edit(|config| config["process"]["terminal"] = json!(true));
    let socket = bundle.path().join("console");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let id = unique_id("console");
    let mut create = bulkhead();
    create.args(["create", "--bundle"]).arg(bundle.path()).arg("--console-socket").arg(&socket);
    // The supervisor keeps what it inherits.
    create.arg(&id).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut creating = create.spawn().expect("bulkhead starts");
    let mut screen = Screen::received(&listener);
    assert!(creating.wait().expect("waiting").success());
    run(bulkhead().args(["start", &id])).expect(0);
    screen.wait_for("ready");
    drop(screen);
    wait_until("the end of the container", || {
        run(bulkhead().args(["state", &id])).expect(0).text().contains("\"stopped\"")
    });
    assert_eq!(fs::read_to_string(bundle.root("told")).expect("the trap's"), "hangup\n");
    run(bulkhead().args(["delete", &id])).expect(0);
    before.assert_none();
}

#[test]
fn two_creates_of_one_id_at_once() {
    let before = Leftovers::now();
    let bundle = Bundle::new(&["/bin/true"]);
    let id = unique_id("twice");
    let spawned = [(); 2].map(|()| {
        let mut create = bulkhead();
        create.args(["create", "--bundle"]).arg(bundle.path()).arg(&id).stdin(Stdio::null());
        // The supervisor of the one that succeeds keeps what it inherits.
        let errors = tempfile::NamedTempFile::new().expect("a file");
        create.stdout(Stdio::null()).stderr(errors.reopen().expect("the file"));
        (create.spawn().expect("bulkhead starts"), errors)
    });
    let mut outcomes = spawned.map(|(mut child, errors)| {
        let code = child.wait().expect("waiting").code();
        (code, fs::read_to_string(errors.path()).expect("the file"))
    });
    outcomes.sort();
    let [(won, _), (lost, said)] = &outcomes;
    assert_eq!((*won, *lost), (Some(0), Some(1)), "{outcomes:?}");
    assert!(said.contains("container with given ID already exists"), "{said}");
    run(bulkhead().args(["start", &id])).expect(0);
    run(bulkhead().args(["delete", "--force", &id])).expect(0);
    before.assert_none();
}

#[test]
fn bundle_that_is_replaced_between_create_and_start() {
    let before = Leftovers::now();
    let bundle = Bundle::new(&["/bin/cat", "/word"]);
    fs::write(bundle.root("word"), "as created\n").expect("a file");
    let other = Bundle::new(&["/bin/true"]);
    let (place, moved) = (bundle.root(""), bundle.path().join("moved"));
    let container = Created::new(unique_id("replaced"), bundle);
    fs::rename(&place, moved).expect("moving the root");
    fs::rename(other.root(""), &place).expect("another root in its place");
    fs::write(place.join("word"), "as replaced\n").expect("a file");
    fs::write(container.bundle.path().join("config.json"), "{}").expect("another configuration");
    container.start();
    assert_eq!(container.wait(), 0);
    assert_eq!(container.prints("\n"), "as created\n");
    container.delete().expect(0);
    before.assert_none();
}

#[test]
fn missing_program_is_127_and_unrunnable_126() {
    fails(
        &mut bulkhead(),
        Bundle::new(&["no-such-program"]).path(),
        127,
        &["no-such-program", "executable file not found in $PATH"],
    );
    fails(
        &mut bulkhead(),
        Bundle::new(&["/etc/passwd"]).path(),
        126,
        &["/etc/passwd", "permission denied"],
    );
}

/// Runs the words in a mount namespace in which a shell command has been carried out first.
fn with_mounts(prepare: &str) -> Command {
    let mut command = Command::new("unshare");
    let program = bulkhead().get_program().to_owned();
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("{prepare} && exec \"$0\" \"$@\"")).arg(program);
    command
}

#[test]
fn no_kvm() {
    let bundle = Bundle::new(&["/bin/true"]);
    let hide = "mkdir -p /tmp/dev && mount -t tmpfs none /tmp/dev && mknod /tmp/dev/null c 1 3 \
                && mount --move /tmp/dev /dev";
    fails(&mut with_mounts(hide), bundle.path(), 1, &["/dev/kvm", "("]);
    let other = "mount --bind /dev/null /dev/kvm";
    fails(&mut with_mounts(other), bundle.path(), 1, &["/dev/kvm"]);
}

#[test]
fn no_permission() {
    let bundle = Bundle::new(&["/bin/true"]);
    let program = bulkhead().get_program().to_owned();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"]).arg(program);
    let outcome = run_bundle(&mut command, bundle.path()).expect(1);
    assert_explains(&outcome, &["("]);
}

#[test]
fn no_kernel_and_bad_kernel() {
    let bundle = Bundle::new(&["/bin/true"]);
    let guest = Guest::new();
    fs::remove_file(guest.file("vmlinux")).expect("removing");
    fails(&mut guest.bulkhead(), bundle.path(), 1, &["vmlinux"]);
    fs::write(guest.file("vmlinux"), "not a kernel").expect("writing");
    fails(&mut guest.bulkhead(), bundle.path(), 1, &["kernel"]);
}

#[test]
fn more_memory_than_there_is() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.edit(|config| config["annotations"] = json!({"io.bulkhead.memory-mib": "99999999"}));
    fails(&mut bulkhead(), bundle.path(), 1, &["memory"]);
}

#[test]
fn full_state_directory() {
    let bundle = Bundle::new(&["/bin/true"]);
    let full = "mkdir -p /tmp/full && mount -t tmpfs -o size=4k,nr_inodes=3 none /tmp/full";
    let mut command = with_mounts(full);
    command.args(["--root", "/tmp/full"]);
    let outcome = run_bundle(&mut command, bundle.path()).expect(1);
    assert_explains(&outcome, &["/tmp/full"]);
}

#[test]
fn full_disk_is_an_error_in_the_container_and_not_its_end() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut bundle = Bundle::script(
        "dd if=/dev/zero of=/small/file bs=1k count=200 2>&1 | grep -c 'No space left'; echo on",
    );
    let source = directory.path().to_str().expect("UTF-8").to_owned();
    bundle.edit(|config| {
        config["mounts"].as_array_mut().expect("mounts").push(json!({
            "destination": "/small", "type": "bind", "source": source, "options": ["rbind", "rw"]
        }));
    });
    let mount = format!("mount -t tmpfs -o size=64k none {}", directory.path().display());
    let outcome = run_bundle(&mut with_mounts(&mount), bundle.path()).expect(0);
    assert_eq!(outcome.text(), "1\non");
}

/// A guest directory whose initrd the test chooses.
struct Guest {
    directory: TempDir,
}

impl Guest {
    /// The real kernel and agent, as links that a test may replace.
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temp dir");
        let source = std::env::var_os("BULKHEAD_GUEST_DIR").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest")),
            PathBuf::from,
        );
        for name in ["vmlinux", "initrd.img"] {
            std::os::unix::fs::symlink(source.join(name), directory.path().join(name))
                .expect("link");
        }
        Self { directory }
    }

    /// The real kernel with the rogue agent in `mode`.
    fn rogue(mode: &str) -> Self {
        let guest = Self::new();
        let tree = tempfile::tempdir().expect("temp dir");
        let program = env!("CARGO_BIN_EXE_rogue-agent");
        fs::copy(program, tree.path().join("init")).expect("copy");
        fs::write(tree.path().join("mode"), mode).expect("mode");
        let script = format!(
            "cd {tree} && ldd {program} | grep -o '/[^ ]*' | while read lib; do \
             mkdir -p .$(dirname $lib) && cp $lib .$lib; done && \
             mkdir dev && mknod dev/null c 1 3 && \
             find . | cpio --quiet -o -H newc",
            tree = tree.path().display()
        );
        let made = run(Command::new("sh").args(["-c", &script])).expect(0);
        fs::remove_file(guest.file("initrd.img")).expect("removing");
        fs::write(guest.file("initrd.img"), made.stdout).expect("writing");
        guest
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn bulkhead(&self) -> Command {
        let mut command = bulkhead();
        command.env("BULKHEAD_GUEST_DIR", self.directory.path());
        command
    }
}

#[test]
fn kernel_without_init_panics_and_says_so() {
    let bundle = Bundle::new(&["/bin/true"]);
    let guest = Guest::new();
    fs::remove_file(guest.file("initrd.img")).expect("removing");
    fs::write(guest.file("initrd.img"), [0; 512]).expect("writing");
    fails(&mut guest.bulkhead(), bundle.path(), 1, &["panicked"]);
    let mut command = guest.bulkhead();
    let outcome = run_bundle(command.arg("--debug"), bundle.path()).expect(1);
    assert!(outcome.stderr.contains("Kernel panic"), "no console: {}", outcome.stderr);
}

#[test]
fn agent_that_ends_is_noticed_at_once() {
    let bundle = Bundle::new(&["/bin/true"]);
    let slow = |guest: &Guest| {
        let mut command = guest.bulkhead();
        command.env("BULKHEAD_BOOT_TIMEOUT_S", "3600");
        command
    };
    fails(&mut slow(&Guest::rogue("exit")), bundle.path(), 1, &["panicked"]);
    fails(&mut slow(&Guest::rogue("reboot")), bundle.path(), 1, &["agent", "powered off"]);
    fails(&mut slow(&Guest::rogue("hang-up")), bundle.path(), 1, &["agent"]);
    fails(&mut slow(&Guest::rogue("wrong-version")), bundle.path(), 1, &["agent", "version"]);
    fails(&mut slow(&Guest::rogue("garbage")), bundle.path(), 1, &["agent"]);
    fails(&mut slow(&Guest::rogue("die-later")), bundle.path(), 1, &["agent"]);
}

#[test]
fn silent_guest_meets_the_limit() {
    let bundle = Bundle::new(&["/bin/true"]);
    for mode in ["silent", "busy"] {
        let guest = Guest::rogue(mode);
        let mut command = guest.bulkhead();
        command.env("BULKHEAD_BOOT_TIMEOUT_S", "12");
        fails(&mut command, bundle.path(), 1, &["agent", "12 s", "BULKHEAD_BOOT_TIMEOUT_S"]);
    }
}

#[test]
fn mute_agent_meets_the_limit() {
    let bundle = Bundle::new(&["/bin/true"]);
    let guest = Guest::rogue("mute");
    let mut command = guest.bulkhead();
    // Long enough for the boot of an emulated machine: it is the call that meets the limit.
    command.env("BULKHEAD_BOOT_TIMEOUT_S", "40");
    fails(&mut command, bundle.path(), 1, &["the agent did not answer CreateContainer"]);
}

#[test]
fn error_is_written_to_the_log_as_json() {
    let directory = tempfile::tempdir().expect("temp dir");
    let log = directory.path().join("log.json");
    let program = bulkhead().get_program().to_owned();
    let outcome = run(Command::new(program)
        .arg("--log")
        .arg(&log)
        .args(["--log-format", "json", "run", "--bundle", "/nonexistent", "logged"])
        .stderr(Stdio::null()));
    outcome.expect(1);
    let text = fs::read_to_string(log).expect("the log was written");
    let entry: serde_json::Value =
        serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(entry["level"], "error");
    assert!(entry["msg"].as_str().expect("msg").contains("/nonexistent"), "{text}");
}
