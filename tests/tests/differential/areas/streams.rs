//! Standard streams: terminals and their size, input of each kind, descriptors.

use serde_json::json;

use crate::case::{Area, Case, Form};

const AREA: Area = Area("streams");

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let look = "tty; stty size; stty -a | tail -n +2 | tr -s ' ;' '\\n' | grep -v onlcr; stat -c \
        '%F %t %u %g %a' $(tty); ls -l /dev/console | cut -c1-10; ls /proc/self/fd | tr '\\n' ' \
        '; grep -E '^(Uid|CapEff)' /proc/self/status";
    for uid in [0, 1000] {
        for (rows, columns) in [(24, 80), (50, 132), (0, 0)] {
            let case = AREA.bare(format!("terminal {rows}x{columns} of {uid}"), look);
            let case =
                case.set("/process/terminal", json!(true)).set("/process/user/uid", json!(uid));
            cases.push(case.form(Form::Terminal(rows, columns)));
        }
    }
    let ends = AREA.bare("ends of lines of a terminal", "stty -a | grep -o -- '-*onlcr'");
    let ends =
        ends.set("/process/terminal", json!(true)).explained("line-ends", &["-onlcr"], &["onlcr"]);
    cases.push(ends.form(Form::Terminal(24, 80)));
    let sized = AREA.bare("terminal with consoleSize", "stty size");
    let sized = sized.set("/process/terminal", json!(true));
    let sized = sized.set("/process/consoleSize", json!({"height": 33, "width": 44}));
    cases.push(sized.form(Form::Terminal(24, 80)));
    let none = AREA.bare("consoleSize without a terminal", "tty; stty size");
    cases.push(none.set("/process/consoleSize", json!({"height": 33, "width": 44})));
    let open = AREA.bare(
        "streams of a terminal opened again",
        "echo a > /dev/stdout; echo b > /dev/stderr; echo c > /dev/tty",
    );
    let open = open.set("/process/terminal", json!(true)).set("/process/user/uid", json!(1000));
    cases.push(open.form(Form::Terminal(24, 80)));
    cases.push(AREA.bare(
        "no terminal",
        "tty; (: < /dev/tty) 2>/dev/null; echo $?; ls -l /dev/console 2>/dev/null | wc -l",
    ));
    cases.push(AREA.bare("input of a pipe", "cat; echo end $?").input("line one\nline two\n"));
    cases.push(AREA.bare("input that is empty", "cat; echo end $?").input(""));
    cases.push(
        AREA.bare("input of one line that is read", "read a; echo $a; read b; echo $? $b")
            .input("first\nlast"),
    );
    cases.push(AREA.bare("input that nobody reads", "echo end").input("unread\n"));
    cases.push(AREA.bare("input of /dev/null", "cat; echo $?"));
    // Both hand on what they read.
    let kind = "readlink /proc/self/fd/0 | cut -d: -f1";
    cases.push(AREA.bare("input that is a device", kind));
    cases.push(AREA.bare("descriptors", "ls /proc/self/fd | tr '\\n' ' '"));
    cases.push(
        AREA.bare(
            "streams that are pipes",
            "for n in 0 1 2; do readlink /proc/self/fd/$n | cut -d: -f1; done",
        )
        .input(""),
    );
    cases.push(
        AREA.bare(
            "output of a user opened again",
            "echo a > /dev/stdout; echo b > /dev/stderr; echo $?",
        )
        .set("/process/user/uid", json!(1000)),
    );
    cases.push(AREA.bare("much output", "seq 20000"));
    cases.push(AREA.bare("output without an end of line", "printf 'no end'"));
    cases.push(AREA.bare("output of all bytes", "printf '\\000\\001\\377\\200\\r\\n'"));
    cases.push(
        AREA.bare("preserved descriptor", "ls /proc/self/fd | tr '\\n' ' '; cat <&3")
            .preserved("of the caller\n"),
    );
    cases
}
