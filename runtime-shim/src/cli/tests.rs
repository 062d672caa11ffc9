//! Argument vectors of real clients, and what must be refused.

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    let words = std::iter::once("bulkhead").chain(line.split_ascii_whitespace());
    Cli::try_parse_from(words)
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
fn descriptors_of_the_host_are_refused_by_name() {
    for (preserve, socket, name) in [(1, false, "--preserve-fds"), (0, true, "--pidfd-socket")] {
        let refused = create::refuse_descriptors(preserve, socket).unwrap_err();
        assert!(refused.cause.starts_with(name));
    }
    create::refuse_descriptors(0, false).unwrap();
}

#[test]
fn command_line_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn error_of_the_command_line_is_one_line() {
    let shown = |line: &str| usage_failure(&parse(line).unwrap_err()).to_string();
    let invalid = shown("run -b /b a/b");
    assert!(invalid.starts_with("reading the command line: invalid value 'a/b' for '<ID>'"));
    assert!(invalid.contains("container id \"a/b\" is invalid") && !invalid.contains('\n'));
    let missing = shown("start");
    assert!(missing.contains("required arguments were not provided: <ID>"), "{missing}");
    let unknown = shown("frobnicate c");
    assert!(unknown.contains("unrecognized subcommand 'frobnicate'"), "{unknown}");
}
