//! Hooks of a container: their order, what their failure does, and that poststop runs once.

use std::fs;

use serde_json::{Value, json};

use super::rig::{Rig, send, stderr};

const MOMENTS: [&str; 5] =
    ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

/// A bundle whose hooks each add a line, `MOMENT STATUS PID`, to `log`; `failing` fails after it.
fn bundle(rig: &Rig, failing: &str) {
    let script = rig.path("hook");
    let log = rig.path("log").display().to_string();
    let field = |name: &str| format!(r#"s/.*"{name}":"\{{0,1\}}\([^",}}]*\).*/\1/p"#);
    let text = format!(
        "state=$(cat)\nget() {{ echo \"$state\" | sed -n \"$1\"; }}\n\
         echo \"$1 $(get '{}') $(get '{}')\" >> {log}\n\
         [ \"$1\" != '{failing}' ] || {{ echo no >&2; exit 1; }}",
        field("status"),
        field("pid"),
    );
    rig.script("hook", &text);
    rig.bundle_with("h", &["sleep"], |spec| {
        let hook = |moment: &str| {
            json!([{"path": script, "args": ["hook", moment], "env": ["PATH=/usr/bin:/bin"]}])
        };
        spec["hooks"] = MOMENTS.iter().map(|m| (m.to_string(), hook(m))).collect::<Value>();
    });
}

/// What the hooks have logged since the last look: `(MOMENT, STATUS, PID)`.
fn logged(rig: &Rig) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(rig.path("log")).unwrap_or_default();
    let _ = fs::remove_file(rig.path("log"));
    let line = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        (words.next().unwrap(), words.next().unwrap(), words.next().unwrap())
    };
    text.lines().map(line).collect()
}

fn moments(rig: &Rig) -> Vec<String> {
    logged(rig).into_iter().map(|(moment, ..)| moment).collect()
}

#[test]
fn hooks_run_at_their_moments_with_the_supervisors_pid() {
    let Some(rig) = Rig::new("run") else { return };
    bundle(&rig, "");
    let created = rig.create("c", "h");
    assert!(created.status.success(), "{}", stderr(&created));
    let pid = rig.supervisor().to_string();
    let line = |moment: &str, status: &str, pid: &str| {
        (moment.to_owned(), status.to_owned(), pid.to_owned())
    };
    let expected = MOMENTS[..3].iter().map(|moment| line(moment, "creating", &pid));
    assert_eq!(logged(&rig), expected.collect::<Vec<_>>());
    rig.succeed(&["start", "c"]);
    assert_eq!(logged(&rig), [line("poststart", "running", &pid)]);
    rig.succeed(&["delete", "--force", "c"]);
    assert_eq!(logged(&rig), [line("poststop", "stopped", "")]);
    rig.succeed(&["delete", "--force", "c"]);
    assert!(logged(&rig).is_empty());
    rig.assert_clean();
}

#[test]
fn hook_that_fails_before_the_start_ends_the_creation() {
    let Some(rig) = Rig::new("run") else { return };
    for (at, moment) in MOMENTS[..3].iter().enumerate() {
        bundle(&rig, moment);
        let output = rig.create("c", "h");
        let line = format!("bulkhead: running the hooks: hooks.{moment}[0] ");
        assert!(stderr(&output).starts_with(&line), "{}", stderr(&output));
        assert!(stderr(&output).ends_with("exited with code 1: no\n"), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(1));
        let mut expected = MOMENTS[..=at].to_vec();
        expected.push("poststop");
        assert_eq!(moments(&rig), expected);
        rig.assert_clean();
    }
}

#[test]
fn poststart_hook_that_fails_stops_the_container() {
    let Some(rig) = Rig::new("run") else { return };
    bundle(&rig, "poststart");
    let output = rig.run(&["run", "-b", "h", "c"]);
    let shown = stderr(&output);
    assert!(shown.contains("running the hooks: hooks.poststart[0] "), "{shown}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(moments(&rig), MOMENTS);
    rig.assert_clean();
    assert!(rig.create("c", "h").status.success());
    let started = rig.run(&["start", "c"]);
    assert!(stderr(&started).contains("hooks.poststart[0] "), "{}", stderr(&started));
    super::lifecycle::await_end(rig.supervisor());
    assert_eq!(rig.status("c"), "stopped");
    rig.succeed(&["delete", "c"]);
    assert_eq!(moments(&rig), MOMENTS);
    rig.assert_clean();
}

#[test]
fn poststop_hook_that_fails_is_told_and_the_container_goes() {
    let Some(rig) = Rig::new("run") else { return };
    bundle(&rig, "poststop");
    assert!(rig.create("c", "h").status.success());
    let output = rig.run(&["delete", "c"]);
    let line = "bulkhead: warning: running the hooks: hooks.poststop[0] ";
    assert!(stderr(&output).starts_with(line), "{}", stderr(&output));
    assert!(output.status.success());
    rig.assert_clean();
}

#[test]
fn poststop_hooks_of_a_killed_supervisor_run_once_at_delete() {
    let Some(rig) = Rig::new("run") else { return };
    bundle(&rig, "");
    assert!(rig.create("c", "h").status.success());
    send(rig.supervisor(), rustix::process::Signal::KILL);
    assert_eq!(moments(&rig), MOMENTS[..3]);
    rig.succeed(&["delete", "--force", "c"]);
    rig.succeed(&["delete", "--force", "c"]);
    assert_eq!(moments(&rig), ["poststop"]);
    rig.assert_clean();
}

/// What a deletion leaves that is killed while a hook runs: the next one runs the others.
#[test]
fn poststop_hooks_of_a_killed_deletion_are_continued() {
    let Some(rig) = Rig::new("run") else { return };
    bundle(&rig, "");
    let held = rig.path("held");
    rig.script("hold", &format!("echo $$ > {}\nexec /bin/sleep 1000", held.display()));
    let config = rig.path("h/config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let list = spec["hooks"]["poststop"].as_array_mut().unwrap();
    list.insert(0, json!({"path": rig.path("hold")}));
    fs::write(&config, spec.to_string()).unwrap();
    assert!(rig.create("c", "h").status.success());
    moments(&rig);
    let mut deletion = rig.command(&["delete", "c"]).spawn().unwrap();
    super::rig::await_file(&held);
    deletion.kill().unwrap();
    deletion.wait().unwrap();
    // Its hook dies with it, a moment later.
    super::lifecycle::await_end(fs::read_to_string(&held).unwrap().trim().parse().unwrap());
    assert!(moments(&rig).is_empty());
    rig.succeed(&["delete", "--force", "c"]);
    assert_eq!(moments(&rig), ["poststop"]);
    rig.assert_clean();
}

#[test]
fn signal_during_a_hook_ends_the_creation() {
    let Some(rig) = Rig::new("run") else { return };
    let held = rig.path("held");
    rig.script("hold", &format!("echo $$ > {}\nexec /bin/sleep 1000", held.display()));
    rig.bundle_with("h", &["sleep"], |spec| {
        spec["hooks"] = json!({"createRuntime": [{"path": rig.path("hold")}]});
    });
    let child = rig.command(&["run", "-b", "h", "c"]).spawn().unwrap();
    super::rig::await_file(&held);
    send(child.id(), rustix::process::Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted by signal 15 in hooks.createRuntime[0]"));
    rig.assert_clean();
}
