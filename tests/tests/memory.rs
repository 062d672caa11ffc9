//! Memory that goes back to the host, guests that grow and shrink while they run, and CPUs that
//! come and go.
//!
//! The first tests drive `bulkhead-vmm` alone, under a real kernel's drivers, and look at its
//! private memory from outside; the last ones are containers.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_protocol::control::ExitReason;
use bulkhead_tests::guest::{COMMAND_LINE, Signal, initrd, kernel, said};
use bulkhead_tests::memory::cost;
use bulkhead_tests::vmm::{Machine, Vmm};
use bulkhead_tests::{Bundle, LIMIT, Leftovers, bulkhead, run, unique_id};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long Linux may take to give memory back: what it cannot take away at once it tries again
/// after 50 s, 100 s and so on.
const UNPLUG_LIMIT: Duration = Duration::from_secs(600);
/// Page cache goes back within this time, on a machine that is not emulated.
const RETURN_LIMIT: Duration = Duration::from_secs(10);
/// And an emulated one may take so many times longer: its processor is the bottleneck.
const EMULATED_FACTOR: u32 = 12;
/// What may stay of what was used.
const RETURN_SLACK_KIB: u64 = 30 << 10;
const MIB: u64 = 1 << 20;

/// A guest whose script waits for words of the test's.
struct Guest {
    vmm: Vmm,
    signal: Signal,
    _scratch: TempDir,
}

impl Guest {
    /// A machine with `mem_mib` MiB that can be resized, with a sparse disk `vda` of `disk_mib`
    /// and the signal as `vdb`.
    fn start(
        mem_mib: u32,
        hotplug_mib: u32,
        disk_mib: u64,
        script: &str,
        change: impl FnOnce(Machine) -> Machine,
    ) -> Self {
        Self::start_with(mem_mib, hotplug_mib, disk_mib, script, COMMAND_LINE, change)
    }

    fn start_with(
        mem_mib: u32,
        hotplug_mib: u32,
        disk_mib: u64,
        script: &str,
        cmdline: &str,
        change: impl FnOnce(Machine) -> Machine,
    ) -> Self {
        let scratch = tempfile::Builder::new().prefix("memory-").tempdir_in("/var/tmp");
        let scratch = scratch.expect("a directory");
        let signal = Signal::new(scratch.path());
        let script = format!("signal=vdb\n{script}\nawait end\nreboot -f\n");
        let machine = Machine::new(&kernel(), mem_mib)
            .expect("kernel and KVM")
            .initrd(initrd(scratch.path(), &script), cmdline)
            .resizable(hotplug_mib)
            .block("data", sparse(scratch.path(), disk_mib), false)
            .block("signal", signal.disk(), true);
        let vmm = change(machine).spawn().expect("the machine is built");
        vmm.start().expect("the guest starts");
        Self { vmm, signal, _scratch: scratch }
    }

    /// Waits until the script has said `word`.
    #[track_caller]
    fn hear(&mut self, word: &str) {
        self.vmm.console.wait_for(&format!("said: {word}")).expect("the script goes on");
    }

    fn private_kib(&self) -> u64 {
        self.vmm.private_kib().expect("the process lives")
    }

    /// Waits until free pages have stopped to be reported; what the guest then costs.
    fn idle_kib(&self) -> u64 {
        let mut seen = (0, Instant::now());
        let quiet = Duration::from_secs(5);
        self.vmm
            .wait_until(LIMIT, |stats| {
                let reported = stats.balloon.expect("a balloon").reported_bytes;
                if reported != seen.0 {
                    seen = (reported, Instant::now());
                }
                reported > 0 && seen.1.elapsed() > quiet
            })
            .expect("free pages are reported");
        self.private_kib()
    }

    /// Waits until the process costs no more than `kib`; how long that took.
    fn wait_for_cost(&self, kib: u64, limit: Duration) -> Duration {
        let mut cost = 0;
        let waited = self.vmm.wait_until(limit, |_| {
            cost = self.private_kib();
            cost <= kib
        });
        waited.unwrap_or_else(|error| panic!("it costs {cost} KiB, not {kib}: {error}"))
    }

