//! Podman's commands on containers and pods in microVMs: terminals, entering, signals, figures,
//! volumes, builds, two containers in one microVM, and nothing left behind.

use std::fs;
use std::path::Path;

use bulkhead_tests::netns::{self, Namespace};
use bulkhead_tests::podman::{INFRA, Podman};
use bulkhead_tests::terminal::{SIZES, resized};
use bulkhead_tests::{Leftovers, Outcome, is_full, run, wait_until};
use serde_json::Value;

/// The image of every container.
const IMAGE: &str = "localhost/busybox";

fn podman() -> Podman {
    let podman = Podman::new();
    podman.import_busybox(IMAGE, "/bin/sh");
    podman
}

/// What `podman inspect` finds in `format`.
#[track_caller]
fn inspect(podman: &Podman, name: &str, format: &str) -> String {
    podman.run(&["inspect", "--format", format, name]).expect(0).text()
}

/// Removes what Podman leaves of its own: its bridges, and a cgroup that it makes to see what the
/// kernel can do.
fn remove_podmans_own(bridges: &[&str]) {
    for bridge in bridges {
        netns::ip(&format!("link del {bridge}"));
    }
    let probe = Path::new("/sys/fs/cgroup/podman_probe");
    if probe.exists() {
        fs::remove_dir(probe).expect("removing Podman's cgroup");
    }
}

#[test]
fn container_is_entered_paused_measured_and_ended() {
    // The first namespace with a name brings a mount.
    drop(Namespace::new());
    let podman = podman();
    let before = Leftovers::now();
    let data = tempfile::tempdir().expect("temp dir");
    fs::write(data.path().join("file"), "of the host\n").expect("a file");
    let bind = format!("{}:/data:ro", data.path().display());
    let script = "trap 'echo caught; exit 9' TERM; echo up; echo error >&2; echo volume >/vol/file; \
                  while :; do sleep 0.1; done";
    podman.run(&["volume", "create", "vol"]).expect(0);
    let flags = ["run", "--detach", "--name", "one", "--memory", "200m", "-v", "vol:/vol"];
    let rest = ["-v", &bind, IMAGE, "/bin/sh", "-c", script];
    podman.run(&[&flags[..], &rest].concat()).expect(0);
    wait_until("the container's output", || {
        let logs = podman.run(&["logs", "one"]).expect(0);
        logs.text() == "up" && logs.stderr == "error\n"
    });

    let words = ["exec", "--user", "user", "--env", "WORD=said", "--workdir", "/tmp", "one"];
    let script = "echo $WORD $(pwd) $(id -un); cat /data/file /vol/file; exit 3";
    let outcome = podman.run(&[&words[..], &["/bin/sh", "-c", script]].concat()).expect(3);
    assert_eq!(outcome.text(), "said /tmp user\nof the host\nvolume");
    let words = ["exec", "--interactive", "--tty", "one", "/bin/sh", "-c", SIZES];
    resized(podman.command(&words));

    podman.run(&["pause", "one"]).expect(0);
    assert_eq!(inspect(&podman, "one", "{{.State.Status}}"), "paused");
    podman.run(&["unpause", "one"]).expect(0);
    let stats = podman.run(&["stats", "--no-stream", "--format", "json", "one"]).expect(0);
    let stats: Value = serde_json::from_slice(&stats.stdout).expect("figures are JSON");
    assert!(stats[0]["mem_usage"].as_str().is_some_and(|text| text.contains("MB /")), "{stats}");
    // With options for `ps` it is run in the container, as of an engine that is not on its host.
    let processes = podman.run(&["top", "one", "-o", "pid,args"]).expect(0).text();
    assert!(processes.contains("sleep 0.1") && !processes.contains("bulkhead"), "{processes}");

    podman.run(&["kill", "--signal", "TERM", "one"]).expect(0);
    assert_eq!(podman.run(&["wait", "one"]).expect(0).text(), "9");
    assert_eq!(podman.run(&["logs", "one"]).expect(0).text(), "up\ncaught");
    podman.run(&["start", "one"]).expect(0);
    podman.run(&["stop", "one"]).expect(0);
    podman.run(&["rm", "one"]).expect(0);
    podman.run(&["volume", "rm", "vol"]).expect(0);
    remove_podmans_own(&["cni-podman0"]);
    before.assert_none();
}

