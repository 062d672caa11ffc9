//! `bulkhead launch`: images in their forms, the flags of `docker run`, exit codes, and nothing
//! left behind in the state or in the store.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bulkhead_tests::process::run_with_input;
use bulkhead_tests::terminal::OnTerminal;
use bulkhead_tests::{Image, Leftovers, Outcome, bulkhead, run, unique_id};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A store of its own, on a file system that overlays can lie on.
struct Store(TempDir);

impl Store {
    fn new() -> Self {
        let builder = tempfile::Builder::new().prefix("store-").tempdir_in("/var/tmp");
        Self(builder.expect("a directory in /var/tmp"))
    }

    /// `bulkhead launch --store STORE WORDS...`.
    fn launch(&self, words: &[&str]) -> Command {
        let mut command = bulkhead();
        command.arg("launch").arg("--store").arg(self.0.path()).args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Outcome {
        run(&mut self.launch(words))
    }

    fn entries(&self, part: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.0.path().join(part)).expect("a part of the store");
        entries.map(|entry| entry.expect("entry").path()).collect()
    }

    #[track_caller]
    fn assert_no_containers(&self) {
        assert_eq!(self.entries("containers"), Vec::<PathBuf>::new());
        assert_eq!(self.entries("work"), Vec::<PathBuf>::new());
    }
}

/// What is on standard error besides the progress of unpacking, which a slow machine tells of, and
/// the making of an image of the root.
fn complaints(outcome: &Outcome) -> String {
    let lines = outcome.stderr.split_inclusive('\n');
    let progress = |line: &&str| {
        line.contains(" MiB / ") && line.ends_with(" %)\n") || line.ends_with(", once...\n")
    };
    lines.filter(|line| !progress(line)).collect()
}

/// A container in the background that is force-deleted at the end of the test.
struct Detached(String);

impl Detached {
    /// Launches `script` in `image`, whose entry point is a shell.
    fn launch(store: &Store, image: &str, script: &str) -> Self {
        let name = unique_id("launch");
        let outcome = store.run(&["-d", "--name", &name, image, script]).expect(0);
        assert_eq!((outcome.text(), complaints(&outcome)), (name.clone(), String::new()));
        Self(name)
    }

    fn exec(&self, script: &str) -> Outcome {
        run(bulkhead().args(["exec", &self.0, "/bin/sh", "-c", script]))
    }

    fn state(&self) -> Value {
        let outcome = run(bulkhead().args(["state", &self.0])).expect(0);
        serde_json::from_slice(&outcome.stdout).expect("state is JSON")
    }

    /// The supervisor, as a child of this process: it reaps orphans.
    fn supervisor(&self) -> Pid {
        let pid = self.state()["pid"].as_i64().expect("pid");
        Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid")
    }

    fn delete(&self) -> Outcome {
        run(bulkhead().args(["delete", "--force", &self.0]))
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        let _ = self.delete();
    }
}

/// Waits until the child `pid` has ended.
fn reap(pid: Pid) -> Option<i32> {
    let waited = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    waited.expect("a child of its subreaper").expect("ended").1.exit_status()
}

fn become_subreaper() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("subreaper");
}

/// Three layers: busybox, files, and changes to them.
fn image() -> Image {
    let mut image = Image::busybox(json!({
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["echo from the image in $PWD $COLOUR; exit 3"],
        "Env": ["PATH=/bin", "COLOUR=green"],
        "WorkingDir": "/srv",
        "Volumes": {"/loose": {}},
    }));
    image.layer(|tree| {
        for directory in ["srv", "opaque", "kept"] {
            fs::create_dir(tree.join(directory)).expect("directory");
            fs::write(tree.join(directory).join("old"), "old\n").expect("file");
        }
        let loose = tree.join("loose");
        fs::create_dir(&loose).expect("directory");
        fs::set_permissions(&loose, Permissions::from_mode(0o1777)).expect("mode");
        fs::write(tree.join("srv/gone"), "").expect("file");
        fs::write(tree.join("not-executable"), "#!/bin/sh\n").expect("file");
    });
    image.layer(|tree| {
        for directory in ["srv", "opaque"] {
            fs::create_dir(tree.join(directory)).expect("directory");
        }
        fs::write(tree.join("srv/.wh.gone"), "").expect("whiteout");
        fs::write(tree.join("srv/old"), "new\n").expect("file");
        fs::write(tree.join("opaque/.wh..wh..opq"), "").expect("opaque mark");
        fs::write(tree.join("opaque/young"), "").expect("file");
    });
    image
}