    /// Lets the script end; what it said.
    fn end(mut self) -> Vec<String> {
        self.signal.give("end");
        let ended = self.vmm.finish();
        let reason = ended.unwrap_or_else(|error| panic!("{error:#}: {}", self.vmm.console.seen()));
        let said = said(self.vmm.console.seen());
        assert_eq!(reason, ExitReason::PowerOff, "{said:#?}");
        said
    }
}

fn sparse(scratch: &Path, mib: u64) -> File {
    let options = &mut File::options();
    let file = options.read(true).write(true).create_new(true).open(scratch.join("data"));
    let file = file.expect("a disk");
    file.set_len(mib * MIB).expect("a disk");
    file
}

/// The time that the issue of memory gives, or more where the processor is emulated.
fn return_limit() -> Duration {
    match std::env::var_os("BULKHEAD_BOOT_TIMEOUT_S") {
        None => RETURN_LIMIT,
        Some(_) => RETURN_LIMIT * EMULATED_FACTOR,
    }
}

/// The number behind `word` in what was said.
fn number(said: &[String], word: &str) -> u64 {
    let line = said.iter().find_map(|line| line.strip_prefix(word)).expect(word);
    line.trim().parse().expect(word)
}

const PAGE_CACHE: &str = r#"
say ready; await fill
# An open disk keeps its pages.
exec 3< /dev/vda; cat <&3 > /dev/null
say cached $(sed -n 's/^Buffers: *\([0-9]*\) kB/\1/p' /proc/meminfo)
await drop
echo 3 > /proc/sys/vm/drop_caches
say dropped
"#;

#[test]
fn page_cache_that_is_freed_goes_back_to_the_host() {
    let mut guest = Guest::start(700, 0, 500, PAGE_CACHE, |machine| machine);
    guest.hear("ready");
    let idle_kib = guest.idle_kib();
    guest.signal.give("fill");
    guest.hear("cached");
    let full_kib = guest.private_kib();
    assert!(full_kib > idle_kib + (450 << 10), "{idle_kib} KiB, then {full_kib}");
    guest.signal.give("drop");
    guest.hear("dropped");
    let waited = guest.wait_for_cost(idle_kib + RETURN_SLACK_KIB, return_limit());
    println!("page cache: {idle_kib} KiB idle, {full_kib} full, back after {waited:?}");
    let said = guest.end();
    assert!(number(&said, "cached") >= 500 << 10, "{said:#?}");
}

const OUT_OF_MEMORY: &str = r#"
say ready; await use
dd if=/dev/zero of=/dev/null bs=120M count=1 2>/dev/null
say used $?
say kills $(sed -n 's/^oom_kill //p' /proc/vmstat)
"#;

#[test]
fn balloon_deflates_before_the_guest_kills_for_memory() {
    let mut guest = Guest::start(256, 0, 1, OUT_OF_MEMORY, |machine| machine);
    guest.hear("ready");
    guest.vmm.inflate(150).expect("a balloon");
    let size = |stats: &bulkhead_protocol::control::VmStats| stats.balloon.expect("one");
    guest.vmm.wait_until(LIMIT, |stats| size(stats).actual_bytes == 150 * MIB).expect("inflated");
    guest.signal.give("use");
    guest.hear("kills");
    let balloon = size(&guest.vmm.stats().expect("statistics"));
    assert!(balloon.actual_bytes < 150 * MIB, "{balloon:?}");
    let refused = guest.vmm.inflate(256).unwrap_err().to_string();
    assert!(refused.contains("balloon of 256 MiB"), "{refused}");
    let said = guest.end();
    assert_eq!((number(&said, "used"), number(&said, "kills")), (0, 0), "{said:#?}");
}

