//! `exec` with every property of a process, in a container with a seccomp policy.

use serde_json::{Value, json};

use crate::case::{Area, Case, Form};

const AREA: Area = Area("exec");

fn look(name: impl Into<String>, script: &str) -> Case {
    AREA.case(name, script).form(Form::Exec)
}

fn bare(name: impl Into<String>, script: &str) -> Case {
    AREA.bare(name, script).form(Form::Exec)
}

fn users() -> Vec<Case> {
    let files =
        "id; rm -rf /tmp/f; touch /tmp/f; stat -c '%a %u %g' /tmp/f; rm -f /tmp/f; cat /opt/secret";
    let mut cases = Vec::new();
    for user in [
        json!({"uid": 0, "gid": 0}),
        json!({"uid": 1000, "gid": 1000}),
        json!({"uid": 5, "gid": 0}),
        json!({"uid": 0, "gid": 7, "additionalGids": [8, 9]}),
        json!({"uid": 1000, "gid": 5, "additionalGids": [100]}),
        json!({"uid": 0, "gid": 0, "umask": 0o77}),
        json!({"uid": 1000, "gid": 1000, "umask": 0}),
    ] {
        let case = look(format!("user {user}"), files);
        // runc 1.1 sets no umask here.
        let case = if user.get("umask").is_some() { case.crun() } else { case };
        cases.push(case.set("/user", user));
    }
    cases
}

fn rights() -> Vec<Case> {
    let mut cases = Vec::new();
    let sets = ["bounding", "effective", "inheritable", "permitted", "ambient"];
    for list in
        [json!([]), json!(["CAP_CHOWN"]), json!(["CAP_KILL", "CAP_NET_RAW", "CAP_SYS_ADMIN"])]
    {
        for uid in [0, 1000] {
            let all: Value = sets.iter().map(|set| ((*set).to_owned(), list.clone())).collect();
            let case = look(format!("capabilities {list} of {uid}"), "");
            cases.push(case.set("/capabilities", all).set("/user/uid", json!(uid)));
        }
    }
    cases.push(look("no capabilities given", "").remove("", "capabilities").explained(
        "exec-without-capabilities",
        &["CapPrm:\t0000000020000420", "CapEff:\t0000000020000420", "CapBnd:\t0000000020000420"],
        &["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"],
    ));
    for privileges in [true, false] {
        let case = look(format!("noNewPrivileges {privileges}"), "");
        cases.push(case.set("/noNewPrivileges", json!(privileges)));
    }
    let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 55, "hard": 66},
        {"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]);
    // The Go that runc 1.1 is made with raises the soft limit of files.
    cases.push(look("rlimits", "").set("/rlimits", limits).crun());
    for score in [-500, 0, 700] {
        let case = look(format!("oomScoreAdj {score}"), "").set("/oomScoreAdj", json!(score));
        cases.push(match score {
            0 => case,
            _ => case.explained("exec-oom-score", &["0"], &[&score.to_string()]),
        });
    }
    let denied = "mkdir /tmp/denied; echo $?; grep -E '^Seccomp' /proc/self/status";
    cases.push(bare("seccomp policy of the container", denied));
    let user = bare("seccomp policy of the container, for a user", denied);
    cases.push(user.set("/user", json!({"uid": 1000, "gid": 1000})));
    cases
}

fn programs() -> Vec<Case> {
    let path = "PATH=/bin:/opt";
    let mut cases = Vec::new();
    for cwd in ["/", "/tmp", "/opt", "/proc/self"] {
        let name = format!("cwd {cwd}");
        cases.push(bare(name, "echo $PWD | sed 's/[0-9][0-9]*/N/'").set("/cwd", json!(cwd)));
    }
    cases.push(
        bare("cwd that is missing", "pwd").set("/cwd", json!("/missing")).refused("/missing"),
    );
    for list in [
        json!([path]),
        json!([path, "A=1", "A=2"]),
        json!([path, "HOME=/x", "TERM=t"]),
        json!([path, "E="]),
    ] {
        cases.push(look(format!("env {list}"), "env").set("/env", list));
    }
    cases.push(
        bare("HOME of a user", "echo $HOME")
            .set("/env", json!([path]))
            .set("/user/uid", json!(1000)),
    );
    let args = |name: &str, list: Value| bare(name, "").set("/args", list);
    cases.push(args("script", json!(["/opt/script", "x"])));
    cases.push(args("script by PATH", json!(["script", "x", "y"])).set("/env", json!([path])));
    for (name, list, says) in [
        ("program that is missing", json!(["/opt/missing"]), "no such file or directory"),
        ("program that is not in PATH", json!(["missing"]), "executable file not found in $PATH"),
        ("program that is not executable", json!(["/opt/text"]), "permission denied"),
        ("program that is a directory", json!(["/opt"]), "permission denied"),
        ("no program", json!([]), "process.args is missing"),
    ] {
        cases.push(args(name, list).refused(says));
    }
    let plain = args("script without a first line", json!(["/opt/plain"]));
    cases.push(plain.refused("exec format error").explained(
        "late-failure",
        &["ended with 1"],
        &["ended with 255"],
    ));
    for code in [0, 1, 42, 127, 255] {
        cases.push(bare(format!("exit {code}"), &format!("echo x; exit {code}")));
    }
    for signal in ["TERM", "KILL", "INT", "ABRT"] {
        cases.push(bare(format!("ends by {signal}"), &format!("echo x; kill -{signal} $$")));
    }
    cases.push(bare("cgroup", "cat /proc/self/cgroup"));
    cases.push(bare(
        "namespaces are the container's",
        "for n in /proc/self/ns/*; do k=${n##*/}; [ $(readlink $n) = \
        $(readlink /proc/1/ns/$k) ] && echo $k; done",
    ));
    cases.push(bare("descriptors", "ls /proc/self/fd | tr '\\n' ' '"));
    cases.push(
        bare("apparmor profile", "echo runs")
            .set("/apparmorProfile", json!("nonsense"))
            .refused("")
            .explained("labels", &["ended with 255"], &["runs", "ended with 0"]),
    );
    cases
}

pub fn cases() -> Vec<Case> {
    [users(), rights(), programs()].into_iter().flatten().collect()
}
