//! `linux.seccomp`: actions, numbers of errors, comparisons of arguments, architectures, flags.

use serde_json::{Value, json};

use crate::case::{Area, Case};

const AREA: Area = Area("seccomp");
const MKDIR: [&str; 2] = ["mkdir", "mkdirat"];
const LOOK: &str =
    "grep -E '^(Seccomp|NoNewPrivs)' /proc/self/status; mkdir /tmp/a; echo $?; ls -d /tmp/a";

fn filter(name: String, script: &str, rules: Value) -> Case {
    AREA.bare(name, script).set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": rules}),
    )
}

fn actions() -> Vec<Case> {
    let mut cases = Vec::new();
    for action in ["ALLOW", "ERRNO", "KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "TRACE", "LOG"]
    {
        let rules = json!([{"names": MKDIR, "action": format!("SCMP_ACT_{action}")}]);
        // The shell starts a process of its own for it, and tells how that ended.
        let script = LOOK.replace("mkdir /tmp/a;", "(/bin/busybox mkdir /tmp/a);");
        let case = filter(format!("action {action}"), &script, rules);
        cases.push(if action == "LOG" { case.crun() } else { case });
    }
    for errno in [1, 2, 13, 38, 95, 255] {
        let rules = json!([{"names": MKDIR, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]);
        cases.push(filter(format!("error {errno}"), LOOK, rules));
    }
    let trace = json!([{"names": MKDIR, "action": "SCMP_ACT_TRACE", "errnoRet": 12}]);
    cases.push(filter("trace with a number".into(), LOOK, trace));
    for privileges in [false, true] {
        let rules = json!([{"names": MKDIR, "action": "SCMP_ACT_ERRNO"}]);
        let case = filter(format!("with noNewPrivileges {privileges}"), LOOK, rules);
        cases.push(case.set("/process/noNewPrivileges", json!(privileges)));
        let rules = json!([{"names": MKDIR, "action": "SCMP_ACT_ERRNO"}]);
        let case = filter(format!("of a user with noNewPrivileges {privileges}"), LOOK, rules);
        let case = case.set("/process/noNewPrivileges", json!(privileges));
        cases.push(case.set("/process/user", json!({"uid": 1000, "gid": 1000})));
    }
    cases
}

/// `kill -N 1` looks at the first and second argument of kill(2); signal 0 asks only.
fn arguments() -> Vec<Case> {
    let script = "for n in 0 18 28; do kill -$n 1 2>/dev/null; echo $n $?; done";
    let mut cases = Vec::new();
    for operator in ["NE", "LT", "LE", "EQ", "GE", "GT"] {
        let args = json!([{"index": 1, "value": 18, "op": format!("SCMP_CMP_{operator}")}]);
        let rules = json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": args}]);
        cases.push(filter(format!("operator {operator}"), script, rules));
    }
    for mask in [2, 16, 0] {
        let args =
            json!([{"index": 1, "value": mask, "valueTwo": mask, "op": "SCMP_CMP_MASKED_EQ"}]);
        let rules = json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": args}]);
        cases.push(filter(format!("operator MASKED_EQ of {mask}"), script, rules));
    }
    let both = json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 28, "op": "SCMP_CMP_EQ"},
    ]);
    let rules = json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": both}]);
    cases.push(filter("two arguments".into(), script, rules));
    let same = json!([
        {"index": 1, "value": 18, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 28, "op": "SCMP_CMP_EQ"},
    ]);
    let rules = json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": same}]);
    cases.push(filter("one argument twice, which is an or".into(), script, rules));
    cases
}