/// What the three layers look like inside.
const LAYERS: &str = "cat /srv/old; ls /srv /opaque /kept";
const LAYERS_SEEN: &str = "new\n/kept:\nold\n\n/opaque:\nyoung\n\n/srv:\nold";

#[test]
fn image_in_every_form_is_the_same_container() {
    let (store, image, before) = (Store::new(), image(), Leftovers::now());
    let layout = image.layout();
    // Two at once: each wants the layers that the other unpacks.
    std::thread::scope(|scope| {
        let run = || store.run(&["--rm", &layout]);
        for outcome in [scope.spawn(run), scope.spawn(run)] {
            let outcome = outcome.join().expect("the thread ends").expect(3);
            assert_eq!(outcome.text(), "from the image in /srv green");
            assert_eq!(complaints(&outcome), "");
        }
    });
    let layers = store.entries("layers/sha256");
    assert_eq!(layers.len(), 3, "{layers:?}");

    let archive = store.run(&["--rm", &image.oci_archive(), LAYERS]).expect(0);
    assert_eq!(archive.text(), LAYERS_SEEN);

    let docker = &image.docker_archive();
    let words = ["--rm", "-i", "--entrypoint", "/bin/sh", docker, "-c", "cat; echo err >&2"];
    let docker = run_with_input(&mut store.launch(&words), b"through\n").expect(0);
    assert_eq!((docker.text().as_str(), complaints(&docker).as_str()), ("through", "err\n"));

    let mut again = store.entries("layers/sha256");
    again.sort();
    let mut layers = layers;
    layers.sort();
    assert_eq!(again, layers, "the same layers are unpacked once");
    store.assert_no_containers();
    before.assert_none();
}

#[test]
fn flags_are_those_of_docker_run() {
    let (store, image) = (Store::new(), image());
    let outside = tempfile::tempdir().expect("temp dir");
    fs::write(outside.path().join("in"), "from the host\n").expect("file");
    let outside = outside.path().to_str().expect("UTF-8");
    let script = "echo $COLOUR $SHAPE; pwd; id -u; id -g; hostname; cat /etc/hostname; \
                  cat /data/in; touch /data/out || echo refused; cat /data2/in; \
                  echo x > /data2/in || echo kept; touch /here || echo read-only; \
                  touch /loose/volume; ls /loose; stat -c %a /loose; \
                  cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; exit 42";
    let (made, volume) = (format!("{outside}/made"), format!("{outside}:/data"));
    let (read_only, made_volume) = (format!("{outside}:/data2:ro"), format!("{made}:/made"));
    let outcome = store.run(&[
        "--rm",
        "-e",
        "COLOUR=red",
        "-e",
        "SHAPE=round",
        "-w",
        "/data",
        "-u",
        "user",
        "-h",
        "box",
        "-v",
        &volume,
        "-v",
        &read_only,
        "-v",
        &made_volume,
        "--read-only",
        "-m",
        "64m",
        "--cpus",
        "1",
        "--entrypoint",
        "/bin/sh",
        &image.layout(),
        "-c",
        script,
    ]);
    let outcome = outcome.expect(42);
    let expected = "red round\n/data\n1000\n1000\nbox\nbox\nfrom the host\nrefused\n\
                    from the host\nkept\nread-only\nvolume\n1777\n67108864\n100000 100000";
    assert_eq!(outcome.text(), expected, "{}", outcome.stderr);
    assert!(Path::new(&made).is_dir());
    assert_eq!(fs::read_to_string(format!("{outside}/in")).expect("file"), "from the host\n");
    store.assert_no_containers();
}

#[test]
fn own_errors_are_125_and_leave_nothing() {
    let (store, image, before) = (Store::new(), image(), Leftovers::now());
    let layout = image.layout();
    let untagged = layout.replace(":v1", ":v2");
    for (words, part) in [
        // Before another unpacks what is then no work any more.
        (&["--unpack-max", "64k", &layout][..], "65536"),
        (&["/no/such/image"], "there is no image"),
        (&[&untagged], "v2"),
        (&["-m", "1", &layout], "-m"),
        (&["--no-such-flag", &layout], "--no-such-flag"),
        (&["-u", "nobody-knows", &layout], "nobody-knows"),
        (&["-dt", &layout], "-t does not go with -d"),
        (&["-it", &layout], "not a TTY"),
        (&["-v", "relative:relative", &layout], "relative"),
        (&["-w", "relative", &layout], "relative"),
    ] {
        let outcome = store.run(words).expect(125);
        assert!(outcome.stderr.contains(part), "{words:?}: {}", outcome.stderr);
        assert_eq!(outcome.text(), "", "{words:?}");
    }
    store.assert_no_containers();
    before.assert_none();
}