#[test]
fn balloon_takes_memory_from_the_guest_and_gives_it_to_the_host() {
    let script = "mount -t tmpfs -o size=90% tmp /tmp\n\
                  dd if=/dev/zero of=/tmp/x bs=1M count=100 2>/dev/null; rm /tmp/x; say ready";
    let mut guest = Guest::start(256, 0, 1, script, |machine| machine);
    guest.hear("ready");
    guest.vmm.inflate(200).expect("a balloon");
    let inflated = |stats: &bulkhead_protocol::control::VmStats| {
        let balloon = stats.balloon.expect("one");
        balloon.actual_bytes == balloon.target_bytes
    };
    guest.vmm.wait_until(LIMIT, inflated).expect("inflated");
    // What it has in use, and what it has used and not reported yet, is less than all that is left.
    guest.wait_for_cost((56 << 10) - 1, LIMIT);
    guest.vmm.inflate(0).expect("no balloon");
    guest.vmm.wait_until(LIMIT, inflated).expect("deflated");
    // What it tells first may be from before the balloon was empty.
    let has_it_again = |stats: &bulkhead_protocol::control::VmStats| {
        let figures = stats.balloon.and_then(|balloon| balloon.guest);
        figures.is_some_and(|now| now.total_bytes > 200 * MIB && now.free_bytes > 150 * MIB)
    };
    guest.vmm.wait_until(LIMIT, has_it_again).expect("figures of a guest that has its memory");
    guest.end();
}

