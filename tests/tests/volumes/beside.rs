//! The same programs on a share in a guest and on the host's own file system beside it: both
//! directories lie on one ext4.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_tests::disk::Ext4;
use bulkhead_tests::{Created, Outcome, run};

use crate::explained::assert_explained;
use crate::room::{add_program, bind, mount, probe, start, with_usr};
use serde_json::json;

/// A directory of the disk for the host, and one that is `/share` in the guest.
struct Beside {
    container: Created,
    host: PathBuf,
    disk: Ext4,
}

impl Beside {
    /// With `program` as `/program`, and `files` in the root.
    fn new(program: &Path, files: &[(&str, &str)]) -> Self {
        let disk = Ext4::new(768);
        let (host, share) = (disk.directory("host"), disk.directory("share"));
        let mut bundle = with_usr();
        add_program(&bundle, program, "program");
        for (name, content) in files {
            fs::write(bundle.root(name), content).expect("a file of the root");
        }
        bind(&mut bundle, &share, "/share", &["rbind", "rw"]);
        // Another file system, for names that cannot go from one to the other.
        mount(&mut bundle, json!({"destination": "/second", "type": "tmpfs", "source": "tmpfs"}));
        Self { container: start(bundle), host, disk }
    }

    fn in_guest(&self, words: &[&str]) -> Outcome {
        self.container.command(&["exec"], words)
    }

    fn on_host(&self, program: &Path, words: &[&str]) -> Outcome {
        run(Command::new(program).args(words).env("NO_COLOR", "1"))
    }

    fn host(&self) -> &str {
        self.host.to_str().expect("UTF-8")
    }
}

/// A program of the cache, whose place `cargo xtask test` tells.
fn tool(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable);
    path.unwrap_or_else(|| panic!("{variable} is not set: use `cargo xtask test`")).into()
}

/// Lines `NAME RESULT...`.
fn results(outcome: &Outcome) -> BTreeMap<String, String> {
    let text = outcome.text();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(name, result)| (name.to_owned(), result.to_owned())).collect()
}

#[test]
fn what_programs_do_with_files_ends_as_on_the_host() {
    let beside = Beside::new(probe(), &[]);
    let host = beside.on_host(probe(), &["check", beside.host()]).expect(0);
    let host = results(&host);
    let wrong: Vec<_> = host.iter().filter(|(_, result)| *result != "ok").collect();
    assert!(wrong.is_empty(), "the host itself: {wrong:?}");
    let guest = beside.in_guest(&["/program", "check", "/share"]).expect(0);
    let failed = |(name, result): (String, String)| {
        // The words of a failure are for the reader; what counts is that it is one.
        if result != "ok" {
            println!("{name}: {result}");
        }
        (name, result)
    };
    assert_explained("file-probe", &host, &results(&guest).into_iter().map(failed).collect());
}

/// What pjdfstest says of each test; a failure's message stands on the lines below.
fn verdicts(outcome: &Outcome) -> BTreeMap<String, String> {
    let text = outcome.text();
    let lines = text.lines().filter(|line| !line.starts_with(char::is_whitespace));
    let verdict = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let known = ["ok", "FAILED", "skipped"].contains(&rest.trim());
        known.then(|| (name.to_owned(), rest.trim().to_owned()))
    };
    let found: BTreeMap<_, _> = lines.filter_map(verdict).collect();
    let ran = found.values().filter(|verdict| *verdict != "skipped").count();
    assert!(ran > 300, "only {ran} tests: {text}\n{}", outcome.stderr);
    found
}

/// Sleeps longer than any clock of files ticks, also when the processor that advances it has to
/// wait (the kernel lets another take over after five ticks); users that every Debian has.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.05
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