#[test]
fn command_that_cannot_run_is_127_or_126() {
    let (store, image, before) = (Store::new(), image(), Leftovers::now());
    let layout = image.layout();
    let missing = store.run(&["--rm", "--entrypoint", "no-such-program", &layout]).expect(127);
    assert!(missing.stderr.contains("not found"), "{}", missing.stderr);
    let refused = store.run(&["--rm", "--entrypoint", "/not-executable", &layout]).expect(126);
    assert!(refused.stderr.contains("permission denied"), "{}", refused.stderr);
    store.assert_no_containers();
    before.assert_none();
}

#[test]
fn detached_containers_share_layers_and_not_writes() {
    become_subreaper();
    let (store, image, before) = (Store::new(), image(), Leftovers::now());
    let layout = image.layout();
    {
        // Ready for the signal once it says so: before, the first process of a pid namespace
        // ignores it.
        let idle = "trap 'exit 7' TERM; echo > /dev/shm/ready; while :; do sleep 0.1; done";
        let one = Detached::launch(&store, &layout, idle);
        let taken = store.run(&["-d", "--name", &one.0, &layout]).expect(125);
        assert!(taken.stderr.contains("exists"), "{}", taken.stderr);
        one.exec("echo one > /srv/old; rm /kept/old; mv /opaque /moved; touch /fresh").expect(0);
        let two = Detached::launch(&store, &layout, idle);
        assert_eq!(two.exec(LAYERS).expect(0).text(), LAYERS_SEEN);
        let changed = one.exec("cat /srv/old; ls /kept /moved; ls /fresh").expect(0).text();
        assert_eq!(changed, "one\n/kept:\n\n/moved:\nyoung\n/fresh");
        let layers = store.entries("layers/sha256");
        assert_eq!(layers.len(), 3, "{layers:?}");

        let supervisor = one.supervisor();
        one.exec("until [ -e /dev/shm/ready ]; do sleep 0.1; done").expect(0);
        run(bulkhead().args(["kill", &one.0, "TERM"])).expect(0);
        assert_eq!(reap(supervisor), Some(7));
        assert_eq!(one.state()["status"], "stopped");
        assert_eq!(store.entries("containers").len(), 2, "kept until it is deleted");
        run(bulkhead().args(["delete", &one.0])).expect(0);
        assert_eq!(store.entries("containers").len(), 1);

        let supervisor = two.supervisor();
        two.delete().expect(0);
        reap(supervisor);
    }
    store.assert_no_containers();
    before.assert_none();
}

