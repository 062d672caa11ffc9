//! Devices of `bulkhead-vmm` under a real kernel's drivers: block devices on files and on a
//! block device, entropy, processors, pauses, and the ends of a machine.
//!
//! The guest is the kernel with busybox and a script as its first process; what the script
//! finds out it says on the console, and what it wrote is looked at from outside.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use bulkhead_protocol::control::ExitReason;
use bulkhead_protocol::limits::BLOCKS_MAX;
use bulkhead_tests::guest::{COMMAND_LINE, Signal, initrd, kernel, said};
use bulkhead_tests::run;
use bulkhead_tests::vmm::{Machine, Vmm};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Guest memory of every machine.
const MEMORY_MIB: u32 = 128;
const MIB: u64 = 1 << 20;

/// A directory for disks, on a file system of the host that has holes.
fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("disks-").tempdir_in("/var/tmp").expect("a directory")
}

fn machine(scratch: &Path, script: &str) -> Machine {
    let machine = Machine::new(&kernel(), MEMORY_MIB).expect("kernel and KVM");
    machine.initrd(initrd(scratch, script), COMMAND_LINE)
}

/// Runs the guest to its end; what it said, line by line, and why it ended.
fn boot(machine: Machine) -> (Vec<String>, ExitReason) {
    let mut vmm = machine.spawn().expect("the machine is built");
    vmm.start().expect("the guest starts");
    let reason = finish(&mut vmm);
    (said(vmm.console.seen()), reason)
}

/// Waits for the end of a guest that runs; why it ended.
#[track_caller]
fn finish(vmm: &mut Vmm) -> ExitReason {
    let ended = vmm.finish();
    ended.unwrap_or_else(|error| panic!("{error:#}: {}", vmm.console.seen()))
}

/// A file of `mib` MiB that reads differently everywhere.
fn pattern(path: &Path, mib: u64, seed: u32) -> File {
    let bytes: Vec<u8> = (0..(mib * MIB / 4) as u32)
        .flat_map(|at| (at ^ seed).wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(path, bytes).expect("a disk");
    File::options().read(true).write(true).open(path).expect("a disk")
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn part(file: &File, at: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).expect("small")];
    file.read_exact_at(&mut bytes, at).expect("reading a disk");
    bytes
}

/// A loop device on `file`, detached when dropped.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Self {
        let outcome = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        Self(outcome.expect(0).text())
    }

    fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.0).expect("the loop device")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run(Command::new("losetup").args(["--detach", &self.0]));
    }
}

const BLOCKS: &str = r#"
for disk in vda vdb vdc; do
  sys=/sys/block/$disk
  say $disk $(cat $sys/serial) $(cat $sys/size) $(cat $sys/ro) $(sum < /dev/$disk)
done
# Aligned and odd places, through the page cache and around it.
dd if=/dev/vdb of=/dev/vda bs=1M seek=4 count=2 oflag=direct 2>/dev/null; say direct $?
dd if=/dev/vdb of=/dev/vda bs=512 skip=3 seek=16385 count=7 conv=fsync 2>/dev/null; say odd $?
dd if=/dev/vdb of=/dev/vdc bs=64k seek=8 count=16 conv=fsync 2>/dev/null; say loop $?
echo 3 > /proc/sys/vm/drop_caches
say back $(dd if=/dev/vda bs=1M skip=4 count=2 iflag=direct 2>/dev/null | sum)
dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync 2>/dev/null; [ $? = 0 ] && say vdb written
blkdiscard -o 16777216 -l 8388608 /dev/vda; say discard $?
blkdiscard -o 4194304 -l 4194304 /dev/vdc; say discard-loop $?
blkdiscard /dev/vdb 2>/dev/null && say vdb discarded
# A file system that is told what is free.
mke2fs -F /dev/vdd >/dev/null 2>&1; mkdir /fs
mount -t ext4 -o discard /dev/vdd /fs; say mount $?
dd if=/dev/vdb of=/fs/big bs=1M 2>/dev/null; echo content > /fs/small; sync
echo 3 > /proc/sys/vm/drop_caches
cmp /fs/big /dev/vdb; say same $?
rm /fs/big; sync; fstrim /fs; say trim $?; umount /fs; say umount $?
say cpus $(nproc)
say rng $(cat /sys/class/misc/hw_random/rng_current) $(dd if=/dev/hwrng bs=4k count=1 iflag=fullblock 2>/dev/null | wc -c)
say differs $(dd if=/dev/hwrng bs=1k count=1 iflag=fullblock 2>/dev/null | hexdump -v -e '1/1 "%02x\n"' | sort -u | wc -l)
reboot -f
"#;

