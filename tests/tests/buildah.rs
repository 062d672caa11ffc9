//! Images that Buildah builds with each of their commands in a microVM: what one step leaves for
//! the next, how a step fails, and nothing left behind.

use std::fs;
use std::path::Path;

use bulkhead_tests::podman::Podman;
use bulkhead_tests::terminal::OnTerminal;
use bulkhead_tests::{Leftovers, Outcome, netns, run};
use tempfile::TempDir;

/// The image that all others are built upon.
const BASE: &str = "localhost/base";
/// Ends once the terminal has the size that Buildah gives it, once.
const SIZE: &str = "until stty size | grep -q '33 77'; do sleep 0.1; done; echo size 33 77; exit 6";

/// A Podman and Buildah with the image that all others are built upon.
fn podman() -> Podman {
    let podman = Podman::new();
    podman.import_busybox(BASE, "/bin/sh");
    podman
}

/// A directory with a file to copy and instructions after those that name the base.
fn context(instructions: &str) -> TempDir {
    let context = tempfile::tempdir().expect("temp dir");
    fs::write(context.path().join("input"), "input\n").expect("a file");
    let text = format!("FROM {BASE}\n{instructions}");
    fs::write(context.path().join("Dockerfile"), text).expect("Dockerfile");
    context
}

fn build(podman: &Podman, words: &[&str], context: &Path) -> Outcome {
    let mut command = podman.buildah(&["bud", "--isolation", "oci", "--runtime"]);
    run(command.arg(podman.runtime()).args(words).arg(context))
}

const STEPS: &str = r#"
ENV GREETING=hello
ARG WORD=none
WORKDIR /work
COPY input .
RUN cat input >one && echo $GREETING $WORD >>one && chown -R user:user . && ln -s one link
RUN --mount=type=cache,target=/cache grep -q hello link && echo kept >/cache/file
USER user
RUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/scratch \
    cp /cache/file cached && id -un >name && pwd >>name && grep -c ' /scratch tmpfs ' /proc/mounts \
    >>name
CMD cat link cached name; ls /cache /scratch; exit 5
"#;

/// Buildah leaves the bridge of its network, as Podman does.
fn remove_bridge() {
    netns::ip("link del cni-podman0");
}

#[test]
fn steps_see_what_earlier_ones_made_and_the_image_runs() {
    let podman = podman();
    let before = Leftovers::now();
    let words = ["--build-arg", "WORD=word", "--tag", "built"];
    build(&podman, &words, context(STEPS).path()).expect(0);
    let built = ["run", "--rm", "--network", "none", "localhost/built"];
    let ran = podman.run(&built).expect(5);
    assert_eq!(ran.text(), "input\nhello word\nkept\nuser\n/work\n1");
    remove_bridge();
    before.assert_none();
}

#[test]
fn step_that_fails_ends_the_build_with_its_code() {
    let podman = podman();
    let before = Leftovers::now();
    let failing = context("RUN echo before; exit 23\nRUN echo never\n");
    let failed = build(&podman, &[], failing.path()).expect(23);
    let text = failed.text();
    let printed = |line: &str| text.lines().any(|printed| printed == line);
    assert!(printed("before") && !printed("never"), "{text}");
    let missing = build(&podman, &[], context("RUN [\"/nowhere\"]\n").path()).expect(1);
    assert!(missing.stderr.contains("/nowhere: no such file or directory"), "{}", missing.stderr);
    remove_bridge();
    before.assert_none();
}

#[test]
fn working_container_runs_on_a_terminal() {
    let podman = podman();
    let before = Leftovers::now();
    let container = run(&mut podman.buildah(&["from", BASE])).expect(0).text();
    let mut command = podman.buildah(&["run", "--tty", "--isolation", "oci", "--runtime"]);
    command.arg(podman.runtime()).args([&container, "--", "/bin/sh", "-c", SIZE]);
    let (code, shown) = OnTerminal::start(command, 33, 77).finish();
    assert!(code == 6 && shown.contains("size 33 77"), "{code} {shown}");
    run(&mut podman.buildah(&["rm", &container])).expect(0);
    remove_bridge();
    before.assert_none();
}