const GROWTH: &str = r#"
total() { sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
before=$(total); say before $before; await grown
# A block is the guest's before Linux has put it online, and is the host's again before Linux has
# counted it out.
until_total() { for wait in $(seq 1200); do [ $(total) = $1 ] && break; usleep 100000; done; }
until_total $((before + 384 * 1024))
say grown $(total)
mount -t tmpfs -o size=100% tmp /tmp
dd if=/dev/zero of=/tmp/x bs=1M count=250 2>/dev/null; say filled $?
await emptied; rm /tmp/x; echo 3 > /proc/sys/vm/drop_caches; say emptied 1
await shrunk; until_total $before; say shrunk $(total)
"#;

#[test]
fn memory_is_added_and_taken_away_while_the_guest_runs() {
    let mut guest = Guest::start(128, 512, 1, GROWTH, |machine| machine.vcpus(2));
    guest.hear("before");
    let idle_kib = guest.private_kib();
    let plugged = |mib: u64| {
        move |stats: &bulkhead_protocol::control::VmStats| {
            stats.hotplug.expect("memory to add").plugged_bytes == mib * MIB
        }
    };
    // Less than Linux adds at once, then more, in whole blocks of the device.
    guest.vmm.plug(65).expect("memory");
    guest.vmm.wait_until(LIMIT, plugged(66)).expect("plugged");
    guest.vmm.plug(384).expect("memory");
    guest.vmm.wait_until(LIMIT, plugged(384)).expect("plugged");
    let refused = guest.vmm.plug(513).unwrap_err().to_string();
    assert!(refused.contains("512 at most"), "{refused}");
    guest.signal.give("grown");
    guest.hear("filled");
    // The file alone; what the guest had used and freed before, it may have used again.
    let full_kib = guest.private_kib();
    assert!(full_kib > 250 << 10, "{idle_kib} KiB, then {full_kib}");
    assert!(idle_kib + RETURN_SLACK_KIB < 125 << 10, "{idle_kib} KiB of a guest of 128 MiB");
    guest.signal.give("emptied");
    guest.hear("emptied");
    guest.vmm.plug(0).expect("no memory");
    guest.vmm.wait_until(UNPLUG_LIMIT, plugged(0)).expect("unplugged");
    guest.wait_for_cost(idle_kib + RETURN_SLACK_KIB, LIMIT);
    guest.signal.give("shrunk");
    guest.hear("shrunk");
    let said = guest.end();
    let kib = |word| number(&said, word);
    assert_eq!(kib("filled"), 0, "{said:#?}");
    assert_eq!(kib("grown"), kib("before") + (384 << 10), "{said:#?}");
    assert_eq!(kib("shrunk"), kib("before"), "{said:#?}");
}

const CPUS: &str = r#"
say cpus $(nproc) $(cat /sys/devices/system/cpu/present)
for job in 1 2 3; do while :; do :; done & done
failed=0
for round in 1 2 3 4 5; do
  for cpu in 1 2; do echo 1 > /sys/devices/system/cpu/cpu$cpu/online || failed=1; done
  [ $(nproc) = 3 ] || failed=2
  for cpu in 1 2; do taskset $((1 << cpu)) true || failed=3; done
  for cpu in 2 1; do echo 0 > /sys/devices/system/cpu/cpu$cpu/online || failed=4; done
  [ $(nproc) = 1 ] || failed=5
done
say failed $failed
"#;

#[test]
fn cpus_come_and_go_under_load() {
    let cmdline = format!("{COMMAND_LINE} maxcpus=1");
    let mut guest = Guest::start_with(128, 0, 1, CPUS, &cmdline, |machine| machine.vcpus(3));
    guest.hear("failed");
    let said = guest.end();
    assert_eq!(said, ["cpus 1 0-2", "failed 0"]);
}

/// A container that runs until the test ends.
struct Container {
    id: String,
    _bundle: Bundle,
}

impl Container {
    /// Runs a sleeper with these resources and annotations.
    fn start(resources: &Value, annotations: &Value) -> Self {
        let mut bundle = Bundle::script("trap 'exit 0' TERM; while :; do sleep 0.1; done");
        bundle.edit(|config| {
            config["linux"]["resources"] = resources.clone();
            config["annotations"] = annotations.clone();
            config["mounts"].as_array_mut().expect("mounts").push(json!({
                "destination": "/big", "type": "tmpfs", "source": "tmpfs", "options": ["size=90%"],
            }));
        });
        let id = unique_id("memory");
        let log = File::create(bundle.path().join("log")).expect("a file");
        let mut create = bulkhead();
        create.args(["run", "--detach", "--bundle"]).arg(bundle.path()).arg(&id);
        create.stdin(std::process::Stdio::null()).stdout(log.try_clone().expect("dup"));
        let status = create.stderr(log).status().expect("bulkhead starts");
        let text = || std::fs::read_to_string(bundle.path().join("log")).unwrap_or_default();
        assert!(status.success(), "run: {status}: {}", text());
        Self { id, _bundle: bundle }
    }

    /// What a shell in the container prints.
    fn shell(&self, script: &str) -> String {
        run(bulkhead().args(["exec", &self.id, "/bin/sh", "-c", script])).expect(0).text()
    }

    fn guest_kib(&self) -> u64 {
        cost(&self.id).expect("the sandbox runs").guest_kib
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        run(bulkhead().args(["delete", "--force", &self.id]));
    }
}

#[test]
fn container_that_frees_memory_gives_it_back_to_the_host() {
    let before = Leftovers::now();
    let container = Container::start(&json!({"memory": {"limit": 192 << 20}}), &json!({}));
    let idle_kib = container.guest_kib();
    container.shell("dd if=/dev/zero of=/big/x bs=1M count=120 2>/dev/null");
    // The file alone; what the guest had used and freed before, it may have used again.
    let full_kib = container.guest_kib();
    assert!(full_kib > 120 << 10, "{idle_kib} KiB, then {full_kib}");
    assert!(idle_kib + RETURN_SLACK_KIB < 120 << 10, "{idle_kib} KiB idle");
    container.shell("rm /big/x");
    let start = Instant::now();
    loop {
        let now_kib = container.guest_kib();
        if now_kib <= idle_kib + RETURN_SLACK_KIB {
            break;
        }
        assert!(start.elapsed() < return_limit(), "{idle_kib} KiB idle, {now_kib} KiB now");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(container);
    before.assert_none();
}
