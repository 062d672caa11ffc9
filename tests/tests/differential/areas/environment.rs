//! The process besides its ids: arguments, environment, working directory, end, scheduling.

use serde_json::{Value, json};

use crate::case::{Area, Case};

const AREA: Area = Area("process");

fn args(name: &str, list: Value) -> Case {
    AREA.bare(name, "").set("/process/args", list)
}

/// Programs that run, and those that do not: 127 and 126 are what a shell says of them.
fn programs() -> Vec<Case> {
    let fails = |name: &str, list: Value, says: &str, code: i32| {
        let (runc, ours) = ("ended with 1", format!("ended with {code}"));
        args(name, list).refused(says).explained("exit-codes", &[runc], &[&ours])
    };
    let late = |name: &str, list: Value, says: &str| {
        let (runc, ours) = ("ended with 1", "ended with 255");
        args(name, list).refused(says).explained("late-failure", &[runc], &[ours])
    };
    let no_path = "executable file not found in $PATH";
    vec![
        args("program by its path", json!(["/bin/echo", "a", "", "b c"])),
        args("program by PATH", json!(["echo", "found"])),
        args("script", json!(["/opt/script", "one"])),
        args("script by a relative path", json!(["./script", "two"]))
            .set("/process/cwd", json!("/opt")),
        args("script by PATH", json!(["script"])).set("/process/env", json!(["PATH=/opt:/bin"])),
        args(
            "many arguments",
            json!(
                (0..300)
                    .map(|n| if n == 0 { "echo".into() } else { n.to_string() })
                    .collect::<Vec<_>>()
            ),
        ),
        args("large argument", json!(["/bin/echo", "x".repeat(100_000)])),
        args("argument of another alphabet", json!(["/bin/echo", "ä\u{1F600}\n\t\"'\\"])),
        fails(
            "program that is missing",
            json!(["/opt/missing"]),
            "/opt/missing: no such file or directory",
            127,
        ),
        fails("program that is not in PATH", json!(["missing"]), no_path, 127),
        fails("program that is not executable", json!(["/opt/text"]), "permission denied", 126),
        fails("program that is a directory", json!(["/opt"]), "permission denied", 126),
        fails("program without PATH", json!(["echo", "x"]), no_path, 127)
            .set("/process/env", json!([])),
        late("script without a first line", json!(["/opt/plain"]), "exec format error"),
        late(
            "script whose interpreter is missing",
            json!(["/opt/lost"]),
            "exec /opt/lost: no such file or directory",
        ),
    ]
}

fn environment() -> Vec<Case> {
    let long = format!("LONG={}", "v".repeat(50_000));
    let path = "PATH=/bin";
    let lists = [
        ("environment of two", json!([path, "A=1", "B=two words"])),
        ("variable given twice", json!([path, "A=1", "A=2", "B=3"])),
        ("variable without a value", json!([path, "A="])),
        ("value with an equals sign", json!([path, "A=b=c"])),
        ("value of two lines", json!([path, "A=b\nc"])),
        ("large variable", json!([path, long])),
        ("HOME that is given", json!([path, "HOME=/tmp"])),
        ("HOME that is empty", json!([path, "HOME="])),
        ("name of odd letters", json!([path, "a.b-c=1", "1=2"])),
        ("PATH given twice", json!(["PATH=/nowhere", path])),
        ("TERM and others of a shell", json!([path, "TERM=vt100", "LANG=C", "TZ=UTC"])),
    ];
    let mut cases: Vec<Case> = lists
        .into_iter()
        .map(|(name, list)| AREA.case(name, "env").set("/process/env", list))
        .collect();
    for uid in [0, 1000, 5] {
        let case = AREA.case(format!("HOME of {uid}"), "echo $HOME; cd; pwd");
        cases.push(case.set("/process/env", json!([path])).set("/process/user/uid", json!(uid)));
    }
    cases
}

fn directory() -> Vec<Case> {
    let mut cases: Vec<Case> =
        ["/", "/tmp", "/opt", "/proc", "/tmp/new/deep", "/bin/../tmp", "/tmp/./x", "//tmp//"]
            .into_iter()
            .map(|cwd| {
                let look = "pwd -P; ls -ld . | cut -c1-10; stat -c '%u %g %a' .";
                AREA.case(format!("cwd {cwd}"), look).set("/process/cwd", json!(cwd))
            })
            .collect();
    let user = AREA.case("cwd that is new, of a user", "pwd; stat -c '%u %g %a' .");
    cases.push(user.set("/process/cwd", json!("/tmp/own")).set("/process/user/uid", json!(1000)));
    cases.push(
        AREA.bare("cwd that is a file", "pwd")
            .set("/process/cwd", json!("/opt/text"))
            .refused("/opt/text"),
    );
    cases
}

fn ends() -> Vec<Case> {
    let mut cases = Vec::new();
    for code in [0, 1, 2, 42, 126, 127, 128, 137, 255] {
        cases.push(AREA.bare(format!("exit {code}"), &format!("echo end; exit {code}")));
    }
    for signal in ["TERM", "INT", "HUP", "KILL", "STOP"] {
        // The first process of a pid namespace has no default actions.
        let name = format!("{signal} to itself");
        cases.push(AREA.bare(name, &format!("echo a; kill -{signal} $$; echo b")));
        if signal != "STOP" {
            let child = format!("sh -c 'kill -{signal} $$; echo alive'; echo $?");
            cases.push(AREA.bare(format!("{signal} to a child"), &child));
        }
    }
    let trap = "trap 'echo caught; exit 9' TERM; kill -TERM $$; echo lost";
    cases.push(AREA.bare("signal that is caught", trap));
    cases.push(AREA.bare("orphans", "(true &); (sleep 100 &); echo done; exit 3"));
    cases.push(AREA.bare(
        "child that reaps nothing",
        "sh -c 'exit 4' & wait $!; echo $?; ps -o pid,comm | head -2 | tail -1",
    ));
    cases
}

fn scheduling() -> Vec<Case> {
    let mut cases = Vec::new();
    for score in [-1000, -1, 0, 1, 500, 1000] {
        let case = AREA.case(format!("oomScoreAdj {score}"), "cat /proc/1/oom_score_adj");
        cases.push(case.set("/process/oomScoreAdj", json!(score)));
    }
    for domain in ["LINUX", "LINUX32"] {
        let case =
            AREA.case(format!("personality {domain}"), "uname -m; cat /proc/self/personality");
        cases.push(case.set("/linux/personality", json!({"domain": domain})).crun());
    }
    cases
}

pub fn cases() -> Vec<Case> {
    [programs(), environment(), directory(), ends(), scheduling()].into_iter().flatten().collect()
}
