//! A systemd of a test's own, with a cgroup that it divides, and the test as one of its services.
//!
//! It is root's user manager, which listens where a system's would. That would have to be process 1
//! of a pid namespace, in which threads of KVM, which belong to their machine's cgroup, have no
//! number: such a systemd cannot list the processes of a scope, and kills what it should end.
//!
//! Its units are the few of this file, and what is made while it runs: nothing of the machine's own
//! is started.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::unique_id;

/// Set where the test itself runs.
const INSIDE: &str = "BULKHEAD_TESTS_MANAGER";
/// How long a test may take; an emulated machine is slow.
const LIMIT: Duration = Duration::from_secs(600);
/// Between two looks at what it has done.
const STEP: Duration = Duration::from_millis(200);
/// Controllers that a manager expects to have.
const CONTROLLERS: &str = "+cpu +cpuset +io +memory +pids";

/// Runs `test`, which is the test `name` of this program, as a service of a systemd.
#[track_caller]
pub fn in_manager(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let mut manager = Manager::start(name);
    let (status, output) = manager.wait();
    for line in output.lines() {
        println!("| {line}");
    }
    // A name that is no test's would run none.
    let one_passed = status == "0" && output.contains("1 passed");
    assert!(one_passed, "{name} as a service ended with {status}\n{}", manager.read("log"));
}

/// `systemctl WORDS...`, of the manager that the test is a service of.
pub fn systemctl(words: &[&str]) -> Command {
    let mut command = Command::new("systemctl");
    command.arg("--no-pager").args(words);
    command
}

/// The property `name` of a unit.
#[track_caller]
pub fn property(unit: &str, name: &str) -> String {
    let words = ["show", "--value", "--property", name, unit];
    crate::run(&mut systemctl(&words)).expect(0).text()
}

/// A systemd; it ends with everything in its cgroup when this is dropped.
struct Manager {
    process: Child,
    directory: TempDir,
    cgroup: PathBuf,
}

impl Manager {
    #[track_caller]
    fn start(test: &str) -> Self {
        let builder = tempfile::Builder::new().prefix("manager-").tempdir_in("/var/tmp");
        let directory = builder.expect("a directory in /var/tmp");
        write_units(directory.path());
        fs::write(directory.path().join("test.sh"), test_script(directory.path(), test))
            .expect("the test's script");
        let root = Path::new("/sys/fs/cgroup");
        fs::write(root.join("cgroup.subtree_control"), CONTROLLERS).expect("controllers");
        let cgroup = root.join(unique_id("manager"));
        fs::create_dir(&cgroup).expect("a cgroup");
        let log = File::create(directory.path().join("log")).expect("a log");
        let mut command = Command::new("unshare");
        command.args(["--mount", "/bin/sh", "-c"]).arg(first_steps(&cgroup, directory.path()));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let process = command.spawn().expect("unshare is installed");
        Self { process, directory, cgroup }
    }

    /// Waits until the test has ended: its exit status and output.
    #[track_caller]
    fn wait(&mut self) -> (String, String) {
        let begun = Instant::now();
        while !self.directory.path().join("status").exists() {
            let ended = self.process.try_wait().expect("waiting for the manager");
            let late = begun.elapsed() > LIMIT;
            let [log, output] = ["log", "output"].map(|name| self.read(name));
            assert!(ended.is_none() && !late, "{ended:?}: {log}{output}");
            std::thread::sleep(STEP);
        }
        (self.read("status").trim().to_owned(), self.read("output"))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let begun = Instant::now();
        while fs::read_to_string(self.cgroup.join("cgroup.events"))
            .is_ok_and(|events| events.contains("populated 1"))
            && begun.elapsed() < crate::LIMIT
        {
            // With the test, and whatever that has left.
            let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
            std::thread::sleep(STEP);
        }
        let _ = self.process.wait();
        remove_cgroups(&self.cgroup);
    }
}

fn remove_cgroups(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}

/// The units that others refer to, and the test.
fn write_units(directory: &Path) {
    let units = directory.join("units");
    fs::create_dir_all(directory.join("none")).expect("a directory");
    fs::create_dir(&units).expect("a directory");
    for target in ["sysinit", "basic", "shutdown", "multi-user"] {
        let text = "[Unit]\nDefaultDependencies=no\n";
        fs::write(units.join(format!("{target}.target")), text).expect("a unit");
    }
    let text = "[Unit]\nDefaultDependencies=no\nWants=test.service\n";
    fs::write(units.join("default.target"), text).expect("a unit");
    let script = directory.join("test.sh");
    // In the slice that a system's manager has from its start.
    let text = format!(
        "[Unit]\nDefaultDependencies=no\n\
         [Service]\nSlice=system.slice\nExecStart=/bin/sh {}\nStandardOutput=null\nStandardError=null\n\
         TasksMax=infinity\n",
        script.display()
    );
    fs::write(units.join("test.service"), text).expect("a unit");
}

/// What the process does before it becomes systemd.
fn first_steps(cgroup: &Path, directory: &Path) -> String {
    let (cgroup, directory) = (cgroup.display(), directory.display());
    format!(
        "set -e\necho 0 >{cgroup}/cgroup.procs\nexec unshare --cgroup /bin/sh -c '\n\
         set -e\nmount -t tmpfs tmpfs /run\numount -l /sys/fs/cgroup\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\nmkdir -p /run/systemd/system /run/root/systemd\n\
         ln -s /run/root/systemd/private /run/systemd/private\n\
         exec env -i XDG_RUNTIME_DIR=/run/root HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
         SYSTEMD_UNIT_PATH=/run/root/systemd/user.control:/run/root/systemd/transient:{directory}/units \
         SYSTEMD_GENERATOR_PATH={directory}/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH={directory}/none \
         /lib/systemd/systemd --user --log-target=console'"
    )
}

/// The test alone, in the environment of this process.
fn test_script(directory: &Path, test: &str) -> String {
    let program = std::env::current_exe().expect("this program");
    let mut script = format!("export {INSIDE}=1\n");
    for (name, value) in std::env::vars() {
        if name.starts_with("BULKHEAD") || ["PATH", "TMPDIR", "RUST_BACKTRACE"].contains(&&*name) {
            script += &format!("export {name}='{value}'\n");
        }
    }
    let here = std::env::current_dir().expect("a directory");
    let directory = directory.display();
    script += &format!(
        "cd '{}'\n'{}' --exact --nocapture --test-threads=1 {test} >{directory}/output 2>&1\n\
         echo $? >{directory}/status.new\nmv {directory}/status.new {directory}/status\n",
        here.display(),
        program.display()
    );
    script
}