#[test]
fn devices_work_under_the_kernels_drivers() {
    let scratch = scratch();
    let path = |name: &str| scratch.path().join(name);
    let (writable, fixed) = (pattern(&path("vda"), 32, 1), pattern(&path("vdb"), 8, 2));
    let backing = pattern(&path("vdc"), 16, 3);
    let formatted = File::options().read(true).write(true).create_new(true).open(path("vdd"));
    let formatted = formatted.expect("a disk");
    formatted.set_len(64 * MIB).expect("a disk");
    let device = Loop::new(&path("vdc"));
    let (first, second, third) =
        (part(&writable, 0, 32 * MIB), part(&fixed, 0, 8 * MIB), part(&backing, 0, 16 * MIB));

    let machine = machine(scratch.path(), BLOCKS)
        .vcpus(2)
        .block("first", writable.try_clone().expect("dup"), false)
        .block("exactly-twenty-bytes", File::open(path("vdb")).expect("a disk"), true)
        .block("loop", device.open(), false)
        .block("", formatted.try_clone().expect("dup"), false);
    let (said, reason) = boot(machine);
    assert_eq!(reason, ExitReason::PowerOff, "{said:#?}");

    let differs: usize = said
        .last()
        .and_then(|line| line.strip_prefix("differs "))
        .expect("the last line")
        .parse()
        .expect("a number");
    assert!(differs > 200, "1024 random bytes have {differs} values");
    let expected = [
        format!("vda first 65536 0 {}", sum(&first)),
        format!("vdb exactly-twenty-bytes 16384 1 {}", sum(&second)),
        format!("vdc loop 32768 0 {}", sum(&third)),
        "direct 0".to_owned(),
        "odd 0".to_owned(),
        "loop 0".to_owned(),
        format!("back {}", sum(&second[..2 << 20])),
        "discard 0".to_owned(),
        "discard-loop 0".to_owned(),
        "mount 0".to_owned(),
        "same 0".to_owned(),
        "trim 0".to_owned(),
        "umount 0".to_owned(),
        "cpus 2".to_owned(),
        "rng virtio_rng.0 4096".to_owned(),
    ];
    assert_eq!(said[..said.len() - 1], expected);

    let mut wanted = first;
    wanted[4 << 20..6 << 20].copy_from_slice(&second[..2 << 20]);
    wanted[16385 * 512..16392 * 512].copy_from_slice(&second[3 * 512..10 * 512]);
    wanted[16 << 20..24 << 20].fill(0);
    assert_eq!(sum(&part(&writable, 0, 32 * MIB)), sum(&wanted), "the file");
    assert_eq!(blocks(&writable), 24 * MIB / 512, "the file's discarded part is a hole");
    assert_eq!(sum(&part(&fixed, 0, 8 * MIB)), sum(&second), "the read-only file");
    let mut wanted = third;
    wanted[512 << 10..1536 << 10].copy_from_slice(&second[..1 << 20]);
    wanted[4 << 20..8 << 20].fill(0);
    assert_eq!(sum(&part(&device.open(), 0, 16 * MIB)), sum(&wanted), "the block device");
    assert_eq!(blocks(&backing), 12 * MIB / 512, "the block device's discarded part is a hole");
    assert!(blocks(&formatted) < 6 * MIB / 512, "{} blocks", blocks(&formatted));
}

fn blocks(file: &File) -> u64 {
    file.metadata().expect("a disk").blocks()
}

const WRITER: &str = r#"
signal=vdc
i=0
while [ $i -lt 16 ]; do
  dd if=/dev/vdb of=/dev/vda bs=512k skip=$i seek=$((15 - i)) count=1 oflag=direct 2>/dev/null ||
    say failed $i
  say wrote $i
  i=$((i + 1))
done
cmp /dev/vda /dev/vdb > /dev/null && say same
say written
await end
reboot -f
"#;

#[test]
fn pause_stops_writes_and_resume_loses_none() {
    let scratch = scratch();
    let target = pattern(&scratch.path().join("vda"), 8, 1);
    let source = pattern(&scratch.path().join("vdb"), 8, 2);
    let signal = Signal::new(scratch.path());
    let machine = machine(scratch.path(), WRITER)
        .vcpus(2)
        .block("target", target.try_clone().expect("dup"), false)
        .block("source", source.try_clone().expect("dup"), true)
        .block("signal", signal.disk(), true);
    let mut vmm = machine.spawn().expect("the machine is built");
    vmm.start().expect("the guest starts");
    for step in [0, 3, 4, 9, 15] {
        vmm.console.wait_for(&format!("wrote {step}\r\n")).expect("the guest writes");
        vmm.pause().expect("pause");
        let before = sum(&part(&target, 0, 8 * MIB));
        let after = sum(&part(&target, 0, 8 * MIB));
        assert_eq!(before, after, "written while paused");
        vmm.resume().expect("resume");
    }
    // Not before the last pause: a guest that has ended cannot be paused.
    signal.give("end");
    assert_eq!(finish(&mut vmm), ExitReason::PowerOff);
    let wanted: Vec<u8> = (0..16).rev().flat_map(|i| part(&source, i * MIB / 2, MIB / 2)).collect();
    assert_eq!(sum(&part(&target, 0, 8 * MIB)), sum(&wanted));
    let console = said(vmm.console.seen());
    let steps = (0..16).map(|i| format!("wrote {i}")).chain(["written".to_owned()]);
    assert_eq!(console, steps.collect::<Vec<_>>());
}