#[test]
fn files_are_copied_to_and_from_a_container_that_does_not_run() {
    let podman = podman();
    let data = tempfile::tempdir().expect("temp dir");
    let file = data.path().join("file").display().to_string();
    fs::write(&file, "copied\n").expect("a file");
    let command = ["/bin/sh", "-c", "cat /file; echo made >/made"];
    let flags = ["create", "--name", "two", "--network", "none", IMAGE];
    podman.run(&[&flags[..], &command].concat()).expect(0);
    podman.run(&["cp", &file, "two:/file"]).expect(0);
    let started = podman.run(&["start", "--attach", "two"]).expect(0);
    assert_eq!(started.text(), "copied");
    podman.run(&["cp", "two:/made", &file]).expect(0);
    assert_eq!(fs::read_to_string(&file).expect("the file"), "made\n");
    podman.run(&["rm", "two"]).expect(0);
}

#[test]
fn files_are_copied_to_and_from_a_container_that_runs() {
    let podman = podman();
    let before = Leftovers::now();
    let data = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| data.path().join(name).display().to_string();
    fs::create_dir(data.path().join("bound")).expect("a directory");
    fs::create_dir_all(data.path().join("tree/sub")).expect("a directory");
    fs::write(at("tree/sub/file"), "of the host\n").expect("a file");
    let bind = format!("{}:/bound", at("bound"));
    // Links of the container that lead to the host's files when they are followed there.
    let script = "echo made >/made; ln -s /etc /bound/etc; ln -s ../../../../../../.. /up; echo up; \
                  while :; do sleep 0.1; done";
    let flags = ["run", "--detach", "--name", "three", "--network", "none", "-v", &bind];
    let rest = ["--tmpfs", "/mnt", IMAGE, "/bin/sh", "-c", script];
    podman.run(&[&flags[..], &rest].concat()).expect(0);
    wait_until("the container's output", || {
        podman.run(&["logs", "three"]).expect(0).text() == "up"
    });
    podman.run(&["cp", &at("tree"), "three:/tree"]).expect(0);
    podman.run(&["cp", &at("tree/sub/file"), "three:/bound/file"]).expect(0);
    podman.run(&["cp", &at("tree/sub/file"), "three:/bound/etc/copied"]).expect(0);
    let words = ["exec", "three", "cat", "/tree/sub/file", "/bound/file", "/etc/copied"];
    assert_eq!(podman.run(&words).expect(0).text(), "of the host\n".repeat(3).trim_end());
    assert!(!Path::new("/etc/copied").exists() && Path::new(&at("bound/file")).exists());

    podman.run(&["cp", "three:/made", &at("made")]).expect(0);
    assert_eq!(fs::read_to_string(at("made")).expect("the file"), "made\n");
    // Of the container, not of the host.
    podman.run(&["cp", "three:/up/etc/passwd", &at("passwd")]).expect(0);
    let inside = podman.run(&["exec", "three", "cat", "/etc/passwd"]).expect(0).text();
    assert_eq!(fs::read_to_string(at("passwd")).expect("the file").trim_end(), inside);
    // What is in the guest's memory cannot be reached, and says so.
    assert_ne!(podman.run(&["cp", &at("made"), "three:/mnt/made"]).code, 0);
    podman.run(&["exec", "three", "test", "!", "-e", "/mnt/made"]).expect(0);
    // Not the processes of the host.
    let top = podman.run(&["top", "three"]);
    assert!(!top.text().contains("bulkhead"), "{}", top.text());
    podman.run(&["rm", "--force", "--time", "0", "three"]).expect(0);
    before.assert_none();
}

#[test]
fn run_on_a_terminal_and_of_no_program() {
    let podman = podman();
    let run = ["run", "--rm", "--network", "none"];
    let rest = ["--interactive", "--tty", IMAGE, "/bin/sh", "-c", SIZES];
    resized(podman.command(&[&run[..], &rest].concat()));
    let missing = podman.run(&[&run[..], &[IMAGE, "/nowhere"]].concat()).expect(127);
    assert!(missing.stderr.contains("/nowhere: no such file or directory"), "{}", missing.stderr);
}

/// Instructions whose commands leave something for each other and for the image's program.
const INSTRUCTIONS: &str = r#"
ENV SAID=built
RUN echo $SAID on $(uname -r) >/built && chown user /built
COPY file /copied
USER user
RUN id -un && cat /copied >>/built
CMD ["/bin/sh", "-c", "cat /built; uname -r; exit 4"]
"#;