fn policies() -> Vec<Case> {
    let with = |name: &str, policy: Value| AREA.bare(name, LOOK).set("/linux/seccomp", policy);
    let deny = json!([{"names": MKDIR, "action": "SCMP_ACT_ERRNO", "errnoRet": 9}]);
    let allow = "SCMP_ACT_ALLOW";
    vec![
        with("no rules", json!({"defaultAction": allow})),
        with(
            "names that no kernel knows",
            json!({"defaultAction": allow,
            "syscalls": [{"names": ["nonsense", "mkdir", "mkdirat"],
            "action": "SCMP_ACT_ERRNO"}]}),
        ),
        with(
            "two architectures",
            json!({"defaultAction": allow,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": deny}),
        ),
        with(
            "three architectures",
            json!({"defaultAction": allow,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": deny}),
        ),
        with("no architecture", json!({"defaultAction": allow, "syscalls": deny})),
        with(
            "flag LOG",
            json!({"defaultAction": allow, "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": deny}),
        )
        .crun(),
        with(
            "flag TSYNC",
            json!({"defaultAction": allow,
            "flags": ["SECCOMP_FILTER_FLAG_TSYNC"], "syscalls": deny}),
        )
        .crun(),
        with(
            "flag SPEC_ALLOW",
            json!({"defaultAction": allow,
            "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"], "syscalls": deny}),
        )
        .crun(),
        with(
            "default that logs",
            json!({"defaultAction": "SCMP_ACT_LOG",
            "syscalls": deny}),
        )
        .crun(),
        with(
            "unknown action",
            json!({"defaultAction": allow, "syscalls": [{"names": MKDIR,
            "action": "SCMP_ACT_NONSENSE"}]}),
        )
        .refused("`SCMP_ACT_NONSENSE`"),
        with("unknown default", json!({"defaultAction": "SCMP_ACT_NONSENSE"}))
            .refused("`SCMP_ACT_NONSENSE`"),
        with(
            "unknown architecture",
            json!({"defaultAction": allow,
            "architectures": ["SCMP_ARCH_NONSENSE"]}),
        )
        .refused("`SCMP_ARCH_NONSENSE`"),
        with(
            "unknown operator",
            json!({"defaultAction": allow, "syscalls": [{"names": MKDIR,
            "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1,
            "op": "SCMP_CMP_NONSENSE"}]}]}),
        )
        .refused("`SCMP_CMP_NONSENSE`"),
        with(
            "unknown flag",
            json!({"defaultAction": allow,
            "flags": ["SECCOMP_FILTER_FLAG_NONSENSE"], "syscalls": deny}),
        )
        .refused("`SECCOMP_FILTER_FLAG_NONSENSE`"),
        with(
            "notification without a listener",
            json!({"defaultAction": allow,
            "syscalls": [{"names": MKDIR, "action": "SCMP_ACT_NOTIFY"}]}),
        )
        .refused("linux.seccomp.syscalls[0].action (SCMP_ACT_NOTIFY)"),
    ]
}

/// A default that denies: the rules allow what a shell and its tools need.
fn denying() -> Vec<Case> {
    let needed = [
        "read",
        "write",
        "open",
        "openat",
        "close",
        "stat",
        "fstat",
        "lstat",
        "newfstatat",
        "statx",
        "mmap",
        "mprotect",
        "munmap",
        "brk",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "ioctl",
        "access",
        "pipe",
        "dup",
        "dup2",
        "getpid",
        "getppid",
        "clone",
        "fork",
        "vfork",
        "execve",
        "exit",
        "exit_group",
        "wait4",
        "uname",
        "fcntl",
        "getcwd",
        "chdir",
        "getuid",
        "geteuid",
        "getgid",
        "getegid",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "prlimit64",
        "rseq",
        "getrandom",
        "readlink",
        "readlinkat",
        "prctl",
        "capget",
        "capset",
        "futex",
        "setuid",
        "setgid",
        "setgroups",
        "faccessat",
        "faccessat2",
        "statfs",
        "fstatfs",
        "lseek",
        "getdents64",
        "pread64",
        "epoll_ctl",
        "epoll_pwait",
        "epoll_create1",
        "nanosleep",
        "sched_yield",
        "getpgrp",
        "umask",
        "sigaltstack",
        "mremap",
        "madvise",
        "tgkill",
        "gettid",
        "poll",
        "ppoll",
        "close_range",
        "writev",
        "readv",
        "signalfd4",
        "sendmsg",
        "recvmsg",
        "sendto",
        "recvfrom",
        "seccomp",
        "setresuid",
        "setresgid",
        "fchown",
        "sysinfo",
        "getuid32",
        "setfsuid",
        "setfsgid",
        "clone3",
        "dup3",
        "pipe2",
        "kill",
        "eventfd2",
    ];
    let mut cases = Vec::new();
    for (action, number) in [("ERRNO", Some(1)), ("ERRNO", Some(38)), ("ERRNO", None)] {
        let mut policy = json!({
            "defaultAction": format!("SCMP_ACT_{action}"),
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": &needed[..], "action": "SCMP_ACT_ALLOW"}],
        });
        if let Some(number) = number {
            policy["defaultErrnoRet"] = json!(number);
        }
        let script = format!("{LOOK}; sync; echo $?; chmod 700 /tmp; echo $?");
        let case = AREA.bare(format!("default {action} {number:?}"), &script);
        let case = case.set("/linux/seccomp", policy);
        cases.push(if number.is_some() { case.crun() } else { case });
    }
    cases
}

pub fn cases() -> Vec<Case> {
    [actions(), arguments(), policies(), denying()].into_iter().flatten().collect()
}