#[test]
fn pjdfstest_ends_as_on_the_host() {
    let program = tool("BULKHEAD_PJDFSTEST");
    let beside = Beside::new(&program, &[("pjdfstest.toml", PJDFSTEST)]);
    let config = beside.container.bundle.root("pjdfstest.toml");
    let config = config.to_str().expect("UTF-8");
    let words = |config, path, second| ["-c", config, "-p", path, "-s", second].map(str::to_owned);
    let host = words(config, beside.host(), "/dev/shm");
    let host = beside.on_host(&program, &host.each_ref().map(String::as_str));
    let guest = words("/pjdfstest.toml", "/share", "/second");
    let mut line = vec!["/program"];
    line.extend(guest.iter().map(String::as_str));
    let guest = beside.in_guest(&line);
    for line in guest.text().lines().skip_while(|line| !line.ends_with("FAILED")) {
        if line.ends_with("FAILED") || line.starts_with('\t') {
            println!("{line}");
        }
    }
    assert_explained("pjdfstest", &verdicts(&host), &verdicts(&guest));
}

/// Every operation that fsx has on Linux.
const FSX: &str = "
flen = 131072
[opsize]
max = 16384
[weights]
close_open = 1
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 5
sendfile = 5
posix_fadvise = 1
copy_file_range = 5
";

#[test]
fn fsx_finds_every_byte_where_it_was_written() {
    let program = tool("BULKHEAD_FSX");
    let beside = Beside::new(&program, &[("fsx.toml", FSX)]);
    let config = beside.container.bundle.root("fsx.toml");
    let words = |config: &str, seed: &str, file: String| {
        ["-f", config, "-N", "400", "-S", seed, &file].map(str::to_owned)
    };
    for seed in ["1", "2"] {
        let host = words(config.to_str().expect("UTF-8"), seed, format!("{}/f", beside.host()));
        beside.on_host(&program, &host.each_ref().map(String::as_str)).expect(0);
        let guest = words("/fsx.toml", seed, "/share/f".to_owned());
        let mut line = vec!["/program"];
        line.extend(guest.iter().map(String::as_str));
        beside.in_guest(&line).expect(0);
        let content = |name: &str| fs::read(beside.disk.path().join(name).join("f")).expect("f");
        assert!(content("host") == content("share"), "seed {seed}");
    }
}

/// Each way of moving data that a program has, each block with a checksum of its own.
const FIO: &str = "
[global]
size=2m
verify=crc32c
verify_fatal=1
do_verify=1
randrepeat=1
allrandrepeat=1
thread
stonewall
[psync]
ioengine=psync
rw=randwrite
bsrange=512-64k
[mmap]
ioengine=mmap
rw=randrw
bs=4k
[libaio]
ioengine=libaio
direct=1
iodepth=8
rw=randwrite
bs=8k
[io_uring]
ioengine=io_uring
iodepth=8
rw=randrw
bs=16k
[shared]
ioengine=pvsync
rw=write
bs=4k
numjobs=2
fsync=64
";

#[test]
fn fio_verifies_what_it_wrote() {
    let program = Path::new("/usr/bin/fio");
    let beside = Beside::new(program, &[("fio.job", FIO)]);
    let job = beside.container.bundle.root("fio.job");
    let directory = format!("--directory={}", beside.host());
    let host = [&directory, "--output-format=terse", job.to_str().expect("UTF-8")];
    let host = beside.on_host(program, &host).expect(0);
    let guest = ["/program", "--directory=/share", "--output-format=terse", "/fio.job"];
    let guest = beside.in_guest(&guest).expect(0);
    // One line for each job; the fifth field is its error.
    let errors = |outcome: &Outcome| -> Vec<(String, String)> {
        let text = outcome.text();
        let lines = text.lines().map(|line| line.split(';').collect::<Vec<_>>());
        let jobs = lines.filter(|fields| fields.len() > 5);
        jobs.map(|fields| (fields[2].to_owned(), fields[4].to_owned())).collect()
    };
    assert_eq!(errors(&guest).len(), 6, "{}", guest.text());
    assert_eq!(errors(&guest), errors(&host));
    assert!(errors(&guest).iter().all(|(_, error)| error == "0"), "{}", guest.text());
}
