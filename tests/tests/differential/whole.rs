//! The same bundles under runc and under bulkhead, each in a microVM of its own: what a program
//! inside sees must agree.

use std::process::Command;

use bulkhead_tests::{Bundle, Outcome, bulkhead, run, unique_id};
use serde_json::json;

fn under(program: Command, bundle: &Bundle) -> Outcome {
    let mut program = program;
    run(program.args(["run", "--bundle"]).arg(bundle.path()).arg(unique_id("diff")))
}

#[track_caller]
fn assert_same(name: &str, bundle: &Bundle) {
    let ours = under(bulkhead(), bundle);
    let runc = under(Command::new("runc"), bundle);
    assert_eq!(ours.code, runc.code, "{name}: {} / {}", ours.stderr, runc.stderr);
    assert_eq!(ours.text(), runc.text(), "{name}");
}

/// Everything that a program can easily ask about itself, in one boot. Left out is what a guest
/// has of its own and why: the limit of processes (the kernel derives it from the memory), and
/// files that the guest kernel does not have at all, so that there is nothing to mask (kcore and
/// `/dev/core`, ACPI, sysrq).
const PROBE: &str = "id; pwd; umask; hostname; echo $HOME $PATH $EXTRA; \
    grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; ulimit -n; ulimit -c; \
    cat /proc/self/oom_score_adj; ls /dev | grep -v -E '^(console|core|mqueue)$'; \
    cut -d' ' -f2,3 /proc/mounts | grep -E '^/(proc|sys|dev)' | sort \
        | grep -v -E '^/proc/(acpi|kcore|sysrq-trigger) '; \
    cat /proc/sys/kernel/domainname; cat /proc/1/comm; cat /proc/net/dev | wc -l; \
    touch /proc/sys/x; echo $?; cat /proc/keys | wc -l; ls /sys/firmware | wc -l";

#[test]
fn default_configuration_looks_the_same() {
    assert_same("default", &Bundle::script(PROBE));
}

#[test]
fn changed_process_looks_the_same() {
    let mut bundle = Bundle::script(PROBE);
    bundle.edit(|config| {
        config["hostname"] = json!("other");
        let process = &mut config["process"];
        process["user"] =
            json!({"uid": 1000, "gid": 1000, "umask": 0o27, "additionalGids": [5, 6]});
        process["cwd"] = json!("/tmp");
        process["env"] = json!(["PATH=/bin:/x", "EXTRA=1", "HOME=/tmp"]);
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 2048, "soft": 512}]);
        process["oomScoreAdj"] = json!(100);
        process["capabilities"] = json!({"bounding": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"],
            "effective": [], "inheritable": [], "ambient": []});
    });
    assert_same("process", &bundle);
}

#[test]
fn seccomp_and_read_only_root_look_the_same() {
    let mut bundle = Bundle::script(
        "mkdir /tmp/x; echo $?; grep -E '^(Seccomp:|NoNew)' /proc/self/status; uname -s; echo x > /file",
    );
    bundle.edit(|config| {
        config["root"]["readonly"] = json!(true);
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
        });
    });
    assert_same("seccomp", &bundle);
}

#[test]
fn exit_codes_agree() {
    for script in ["exit 0", "exit 200", "kill -TERM $$", "no-such-command"] {
        assert_same(script, &Bundle::script(script));
    }
}
