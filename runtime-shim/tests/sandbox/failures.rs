//! Each way in which a sandbox fails to come up: one line, the right code, nothing left.

use super::rig::{Rig, stderr};

/// Runs a container in `scenario`, which must fail with `code` and one line that begins with
/// `line`, and leave nothing.
fn fails(scenario: &str, code: i32, line: &str) {
    let Some(rig) = Rig::new(scenario) else { return };
    let output = rig.run(&["run", "-b", "b", "c"]);
    let shown = stderr(&output);
    assert!(shown.starts_with(&format!("bulkhead: {line}")), "{scenario}: {shown}");
    assert_eq!(shown.lines().count(), 1, "{scenario}: {shown}");
    assert_eq!(output.status.code(), Some(code), "{scenario}");
    rig.assert_clean();
    let output = rig.create("c", "b");
    assert!(stderr(&output).contains(line), "{scenario}: {}", stderr(&output));
    assert_eq!(output.status.code(), Some(code), "{scenario}");
    rig.assert_clean();
    let errors = logged(&rig, "error");
    assert_eq!(errors.len(), 2);
    assert!(errors.iter().all(|msg| msg.starts_with(line)), "{errors:?}");
}

/// Messages of `level` in the log.
fn logged(rig: &Rig, level: &str) -> Vec<String> {
    let log = std::fs::read_to_string(rig.path("log.json")).unwrap();
    let entries = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let messages = entries.filter(|e| e["level"] == level);
    messages.map(|e| e["msg"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn vmm_that_dies_is_named_with_its_exit_code() {
    fails("die", 1, "booting the microVM: bulkhead-vmm exited with code 3");
}

#[test]
fn vmm_that_answers_garbage_is_named() {
    fails("garbage", 1, "booting the microVM: bulkhead-vmm answers with garbage");
}

#[test]
fn vmm_that_gives_up_tells_why_without_control_characters() {
    fails("refuse", 1, "booting the microVM: bulkhead-vmm: no memory [2J");
}

#[test]
fn vmm_that_refuses_a_request_tells_why() {
    fails("fail", 1, "booting the microVM: not now");
}

#[test]
fn guest_kernel_that_panics_is_named() {
    fails(
        "panic",
        1,
        "booting the microVM: the guest kernel panicked (bulkhead --debug shows its console)",
    );
}

#[test]
fn triple_fault_and_power_off_are_told_apart() {
    fails("triple-fault", 1, "booting the microVM: the guest's CPU shut down after a triple fault");
    fails("power-off", 1, "booting the microVM: the guest agent ended and the guest powered off");
}

#[test]
fn agent_of_another_version_is_refused() {
    fails("version", 1, "booting the microVM: the agent speaks version 9 of the API, not 1");
}

#[test]
fn agent_that_answers_garbage_is_named() {
    fails(
        "agent-garbage",
        1,
        "talking to the guest agent: the agent answered CreateContainer with garbage",
    );
}

#[test]
fn agent_that_does_not_serve_is_named() {
    fails("no-agent", 1, "connecting the standard streams: opening a standard stream");
}

#[test]
fn silent_guest_is_given_up_after_the_limit() {
    let Some(rig) = Rig::new("silent") else { return };
    let mut command = rig.command(&["run", "-b", "b", "c"]);
    let output = command.env("BULKHEAD_BOOT_TIMEOUT_S", "1").output().unwrap();
    let shown = stderr(&output);
    let line = "bulkhead: booting the microVM: the guest agent has not answered for 1 s (bulkhead \
                --debug shows its console; a slow host sets BULKHEAD_BOOT_TIMEOUT_S)\n";
    assert_eq!(shown, line);
    rig.assert_clean();
}

#[test]
fn guest_that_floods_its_console_is_given_up_after_the_limit() {
    let Some(rig) = Rig::new("flood-console") else { return };
    let mut command = rig.command(&["run", "-b", "b", "c"]);
    let output = command.env("BULKHEAD_BOOT_TIMEOUT_S", "1").output().unwrap();
    assert!(stderr(&output).contains("has not answered for 1 s"), "{}", stderr(&output));
    rig.assert_clean();
}

/// Else whoever talks most would keep the supervisor from its clients.
#[test]
fn agent_or_vmm_that_says_what_nobody_asked_for_is_ended() {
    for (scenario, program, who) in
        [("flood-ready", "sleep", "the guest agent"), ("run", "flood", "bulkhead-vmm")]
    {
        let Some(rig) = Rig::new(scenario) else { return };
        rig.bundle("b", &[program]);
        let output = rig.run(&["run", "-b", "b", "c"]);
        let line = format!("bulkhead: running the container: {who} says what nobody asked for");
        assert!(stderr(&output).starts_with(&line), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(255));
        rig.assert_clean();
    }
}

#[test]
fn console_of_a_failed_guest_is_in_the_log_and_shown_behind_debug() {
    let Some(rig) = Rig::new("panic") else { return };
    let words = "Kernel panic - not  [31msyncing\n";
    let output = rig.run(&["--debug", "run", "-b", "b", "c"]);
    assert!(stderr(&output).contains(words), "{}", stderr(&output));
    assert!(logged(&rig, "info")[0].contains(words));
}

#[test]
fn signal_during_the_boot_ends_it() {
    let Some(rig) = Rig::new("silent") else { return };
    let child = rig.command(&["run", "-b", "b", "c"]).spawn().unwrap();
    let record = rig.path("state").join("c/vsock.sock");
    super::rig::await_that(|| record.exists());
    super::rig::send(child.id(), rustix::process::Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    rig.assert_clean();
}

/// The first process of a pid namespace ignores signals that it has no handler for, so one that
/// comes before the program runs must not be left to it.
#[test]
fn signal_between_boot_and_start_ends_the_run() {
    let Some(rig) = Rig::new("run") else { return };
    let held = rig.path("go");
    rig.bundle("h", &["hold", held.to_str().unwrap()]);
    let child = rig.command(&["run", "-b", "h", "c"]).spawn().unwrap();
    super::rig::await_file(&rig.path("go.held"));
    super::rig::send(child.id(), rustix::process::Signal::INT);
    std::fs::write(held, "x").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted by signal 2"), "{}", stderr(&output));
    rig.assert_clean();
}

#[test]
fn program_that_is_absent_or_unusable_has_runcs_words_and_codes() {
    let Some(rig) = Rig::new("run") else { return };
    for (program, code, words) in [
        ("absent", 127, "exec: \"absent\": executable file not found in $PATH"),
        ("/bin/absent", 127, "exec: \"/bin/absent\": stat /bin/absent: no such file or directory"),
        ("unusable", 126, "exec: \"unusable\": permission denied"),
    ] {
        rig.bundle("p", &[program]);
        let output = rig.run(&["run", "-b", "p", "c"]);
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(code));
        rig.assert_clean();
    }
}

#[test]
fn bind_source_that_is_absent_is_named_by_field() {
    let Some(rig) = Rig::new("run") else { return };
    rig.bundle_with("m", &["exit", "0"], |spec| {
        let mount = r#"[{"destination": "/a", "type": "bind", "source": "/nowhere/x"}]"#;
        spec["mounts"] = serde_json::from_str(mount).unwrap();
    });
    let output = rig.run(&["run", "-b", "m", "c"]);
    let line = "bulkhead: opening the container's files: mounts[0].source: /nowhere/x: No such";
    assert!(stderr(&output).starts_with(line), "{}", stderr(&output));
    rig.assert_clean();
}

#[test]
fn annotation_beyond_what_the_operator_allows_is_refused() {
    let Some(rig) = Rig::new("run") else { return };
    rig.bundle_with("p", &["exit", "7"], |spec| {
        spec["annotations"]["io.bulkhead.vcpus"] = "2".into();
    });
    let run = |policy, mode| rig.run_with_policy(policy, mode, &["run", "-b", "p", "c"]);
    let allowed = run("[limits]\nvcpus = 2\n", "644");
    assert_eq!(allowed.status.code(), Some(7), "{}", stderr(&allowed));
    for (policy, mode, shown) in [
        (
            "[limits]\nvcpus = 1\n",
            "644",
            "bulkhead: planning the sandbox: annotations[\"io.bulkhead.vcpus\"]: \"2\" is not allowed: \
             this host's operator allows at most 1 by limits.vcpus (/etc/bulkhead/config.toml says what is)\n",
        ),
        (
            "annotations = []\n",
            "644",
            "bulkhead: planning the sandbox: annotations[\"io.bulkhead.vcpus\"]: \"2\" is not allowed: \
             this host's operator does not allow the annotation",
        ),
        (
            "",
            "666",
            "bulkhead: reading the host's configuration: /etc/bulkhead/config.toml belongs to user 0 \
             with mode 666, and others than root could change it",
        ),
        (
            "limits",
            "644",
            "bulkhead: reading the host's configuration: /etc/bulkhead/config.toml, line 1: ",
        ),
    ] {
        let output = run(policy, mode);
        assert!(stderr(&output).starts_with(shown), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(1));
    }
    rig.assert_clean();
}

#[test]
fn missing_parts_of_the_installation_are_named() {
    let Some(rig) = Rig::new("run") else { return };
    for part in ["vmlinux", "bulkhead-fsd", "bulkhead-vmm"] {
        std::fs::remove_file(rig.path(part)).unwrap();
        let output = rig.run(&["run", "-b", "b", "c"]);
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
        assert!(stderr(&output).contains("finding the installation"), "{}", stderr(&output));
        rig.assert_clean();
    }
}