/// Changes of every kind to a tree, and what it looks like then.
const CHANGES: &str = r#"
change() {
  cd "$1" || exit 9
  echo more >> appended; chmod 600 private; mv dir/x dir/renamed; mv dir/y moved
  rm -r sub; mkdir sub; echo new > sub/new
  ln appended second; ln -s dir/renamed link2; rm link; mkdir link
  : > emptied; echo 12345 | dd of=patched bs=1 seek=70000 conv=notrunc 2>/dev/null
  mv -f over onto; rm again; echo again > again; chown 1000:1000 given; mkfifo pipe
  rmdir empty; echo file > empty; mv folder folder2; touch -d @1000000000 dated
  exec 3< held; echo changed > held; cat <&3; exec 3<&-
  exec 3< removed; rm removed; cat <&3; exec 3<&-
  exec 3<> both; echo head >&3; cat <&3 | sum; cat both | sum; exec 3<&-
  mv both both2; sum < both2; truncate -s 100000 patched
  chmod 4751 program; chown 0:0 program; touch -h -d @1000000001 dangling
  find . | sort | while read -r path; do
    stat -c '%n %A %u %g %F %N' "$path"
    [ -f "$path" ] && { stat -c '%s %h' "$path"; sum < "$path"; }
  done
  stat -c '%Y' dated dangling
}
sum() { sha256sum | cut -c 1-64; }
stat -c '%a %u %g %Y' /tree/owned; stat -c '%a %F' /tree/fifo /tree/program
cp -a /tree /dev/shm/tree
change /tree > /tmp/layers; change /dev/shm/tree > /tmp/memory
diff /tmp/memory /tmp/layers && echo alike $(wc -l < /tmp/layers)
stat -c '%a %u %g' /volume; echo x > /volume/file; cat /volume/*
"#;

fn changed_tree(tree: &Path) {
    let (tree, volume) = (tree.join("tree"), tree.join("volume"));
    for directory in ["dir", "sub/deep", "empty", "folder/deep"] {
        fs::create_dir_all(tree.join(directory)).expect("directory");
    }
    for name in [
        "appended",
        "private",
        "dir/x",
        "dir/y",
        "sub/deep/z",
        "emptied",
        "patched",
        "over",
        "onto",
        "again",
        "given",
        "folder/deep/f",
        "dated",
        "held",
        "removed",
        "both",
        "program",
        "owned",
    ] {
        // Longer than a page, and another content in each.
        fs::write(tree.join(name), format!("{name}\n").repeat(10_000)).expect("file");
    }
    symlink("dir", tree.join("link")).expect("link");
    symlink("nowhere", tree.join("dangling")).expect("link");
    fs::create_dir(&volume).expect("directory");
    fs::write(volume.join("seed"), "seed\n").expect("file");
    let script = "chown 12:34 owned && touch -d @1234567890 owned && chmod 6755 program && \
                  mkfifo -m 640 fifo && chown 56:78 ../volume && chmod 1770 ../volume";
    run(Command::new("sh").args(["-c", script]).current_dir(&tree)).expect(0);
}

#[test]
fn changes_over_layers_are_those_of_a_plain_file_system() {
    let (store, before) = (Store::new(), Leftovers::now());
    let mut image = Image::busybox(json!({"Env": ["PATH=/bin"], "Volumes": {"/volume": {}}}));
    image.layer(changed_tree);
    let layout = image.layout();
    for mode in ["share", "image"] {
        let words = ["--rm", "--root-mode", mode, &layout, "/bin/sh", "-c", CHANGES];
        let outcome = store.run(&words).expect(0);
        let text = outcome.text();
        let lines: Vec<&str> = text.lines().collect();
        let (facts, alike) = lines.split_at(3.min(lines.len()));
        assert_eq!(facts, ["644 12 34 1234567890", "640 fifo", "6755 regular file"], "{text}");
        let count = alike[0].strip_prefix("alike ").and_then(|count| count.parse().ok());
        assert!(count.is_some_and(|count: u32| count > 60), "{mode}: {text}\n{}", outcome.stderr);
        assert_eq!(alike[1..], ["1770 56 78", "x", "seed"], "{mode}: {text}");
        assert_eq!(complaints(&outcome), "");
        store.assert_no_containers();
    }
    before.assert_none();
}

/// Prints the type of the root file system.
const ROOT_KIND: &str = "awk '$2 == \"/\" { print $3 }' /proc/mounts";

#[test]
fn root_is_an_image_unless_it_is_to_be_a_share() {
    let (store, image) = (Store::new(), image());
    let layout = image.layout();
    for (mode, kind, images) in [
        (Some("--root-mode=share"), "virtiofs", 0),
        (None, "overlay", 1),
        (Some("--root-mode=image"), "overlay", 1),
    ] {
        let words: Vec<&str> = mode.into_iter().chain(["--rm", &layout, ROOT_KIND]).collect();
        let outcome = store.run(&words).expect(0);
        assert_eq!((outcome.text().as_str(), store.entries("images").len()), (kind, images));
        assert_eq!(complaints(&outcome), "");
    }
    store.assert_no_containers();
}

/// The same on a host without `mkfs.erofs`.
fn without_writer(command: &Command) -> Command {
    let hide = "mount --bind /dev/null $(command -v mkfs.erofs) && exec \"$@\"";
    let mut hidden = Command::new("unshare");
    hidden.args(["--mount", "sh", "-c", hide, "sh"]).arg(command.get_program());
    hidden.args(command.get_args());
    hidden.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    hidden
}

#[test]
fn root_that_cannot_be_an_image_is_a_share_unless_an_image_was_asked_for() {
    let (store, image) = (Store::new(), image());
    let (layout, disk) = (image.layout(), tempfile::NamedTempFile::new().expect("a file"));
    disk.as_file().set_len(1 << 20).expect("its length");
    let disks: Vec<String> =
        (0..16).map(|at| format!("--device={}:/dev/disk{at}:r", disk.path().display())).collect();
    let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
    let no_writer = ["mkfs.erofs is not installed", "install erofs-utils"];
    let no_disk = ["has 16 disks already", "leave out a disk"];
    for (installed, flags, [cause, fix]) in [(false, &[][..], no_writer), (true, &disks, no_disk)] {
        let launch = |debug: &[&str], mode: &[&str]| {
            let mut command = bulkhead();
            command.args(debug).args(["launch", "--rm", "--store"]).arg(store.0.path());
            command.args(mode).args(flags).args([&layout, ROOT_KIND]);
            run(&mut if installed { command } else { without_writer(&command) })
        };
        let outcome = launch(&[], &[]).expect(0);
        assert_eq!((outcome.text().as_str(), complaints(&outcome).as_str()), ("virtiofs", ""));
        let told = launch(&["--debug"], &[]).expect(0).stderr;
        assert!(told.contains("going on without an image") && told.contains(cause), "{told}");
        let refused = launch(&[], &["--root-mode=image"]).expect(125).stderr;
        for word in [cause, fix, "choose --root-mode=share"] {
            assert!(refused.contains(word), "{word}: {refused}");
        }
    }
    assert_eq!(store.entries("images"), Vec::<PathBuf>::new());
    store.assert_no_containers();
}

#[test]
fn image_that_cannot_be_written_is_told_and_the_root_is_a_share() {
    let (store, mut image) = (Store::new(), image());
    // Layers keep the hole of a file, images of the root do not.
    image.layer(|tree| {
        let hole = fs::File::create(tree.join("hole")).expect("a file");
        hole.set_len(256 << 20).expect("its length");
    });
    let (layout, bound) = (image.layout(), "--unpack-max=64m");
    let outcome = store.run(&["--rm", bound, &layout, ROOT_KIND]).expect(0);
    assert_eq!(outcome.text(), "virtiofs");
    let told = complaints(&outcome);
    assert!(told.contains("going on without") && told.contains("mkfs.erofs: signal"), "{told}");
    let asked = store.run(&["--rm", bound, "--root-mode=image", &layout, "true"]).expect(125);
    assert!(asked.stderr.contains("choose --root-mode=share"), "{}", asked.stderr);
    assert_eq!(store.entries("images"), Vec::<PathBuf>::new());
    store.assert_no_containers();
}

#[test]
fn writes_to_an_image_root_end_at_half_of_the_memory() {
    let (store, image) = (Store::new(), image());
    let script = "dd if=/dev/zero of=/full bs=1M count=300 2>&1; s=$(stat -c %s /full); \
                  test $s -gt 60000000 -a $s -lt 135000000 && rm /full && echo room > /more && \
                  cat /more";
    let outcome = store.run(&["--rm", "--root-mode=image", &image.layout(), script]).expect(0);
    let text = outcome.text();
    assert!(text.contains("No space left on device") && text.ends_with("\nroom"), "{text}");
    store.assert_no_containers();
}

#[test]
fn terminal_has_size_and_echo() {
    let (store, image) = (Store::new(), image());
    let script = "stty size; tty; echo $TERM; read line; echo got $line; exit 5";
    let command = store.launch(&["--rm", "-it", &image.layout(), script]);
    let mut terminal = OnTerminal::start(command, 33, 77);
    terminal.wait_for("xterm");
    terminal.type_in("abc\n");
    let (code, shown) = terminal.finish();
    assert_eq!(code, 5, "{shown}");
    for part in ["33 77", "/dev/pts/", "got abc"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    store.assert_no_containers();
}

#[test]
fn killed_supervisor_leaves_nothing_after_delete() {
    become_subreaper();
    let (store, image, before) = (Store::new(), image(), Leftovers::now());
    let container = Detached::launch(&store, &image.layout(), "sleep 1000");
    container.exec("echo written > /srv/old").expect(0);
    let supervisor = container.supervisor();
    kill_process(supervisor, Signal::KILL).expect("kill");
    reap(supervisor);
    container.delete().expect(0);
    store.assert_no_containers();
    before.assert_none();
}

#[test]
fn killed_launch_leaves_nothing_after_delete() {
    let (store, image, before) = (Store::new(), image(), Leftovers::now());
    let name = unique_id("launch");
    let words = ["--rm", "--name", &name, &image.layout(), "echo up; sleep 1000"];
    let mut command = store.launch(&words);
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("launch");
    let mut line = [0; 3];
    child.stdout.as_mut().expect("piped").read_exact(&mut line).expect("the first line");
    assert_eq!(&line, b"up\n");
    child.kill().expect("kill");
    child.wait().expect("ended");
    Detached(name).delete().expect(0);
    store.assert_no_containers();
    before.assert_none();
}