/// `podman build --runtime` of the instructions after one that names the base.
fn build(podman: &Podman, words: &[&str], instructions: &str) -> Outcome {
    let context = tempfile::tempdir().expect("temp dir");
    let write =
        |name: &str, text: &str| fs::write(context.path().join(name), text).expect("a file");
    write("Containerfile", &format!("FROM {IMAGE}\n{instructions}"));
    write("file", "from the host\n");
    let mut command = podman.command(&["build", "--runtime"]);
    run(command.arg(podman.runtime()).args(words).arg(context.path()))
}

#[test]
fn images_are_built_with_each_command_in_a_microvm() {
    if !is_full() {
        return println!("skipped: a part of --full");
    }
    let podman = podman();
    let before = Leftovers::now();
    let built = build(&podman, &["--tag", "localhost/built"], INSTRUCTIONS).expect(0);
    assert!(built.text().lines().any(|line| line == "user"), "{}", built.text());
    let host = rustix::system::uname().release().to_string_lossy().into_owned();
    let ran = podman.run(&["run", "--rm", "--network", "none", "localhost/built"]).expect(4).text();
    let lines: Vec<&str> = ran.lines().collect();
    let [step, "from the host", program] = lines[..] else { panic!("{ran}") };
    assert_eq!(step, format!("built on {program}"));
    assert_ne!(program, host);

    let failing = "RUN echo before; exit 23\nRUN echo never\n";
    let failed = build(&podman, &["--tag", "localhost/failed"], failing);
    let text = failed.text();
    let printed = |line: &str| text.lines().any(|printed| printed == line);
    assert!(failed.code != 0 && printed("before") && !printed("never"), "{failed:?}");
    assert!(failed.stderr.contains("exit status 23"), "{}", failed.stderr);
    podman.run(&["image", "exists", "localhost/failed"]).expect(1);
    remove_podmans_own(&["cni-podman0"]);
    before.assert_none();
}

/// Two containers that meet on their loopback and in a volume of the pod.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  restartPolicy: Never
  containers:
  - name: server
    image: localhost/busybox
    imagePullPolicy: Never
    command: [/bin/sh, -c, "echo shared | nc -l -p 4000; while :; do sleep 0.1; done"]
    volumeMounts: [{name: v, mountPath: /v}]
  - name: client
    image: localhost/busybox
    imagePullPolicy: Never
    command: [/bin/sh, -c, "until nc 127.0.0.1 4000 </dev/null; do sleep 0.1; done; hostname; echo x >/v/x; while :; do sleep 0.1; done"]
    volumeMounts: [{name: v, mountPath: /v}]
  volumes:
  - name: v
    emptyDir: {}
"#;

#[test]
fn pods_have_their_containers_in_one_microvm() {
    drop(Namespace::new());
    let podman = podman();
    let before = Leftovers::now();
    podman.import_busybox(INFRA, "sleep 1000000");
    podman.run(&["pod", "create", "--name", "made"]).expect(0);
    let server = "echo shared | nc -l -p 4000; while :; do sleep 0.1; done";
    let words = ["run", "--detach", "--pod", "made", "--name", "first", IMAGE];
    podman.run(&[&words[..], &["/bin/sh", "-c", server]].concat()).expect(0);
    let client = "until nc 127.0.0.1 4000 </dev/null; do sleep 0.1; done; hostname; exit 3";
    let words = ["run", "--rm", "--pod", "made", IMAGE, "/bin/sh", "-c", client];
    assert_eq!(podman.run(&words).expect(3).text(), "shared\nmade");
    podman.run(&["pod", "stop", "--time", "0", "made"]).expect(0);
    podman.run(&["pod", "rm", "made"]).expect(0);

    let file = tempfile::NamedTempFile::new().expect("temp file");
    fs::write(file.path(), POD).expect("the pod");
    let path = file.path().display().to_string();
    podman.run(&["play", "kube", &path]).expect(0);
    wait_until("the client's answer", || {
        podman.run(&["logs", "pod-client"]).expect(0).text() == "shared\npod"
    });
    podman.run(&["exec", "pod-server", "cat", "/v/x"]).expect(0);
    podman.run(&["play", "kube", "--down", &path]).expect(0);
    // The second is that of the network that `play kube` makes.
    remove_podmans_own(&["cni-podman0", "cni-podman1"]);
    before.assert_none();
}
