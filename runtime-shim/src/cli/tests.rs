//! Argument vectors of real clients, and what must be refused.

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    let words = std::iter::once("bulkhead").chain(line.split_ascii_whitespace());
    Cli::parse_as_runc(words)
}

#[test]
fn argument_vectors_of_clients_are_understood() {
    for line in [
        // containerd's runc shim.
        "--root /r --log /b/log.json --log-format json create --bundle /b --pid-file /f c",
        "--root /r --log /l --log-format json create --bundle /b --pid-file /f --console-socket /s c",
        "--root /r --log /l --log-format json start c",
        "--root /r --log /l --log-format json delete c",
        "--root /r --log /l --log-format json delete --force c",
        "--root /r --log /l --log-format json kill c 9",
        "--root /r --log /l --log-format json kill --all c 9",
        "--root /r --log /l --log-format json ps --format json c",
        "--root /r exec --process /p --console-socket /s --detach --pid-file /f c",
        "--root /r exec --process /p --detach --pid-file /f c",
        // go-runc.
        "--debug --systemd-cgroup --rootless= --root /r create --no-pivot --no-new-keyring \
         --preserve-fds 0 c",
        "--rootless=auto list --format json",
        "--version",
        // podman's conmon.
        "create --bundle /b --pid-file /f c",
        "create --bundle /b --pid-file /f --console-socket /s c",
        "exec --pid-file /f --process /p --detach c",
        "exec --pid-file /f --process /p --tty --console-socket /s --detach c",
        "kill c 15",
        "state c",
        // People.
        "run -b /b c",
        "run -d --keep --no-subreaper -b /b c",
        "run c",
        "exec -t -e A=b -u 1:2 --cwd / -g 3 -c CAP_KILL c sh -c ls",
        "exec c ls -la --color",
        "kill c",
        "list -q",
        "ps c -ef",
        "spec",
        "spec -b /b --rootless",
        "features",
        "doctor",
        "-v",
    ] {
        parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

#[test]
fn options_behind_the_container_of_exec_belong_to_the_command() {
    let cli = parse("exec -t c ls -t --env x").unwrap();
    let Some(Command::Exec(args)) = cli.command else { panic!("not exec") };
    assert!(args.tty && args.env.is_empty());
    assert_eq!(args.command, ["ls", "-t", "--env", "x"]);
}

#[test]
fn what_no_client_sends_is_refused() {
    for line in [
        "",
        "run",
        "run a b",
        "run ../x",
        "run .",
        "create -b /b a/b",
        "start",
        "start a b",
        "kill",
        "exec c",
        "--log-format xml list",
        "list --format yaml",
        "exec -u root c ls",
        "create --preserve-fds -1 c",
        "frobnicate c",
    ] {
        let refused = match parse(line) {
            Err(_) => true,
            // A missing command of exec is told later, as runc does.
            Ok(cli) => matches!(cli.command, Some(Command::Exec(args)) if args.command.is_empty()),
        };
        assert!(refused, "{line}");
    }
}

#[test]
fn listening_sockets_of_the_host_are_refused_by_name() {
    let environment = |pid: u32| {
        move |name: &str| match name {
            "LISTEN_PID" => Some(pid.to_string()),
            "LISTEN_FDS" => Some("2".to_owned()),
            _ => None,
        }
    };
    let refused = create::refuse_activation(environment(std::process::id())).unwrap_err();
    assert!(refused.cause.starts_with("LISTEN_FDS: "));
    create::refuse_activation(environment(1)).unwrap();
    create::refuse_activation(|_| None).unwrap();
}

#[test]
fn rootless_is_read_as_runc_reads_it() {
    for (given, good) in [("", true), ("auto", true), ("false", true), ("0", true)] {
        let cli = parse(&format!("--rootless={given} create c")).unwrap();
        assert_eq!(cli.global.check_rootless().is_ok(), good, "{given}");
    }
    for given in ["true", "1", "perhaps"] {
        let cli = parse(&format!("--rootless={given} create c")).unwrap();
        let refused = cli.global.check_rootless().unwrap_err();
        assert!(refused.cause.starts_with(&format!("--rootless={given}: ")), "{refused}");
    }
}

#[test]
fn root_that_is_the_whole_machine_is_refused() {
    for root in ["/", "/proc/.."] {
        let refused = parse(&format!("--root {root} list")).unwrap().global.check_root();
        assert!(refused.unwrap_err().cause.contains("--root"), "{root}");
    }
    parse("--root /nowhere list").unwrap().global.check_root().unwrap();
}

#[test]
fn flags_take_the_values_that_those_of_go_take() {
    let cli = parse("--debug=false --systemd-cgroup=1 run --detach=true --keep=f c").unwrap();
    assert!(!cli.global.debug && cli.global.systemd_cgroup);
    let Some(Command::Run(args)) = cli.command else { panic!("not run") };
    assert!(args.detach && !args.keep);
    let cli = parse("exec -t -t --cwd /a --cwd /b -e A -e B c ls").unwrap();
    let Some(Command::Exec(args)) = cli.command else { panic!("not exec") };
    assert!(args.tty && args.env == ["A", "B"]);
    assert_eq!(args.cwd.as_deref(), Some(std::path::Path::new("/b")));
    assert!(parse("--debug=maybe list").is_err());
}

#[test]
fn dashes_are_those_of_go() {
    let cli = parse("-root=/r -debug run -bundle /b --d c").unwrap();
    assert!(cli.global.debug && cli.global.root.as_os_str() == "/r");
    let Some(Command::Run(args)) = cli.command else { panic!("not run") };
    assert!(args.detach && args.bundle.bundle.as_os_str() == "/b");
    let cli = parse("exec -user 1:2 -tty=false -t=true c ls -tty").unwrap();
    let Some(Command::Exec(args)) = cli.command else { panic!("not exec") };
    assert!(args.tty && args.user.is_some());
    assert_eq!(args.command, ["ls", "-tty"]);
    parse("launch -it --rm img -tty").unwrap();
    assert!(parse("run -bundel /b c").is_err());
}

#[test]
fn checkpoint_and_restore_are_refused_by_name() {
    let line = "restore --image-path /i --work-path /w --tcp-established --ext-unix-sk \
                --shell-job --file-locks --manage-cgroups-mode soft --empty-ns network \
                --auto-dedup --lazy-pages --console-socket /s -b /b -d --pid-file /p \
                --no-subreaper --no-pivot --lsm-profile apparmor:x --lsm-mount-context y c";
    let refused = dispatch(parse(line).unwrap()).unwrap_err();
    assert_eq!((refused.cause.as_str(), refused.code), ("restore is not supported yet", 1));
    let line = "checkpoint --image-path /i --work-path /w --parent-path /p --leave-running \
                --tcp-established --tcp-skip-in-flight --link-remap --ext-unix-sk --shell-job \
                --lazy-pages --status-fd -1 --page-server 1.2.3.4:5 --file-locks --pre-dump \
                --manage-cgroups-mode soft --empty-ns network --auto-dedup c";
    parse(line).unwrap();
}

#[test]
fn own_processes_are_no_part_of_the_command_line() {
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let internal = Internal::of(&words(&["bulkhead", SUPERVISE, "c", "7"]));
    assert!(matches!(internal, Some(Internal::Supervise(InternalArgs { channel: 7, .. }))));
    let internal = Internal::of(&words(&["bulkhead", EXEC_PROCESS, "c", "7"]));
    assert!(matches!(internal, Some(Internal::ExecProcess(_))));
    assert!(Internal::of(&words(&["bulkhead", "list"])).is_none());
    assert!(parse("supervise c 7").is_err());
}

#[test]
fn command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn value_that_exec_cannot_use_ends_with_255_as_with_runc() {
    for (line, code) in [
        ("exec a/b ls", 255),
        ("exec -u root c ls", 255),
        ("exec --nonsense c ls", 1),
        ("exec", 1),
        ("state a/b", 1),
        ("launch --nonsense", 125),
    ] {
        let words: Vec<_> =
            std::iter::once("bulkhead").chain(line.split(' ')).map(OsString::from).collect();
        let error = Cli::parse_as_runc(&words).unwrap_err();
        assert_eq!(usage_code(&error, &words), code, "{line}");
    }
}

#[test]
fn error_of_the_command_line_is_one_line() {
    let shown = |line: &str| usage_failure(&parse(line).unwrap_err()).to_string();
    let invalid = shown("run -b /b a/b");
    assert!(invalid.starts_with("reading the command line: invalid value 'a/b' for '<ID>'"));
    assert!(invalid.contains("invalid container ID format: \"a/b\"") && !invalid.contains('\n'));
    let missing = shown("start");
    assert!(missing.contains("required arguments were not provided: <ID>"), "{missing}");
    let unknown = shown("frobnicate c");
    assert!(unknown.contains("unrecognized subcommand 'frobnicate'"), "{unknown}");
}