const SHRUNK: &str = r#"
signal=vdb
for disk in /sys/block/vd*; do echo $(cat $disk/serial); done | sort > /serials
say serials $(cat /serials)
say ready
await go
dd if=/dev/vda of=/dev/null bs=1M iflag=direct 2>/dev/null; say whole $?
dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null; say half $?
dd if=/dev/zero of=/dev/vda bs=1M count=1 oflag=direct 2>/dev/null; say written $?
reboot -f
"#;

#[test]
fn most_disks_work_and_one_that_shrinks_is_an_error_inside() {
    let scratch = scratch();
    let disk = pattern(&scratch.path().join("vda"), 8, 1);
    let signal = Signal::new(scratch.path());
    let mut machine = machine(scratch.path(), SHRUNK).vcpus(2);
    for index in 0..BLOCKS_MAX {
        let file = if index == 1 { signal.disk() } else { disk.try_clone().expect("dup") };
        machine = machine.block(&format!("n{index:02}"), file, index > 0);
    }
    let mut vmm = machine.spawn().expect("the machine is built");
    vmm.start().expect("the guest starts");
    vmm.console.wait_for("ready").expect("the guest starts");
    vmm.pause().expect("pause");
    disk.set_len(4 * MIB).expect("truncating");
    vmm.resume().expect("resume");
    signal.give("go");
    let reason = finish(&mut vmm);
    let said = said(vmm.console.seen());
    let serials: Vec<String> = (0..BLOCKS_MAX).map(|index| format!("n{index:02}")).collect();
    let serials = format!("serials {}", serials.join(" "));
    assert_eq!(said, [&serials, "ready", "whole 1", "half 0", "written 0"]);
    assert_eq!(reason, ExitReason::PowerOff);
    assert_eq!(part(&disk, 0, MIB), vec![0; 1 << 20]);
}

#[test]
fn request_that_does_not_fit_the_state_changes_nothing() {
    let scratch = scratch();
    let signal = Signal::new(scratch.path());
    // It must not have ended before it is asked for the last time.
    let machine = machine(scratch.path(), "signal=vda; await end; reboot -f\n").block(
        "signal",
        signal.disk(),
        true,
    );
    let mut vmm = machine.spawn().expect("the machine is built");
    let refused = |result: anyhow::Result<()>, words: &str| {
        let error = result.expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(vmm.pause(), "pause in state Ready");
    refused(vmm.resume(), "resume in state Ready");
    vmm.start().expect("the guest starts");
    refused(vmm.start(), "start in state Running");
    vmm.pause().expect("pause");
    refused(vmm.pause(), "pause in state Paused");
    refused(vmm.start(), "start in state Paused");
    vmm.resume().expect("resume");
    signal.give("end");
    assert_eq!(finish(&mut vmm), ExitReason::PowerOff);
}

#[test]
fn panic_of_the_guest_is_told_from_a_power_off() {
    let scratch = scratch();
    let (said, reason) = boot(machine(scratch.path(), "say alone $(nproc); exit 1\n"));
    assert_eq!((said, reason), (vec!["alone 1".to_owned()], ExitReason::Panic));
}

#[test]
fn truncated_kernel_is_refused_with_its_reason() {
    let scratch = scratch();
    let path = scratch.path().join("vmlinux");
    let mut start = Vec::new();
    let mut whole = File::open(kernel()).expect("the kernel");
    let length = whole.seek(SeekFrom::End(0)).expect("its length");
    whole.rewind().expect("rewind");
    whole.take(length / 2).read_to_end(&mut start).expect("half of it");
    for (length, name) in
        [(start.len(), "half"), (4096, "a page"), (40, "less than a header"), (0, "none")]
    {
        File::create(&path).and_then(|mut file| file.write_all(&start[..length])).expect("file");
        let machine = Machine::new(&path, MEMORY_MIB).expect("KVM");
        let error = machine.spawn().err().expect(name).to_string();
        assert!(error.contains("not a complete 64-bit ELF image"), "{name}: {error}");
        // Of a loader that says everything twice, once.
        assert_eq!(error.matches("Kernel Loader").count(), 1, "{name}: {error}");
    }
}
