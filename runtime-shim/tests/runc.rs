//! Every command and flag of runc is known to bulkhead: those of runc 1.3 from a list, those of
//! the runc that is installed from its help.

use std::process::Command;

use bulkhead_runtime::cli;

/// Commands of runc 1.3.6 with their flags, hidden ones too; the first are those of runc itself.
const RUNC_1_3: [(&str, &str); 18] = [
    ("", "--criu --debug --log --log-format --root --rootless --systemd-cgroup --version -v"),
    (
        "checkpoint",
        "--auto-dedup --empty-ns --ext-unix-sk --file-locks --image-path --lazy-pages \
         --leave-running --link-remap --manage-cgroups-mode --page-server --parent-path --pre-dump \
         --shell-job --status-fd --tcp-established --tcp-skip-in-flight --work-path",
    ),
    (
        "create",
        "--bundle -b --console-socket --no-new-keyring --no-pivot --pid-file --pidfd-socket \
         --preserve-fds",
    ),
    ("delete", "--force -f"),
    ("events", "--interval --stats"),
    (
        "exec",
        "--additional-gids -g --apparmor --cap -c --cgroup --console-socket --cwd --detach -d \
         --env -e --ignore-paused --no-new-privs --pid-file --pidfd-socket --preserve-fds \
         --process -p --process-label --tty -t --user -u",
    ),
    ("features", ""),
    ("kill", "--all -a"),
    ("list", "--format -f --quiet -q"),
    ("pause", ""),
    ("ps", "--format -f"),
    (
        "restore",
        "--auto-dedup --bundle -b --console-socket --detach -d --empty-ns --ext-unix-sk \
         --file-locks --image-path --lazy-pages --lsm-mount-context --lsm-profile \
         --manage-cgroups-mode --no-pivot --no-subreaper --pid-file --shell-job \
         --tcp-established --work-path",
    ),
    ("resume", ""),
    (
        "run",
        "--bundle -b --console-socket --detach -d --keep --no-new-keyring --no-pivot \
         --no-subreaper --pid-file --pidfd-socket --preserve-fds",
    ),
    ("spec", "--bundle -b --rootless"),
    ("start", ""),
    ("state", ""),
    (
        "update",
        "--blkio-weight --cpu-burst --cpu-idle --cpu-period --cpu-quota --cpu-rt-period \
         --cpu-rt-runtime --cpu-share --cpuset-cpus --cpuset-mems --kernel-memory \
         --kernel-memory-tcp --l3-cache-schema --mem-bw-schema --memory --memory-reservation \
         --memory-swap --pids-limit --resources -r",
    ),
];

/// Which of `flags` the command `name` does not have.
fn unknown<'a>(name: &str, flags: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let all = cli::command();
    let command = match name {
        "" => &all,
        name => all.find_subcommand(name).unwrap_or_else(|| panic!("command {name} is unknown")),
    };
    let has = |flag: &str| {
        command.get_arguments().any(|argument| match flag.strip_prefix("--") {
            Some(long) => argument.get_long() == Some(long),
            None => argument.get_short().is_some_and(|short| flag == format!("-{short}")),
        })
    };
    // Those that clap makes of itself.
    let help = |flag: &str| ["--help", "-h"].contains(&flag);
    let unknown = flags.into_iter().filter(|flag| !help(flag) && !has(flag));
    unknown.map(|flag| format!("{name} {flag}")).collect()
}

#[test]
fn every_flag_of_runc_1_3_is_known() {
    let missing: Vec<String> =
        RUNC_1_3.iter().flat_map(|(name, flags)| unknown(name, flags.split_whitespace())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Help of the installed runc, or None without one.
fn help(arguments: &[&str]) -> Option<String> {
    let output = Command::new("runc").args(arguments).arg("--help").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The lines of a section of the help, without their indentation.
fn section<'a>(help: &'a str, heading: &str) -> impl Iterator<Item = &'a str> {
    let lines = help.lines().skip_while(move |line| *line != heading).skip(1);
    lines.take_while(|line| !line.ends_with("OPTIONS:")).map(str::trim_start)
}

/// `--name value, -n value  text` gives both names.
fn names(line: &str) -> impl Iterator<Item = &str> {
    let flags = line.split("  ").next().filter(|_| line.starts_with('-')).unwrap_or_default();
    flags.split(", ").filter_map(|flag| flag.split(' ').next()).filter(|name| !name.is_empty())
}

#[test]
fn every_flag_of_the_installed_runc_is_known() {
    let Some(general) = help(&[]) else {
        println!("skipped: no runc is installed");
        return;
    };
    let mut missing = unknown("", section(&general, "GLOBAL OPTIONS:").flat_map(names));
    let words = section(&general, "COMMANDS:").filter_map(|line| line.split([' ', ',']).next());
    let commands: Vec<&str> = words.filter(|word| !word.is_empty() && *word != "help").collect();
    assert!(commands.contains(&"create") && commands.contains(&"update"), "{commands:?}");
    let mut seen = 0;
    for command in commands {
        let help = help(&[command]).expect("each command has a help");
        let flags: Vec<&str> = section(&help, "OPTIONS:").flat_map(names).collect();
        seen += flags.len();
        missing.extend(unknown(command, flags));
    }
    assert!(seen > 50, "{seen} flags were found in runc's help");
    assert!(missing.is_empty(), "{missing:?}");
}
