//! Disks of containers: root file systems and volumes from images, device nodes, what is shared
//! and what is not, and every way in which an image can be wrong.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bulkhead_protocol::control::ExitReason;
use bulkhead_protocol::vm::{RawRateLimit, RawTokenBucket};
use bulkhead_tests::bundle::busybox_root;
use bulkhead_tests::vmm::Machine;
use bulkhead_tests::{
    Bundle, Created, Image, LIMIT, Leftovers, Outcome, bulkhead, run, run_until_done, unique_id,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A directory for images, on a file system of the host that has holes.
fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("block-").tempdir_in("/var/tmp").expect("a directory")
}

#[track_caller]
fn tool(program: &str, words: &[&str]) -> Outcome {
    run(Command::new(program).args(words)).expect(0)
}

/// An image of the directory `tree` with the file system `kind`.
fn image_of(tree: &Path, kind: &str, scratch: &TempDir) -> PathBuf {
    let image = scratch.path().join(format!("{kind}.img"));
    let (to, from) = (image.to_str().expect("UTF-8"), tree.to_str().expect("UTF-8"));
    match kind {
        "erofs" => drop(tool("mkfs.erofs", &["--quiet", to, from])),
        "squashfs" => drop(tool("mksquashfs", &[from, to, "-quiet", "-no-progress"])),
        "ext4" => {
            File::create(to).and_then(|file| file.set_len(64 * MIB)).expect("an image");
            drop(tool("mke2fs", &["-q", "-t", "ext4", "-d", from, to]));
        }
        other => panic!("no image of {other}"),
    }
    image
}

/// A file of `bytes` zeroes, all of them holes.
fn blank(scratch: &TempDir, name: &str, bytes: u64) -> PathBuf {
    let path = scratch.path().join(name);
    File::create(&path).and_then(|file| file.set_len(bytes)).expect("a file");
    path
}

/// A bundle that runs `script` with these annotations, its root emptied if one of them names
/// another.
fn bundle(script: &str, annotations: Value) -> Bundle {
    let mut bundle = Bundle::script(script);
    let own_root = annotations["io.bulkhead.root"].is_string();
    bundle.edit(|config| config["annotations"] = annotations);
    if own_root {
        fs::remove_dir_all(bundle.root("")).expect("no root directory is needed");
    }
    bundle
}

fn run_bundle(bundle: &Bundle) -> Outcome {
    run(bulkhead().args(["run", "--bundle"]).arg(bundle.path()).arg(unique_id("block")))
}

/// The one line of a refusal.
#[track_caller]
fn refused(bundle: &Bundle, words: &str) {
    let before = Leftovers::now();
    let outcome = run_bundle(bundle);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(words), "{words}: {}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    before.assert_none();
}

/// Fails unless the ext4 image needs neither repair nor its journal.
#[track_caller]
fn assert_clean(image: &Path) {
    let image = image.to_str().expect("UTF-8");
    tool("e2fsck", &["-fn", image]);
    let header = tool("dumpe2fs", &["-h", image]).text();
    assert!(header.contains("Filesystem state:         clean"), "{header}");
    assert!(!header.contains("needs_recovery"), "{header}");
}

#[test]
fn root_from_an_image_of_each_file_system() {
    let (scratch, before) = (scratch(), Leftovers::now());
    let tree = tempfile::tempdir().expect("a directory");
    busybox_root(tree.path());
    fs::write(tree.path().join("marker"), "from the image\n").expect("a file");
    let script = "cat /marker; echo new > /new; cat /new; grep -c '^overlay / ' /proc/mounts; \
                  cat /sys/block/vda/serial; echo; cat /sys/block/vda/ro";
    for (kind, overlaid, read_only) in
        [("erofs", "1", "1"), ("squashfs", "1", "1"), ("ext4", "0", "0")]
    {
        let image = image_of(tree.path(), kind, &scratch);
        let bundle = bundle(script, json!({"io.bulkhead.root": image}));
        let outcome = run_bundle(&bundle).expect(0);
        let expected = format!("from the image\nnew\n{overlaid}\nbulkhead-root\n{read_only}");
        assert_eq!(outcome.text(), expected, "{kind}");
        if kind == "ext4" {
            assert_clean(&image);
            let written = tool("debugfs", &["-R", "cat /new", image.to_str().expect("UTF-8")]);
            assert_eq!(written.text(), "new");
        }
    }
    // ext4 below a layer in memory keeps what it was.
    let image = scratch.path().join("ext4.img");
    let sum = || tool("sha256sum", &[image.to_str().expect("UTF-8")]).text();
    let sum_before = sum();
    let root = format!("{}:ro,overlay=8m", image.display());
    let script =
        "cat /new; echo gone > /new; dd if=/dev/zero of=/big bs=1M count=16 2>/dev/null; echo $?";
    let outcome = run_bundle(&bundle(script, json!({"io.bulkhead.root": root}))).expect(0);
    assert_eq!(outcome.text(), "new\n1");
    assert_eq!(sum(), sum_before);
    before.assert_none();
}

#[test]
fn read_only_root_on_a_disk_refuses_writes() {
    let scratch = scratch();
    let tree = tempfile::tempdir().expect("a directory");
    busybox_root(tree.path());
    // Mount points are made all the same.
    fs::remove_dir(tree.path().join("proc")).expect("an empty directory");
    let image = image_of(tree.path(), "erofs", &scratch);
    let mut bundle = bundle("touch /x; echo $?", json!({"io.bulkhead.root": image}));
    bundle.edit(|config| config["root"]["readonly"] = json!(true));
    let outcome = run_bundle(&bundle).expect(0);
    assert_eq!(outcome.text(), "1");
    assert!(outcome.stderr.contains("Read-only file system"), "{}", outcome.stderr);
}

#[test]
fn mounts_of_images_and_annotated_volumes() {
    let (scratch, before) = (scratch(), Leftovers::now());
    let tree = tempfile::tempdir().expect("a directory");
    fs::write(tree.path().join("content"), "content\n").expect("a file");
    let images: Vec<PathBuf> =
        ["erofs", "squashfs", "ext4"].map(|kind| image_of(tree.path(), kind, &scratch)).into();
    let data = scratch.path().join("data.img");
    fs::copy(&images[2], &data).expect("a copy");
    let script = "cat /erofs/content /squashfs/content /ext4/content /data/content; \
                  for d in erofs squashfs fixed; do touch /$d/x 2>/dev/null && echo $d written; done; \
                  echo to ext4 > /ext4/new; echo to data > /data/new; \
                  for d in /sys/block/vd*; do cat $d/serial; echo; done";
    let mut bundle = bundle(
        script,
        json!({
            "io.bulkhead.block.data": format!("{},mount=/data", data.display()),
            "io.bulkhead.block.fixed": format!("{}:ro,mount=/fixed,type=erofs", images[0].display()),
        }),
    );
    bundle.edit(|config| {
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        for (kind, image) in ["erofs", "squashfs", "ext4"].iter().zip(&images) {
            let options = if *kind == "ext4" { json!(["loop", "rw"]) } else { json!(["loop", "ro"]) };
            mounts.push(json!({
                "destination": format!("/{kind}"), "type": kind, "source": image, "options": options,
            }));
        }
    });
    let outcome = run_bundle(&bundle).expect(0);
    let serials = "bulkhead-mount-0\nbulkhead-mount-1\nbulkhead-mount-2\ndata\nfixed";
    assert_eq!(outcome.text(), format!("content\ncontent\ncontent\ncontent\n{serials}"));
    for (image, text) in [(&images[2], "to ext4"), (&data, "to data")] {
        assert_clean(image);
        let written = tool("debugfs", &["-R", "cat /new", image.to_str().expect("UTF-8")]);
        assert_eq!(written.text(), text);
    }
    before.assert_none();
}

#[test]
fn node_is_written_discarded_and_held_to_its_access() {
    let scratch = scratch();
    let raw = blank(&scratch, "raw", 16 * MIB);
    let fixed = blank(&scratch, "fixed", MIB);
    let script = "stat -c '%A %n' /dev/raw /dev/xvdf; ls /sys/block/vd*/mq | grep -c '^[0-9]'; \
                  dd if=/dev/urandom of=/dev/raw bs=1M count=8 conv=fsync 2>/dev/null; echo $?; \
                  blkdiscard -o 1048576 -l 4194304 /dev/raw; echo $?; \
                  dd if=/dev/zero of=/dev/xvdf count=1 2>/dev/null; echo $?; \
                  dd if=/dev/xvdf of=/dev/null bs=1M 2>/dev/null; echo $?";
    let bundle = bundle(
        script,
        json!({
            "io.bulkhead.vcpus": "2",
            "io.bulkhead.block.raw": format!("{},queues=2", raw.display()),
            "io.bulkhead.block.fixed": format!("{}:ro,node=/dev/xvdf,queues=1", fixed.display()),
        }),
    );
    let outcome = run_bundle(&bundle).expect(0);
    let nodes = "brw-rw---- /dev/raw\nbrw-rw---- /dev/xvdf";
    assert_eq!(outcome.text(), format!("{nodes}\n3\n0\n0\n1\n0"), "{}", outcome.stderr);
    let file = File::open(&raw).expect("the image");
    let blocks = file.metadata().expect("the image").blocks();
    assert_eq!(blocks, 4 * MIB / 512, "the discarded part is a hole");
    let mut bytes = vec![1; 4096];
    file.read_exact_at(&mut bytes, 2 * MIB).expect("the image");
    assert_eq!(bytes, vec![0; 4096]);
}

/// A loop device on `file`, detached when dropped.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Self {
        Self(tool("losetup", &["--find", "--show", file.to_str().expect("UTF-8")]).text())
    }

    /// Major and minor number.
    fn numbers(&self) -> (u32, u32) {
        let number = fs::metadata(&self.0).expect("a loop device").rdev();
        (rustix::fs::major(number), rustix::fs::minor(number))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run(Command::new("losetup").args(["--detach", &self.0]));
    }
}

#[test]
fn block_device_of_the_host_is_a_node_with_the_access_of_its_rule() {
    let scratch = scratch();
    let backing = blank(&scratch, "backing", 4 * MIB);
    let device = Loop::new(&backing);
    let (major, minor) = device.numbers();
    let script = "echo content | dd of=/dev/disk conv=fsync 2>/dev/null; echo $?; \
                  head -c 7 /dev/disk; stat -c %a:%u:%g /dev/disk";
    let mut bundle = bundle(script, json!({}));
    for (access, text) in [("r", "1\n600:0:2"), ("rw", "0\ncontent600:0:2")] {
        bundle.edit(|config| {
            config["linux"]["devices"] = json!([{
                "path": "/dev/disk", "type": "b", "major": major, "minor": minor,
                "fileMode": 0o600, "uid": 0, "gid": 2,
            }]);
            config["linux"]["resources"]["devices"] = json!([
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "b", "major": major, "minor": minor, "access": access},
            ]);
        });
        let seen = run_bundle(&bundle).expect(0).text().replace('\0', "");
        assert_eq!(seen, text, "{access}");
    }
    let mut bytes = [0; 8];
    File::open(&backing).and_then(|file| file.read_exact_at(&mut bytes, 0)).expect("the file");
    assert_eq!(&bytes, b"content\n");
    bundle.edit(|config| config["linux"]["devices"][0]["minor"] = json!(200));
    refused(&bundle, "this host has no block device 7:200");
}

#[test]
fn device_mapper_snapshot_is_a_root() {
    let scratch = scratch();
    run(Command::new("modprobe").arg("dm_snapshot"));
    let tree = tempfile::tempdir().expect("a directory");
    busybox_root(tree.path());
    fs::write(tree.path().join("marker"), "origin\n").expect("a file");
    let image = image_of(tree.path(), "ext4", &scratch);
    let (origin, store) = (Loop::new(&image), Loop::new(&blank(&scratch, "store", 8 * MIB)));
    let name = unique_id("snapshot");
    let table = format!("0 {} snapshot {} {} N 8", 64 * MIB / 512, origin.0, store.0);
    tool("dmsetup", &["create", &name, "--noudevsync", "--table", &table]);
    tool("dmsetup", &["mknodes", &name]);
    let node = format!("/dev/mapper/{name}");
    let script = "cat /marker; echo snapshot > /marker; cat /marker";
    let bundle = bundle(script, json!({"io.bulkhead.root": node}));
    let outcome = run_bundle(&bundle);
    let again = run_bundle(&bundle);
    run_until_done(Command::new("dmsetup").args(["remove", "--noudevsync", &name]));
    assert_eq!(outcome.expect(0).text(), "origin\nsnapshot");
    assert_eq!(again.expect(0).text(), "snapshot\nsnapshot");
    let kept = tool("debugfs", &["-R", "cat /marker", image.to_str().expect("UTF-8")]);
    assert_eq!(kept.text(), "origin");
}

/// What the guest of a bare machine does and says; see suite `devices`.
const PRELUDE: &str = "#!/bin/sh\nexport PATH=/bin\n\
    mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys\n\
    say() { echo \"<2>said: $*\" > /dev/kmsg; }\n";
const COMMAND_LINE: &str = "quiet loglevel=3 printk.devkmsg=on earlyprintk=ttyS0,keep panic=-1 \
                            reboot=k,panic_warm acpi=off random.trust_cpu=on tsc=reliable \
                            rdinit=/init";

fn machine(scratch: &TempDir, script: &str) -> Machine {
    let root = tempfile::tempdir_in(scratch.path()).expect("a directory");
    busybox_root(root.path());
    let init = root.path().join("init");
    fs::write(&init, format!("{PRELUDE}{script}")).expect("init");
    tool("chmod", &["755", init.to_str().expect("UTF-8")]);
    let path = scratch.path().join("initrd");
    let mut make = Command::new("sh");
    make.args(["-c", "find . | busybox cpio -o -H newc"]).current_dir(root.path());
    make.stdout(File::create(&path).expect("initrd")).stderr(Stdio::null());
    assert!(make.status().expect("sh").success());
    let guest = PathBuf::from(std::env::var_os("BULKHEAD_GUEST_DIR").expect("BULKHEAD_GUEST_DIR"));
    let machine = Machine::new(&guest.join("vmlinux"), 128).expect("kernel and KVM");
    machine.initrd(File::open(path).expect("initrd"), COMMAND_LINE)
}

#[test]
fn new_size_is_seen_by_a_running_guest() {
    let scratch = scratch();
    let path = blank(&scratch, "disk", 8 * MIB);
    let script = "say ready\n\
        while [ $(cat /sys/block/vda/size) = 16384 ]; do usleep 10000; done\n\
        say size $(cat /sys/block/vda/size)\n\
        dd if=/dev/zero of=/dev/vda bs=1M seek=15 count=1 oflag=direct 2>/dev/null; say wrote $?\n\
        reboot -f\n";
    let file = File::options().read(true).write(true).open(&path).expect("the disk");
    let disk = file.try_clone().expect("dup");
    let machine = machine(&scratch, script).vcpus(2).block("d", disk, false).tuned(2, None);
    let mut vmm = machine.spawn().expect("the machine is built");
    vmm.start().expect("the guest starts");
    vmm.console.wait_for("ready").expect("the guest starts");
    file.set_len(16 * MIB).expect("longer");
    // Before the other, after which the guest ends.
    assert!(vmm.resize_block(1).is_err(), "there is no second disk");
    vmm.resize_block(0).expect("the size is told");
    vmm.console.wait_for("wrote 0").expect("the guest writes beyond the old end");
    assert!(vmm.console.seen().contains("size 32768"), "{}", vmm.console.seen());
    assert_eq!(vmm.finish().expect("the guest ends"), ExitReason::PowerOff);
}

#[test]
fn disk_that_has_grown_is_told_to_its_container() {
    let (scratch, before) = (scratch(), Leftovers::now());
    let path = blank(&scratch, "disk", 8 * MIB);
    let script = "while :; do sleep 1000; done";
    let bundle = bundle(script, json!({"io.bulkhead.block.data": path}));
    let container = Created::new(unique_id("grow"), bundle);
    container.start();
    let exec = |script: &str| container.command(&["exec"], &["sh", "-c", script]).expect(0).text();
    assert_eq!(exec("cat /sys/block/vd*/size"), "16384");
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(16 * MIB))
        .expect("longer");
    container.command(&["resize-disk"], &["data"]).expect(0);
    // The guest's driver hears of it a moment later.
    exec("timeout 120 sh -c 'until grep -q ^32768$ /sys/block/vd*/size; do usleep 50000; done'");
    let refused = container.command(&["resize-disk"], &["date"]).expect(1);
    assert!(refused.stderr.contains("no disk \"date\" (it has data)"), "{}", refused.stderr);
    drop(container);
    before.assert_none();
}

#[test]
fn rate_limit_lets_as_many_requests_pass_as_its_bucket_holds() {
    const OPS: u64 = 40;
    let scratch = scratch();
    let disk = File::open(blank(&scratch, "disk", 8 * MIB)).expect("the disk");
    let script = "i=0\nwhile [ $i -lt 100 ]; do\n\
        dd if=/dev/vda of=/dev/null bs=4k skip=$i count=1 iflag=direct 2>/dev/null\n\
        i=$((i + 1))\ndone\nsay done\nreboot -f\n";
    // More than 30 years: what is there at the start is all that the test sees.
    let ops = RawTokenBucket { size: OPS, one_time_burst: 0, refill_time_ms: 1 << 40 };
    let rate = Some(RawRateLimit { ops: Some(ops), bytes: None });
    let machine = machine(&scratch, script).vcpus(2).block("d", disk, true).tuned(2, rate);
    let vmm = machine.spawn().expect("the machine is built");
    vmm.start().expect("the guest starts");
    let reads = || vmm.stats().expect("counters").blocks[0].reads;
    vmm.wait_until(LIMIT, |stats| stats.blocks[0].reads >= OPS).expect("the guest reads");
    vmm.pause().expect("pause");
    vmm.resume().expect("resume");
    assert_eq!(reads(), OPS);
    let stats = vmm.stats().expect("counters").blocks[0];
    assert_eq!((stats.writes, stats.errors), (0, 0));
    assert!(stats.read_bytes >= OPS * 512, "{stats:?}");
    vmm.stop().expect("stop");
}

/// `bulkhead launch --store STORE --root-mode=image WORDS...`
fn launch(store: &TempDir, words: &[&str]) -> Outcome {
    let mut command = bulkhead();
    command.args(["launch", "--root-mode=image", "--store"]).arg(store.path());
    run(command.args(words))
}

#[test]
fn containers_of_one_image_share_its_root_and_write_apart() {
    let (store, before) = (scratch(), Leftovers::now());
    let mut image = Image::busybox(json!({
        "Env": ["PATH=/bin"], "WorkingDir": "/made/here", "Volumes": {"/volume": {}},
    }));
    image.layer(|tree| {
        fs::create_dir(tree.join("opaque")).expect("directory");
        for name in ["opaque/old", "gone", "linked"] {
            fs::write(tree.join(name), "text\n").expect("file");
        }
        fs::hard_link(tree.join("linked"), tree.join("again")).expect("a link");
        tool("chown", &["7:8", tree.join("linked").to_str().expect("UTF-8")]);
        tool("chmod", &["4711", tree.join("linked").to_str().expect("UTF-8")]);
    });
    image.layer(|tree| {
        fs::create_dir(tree.join("opaque")).expect("directory");
        for name in [".wh.gone", "opaque/.wh..wh..opq", "opaque/young"] {
            fs::write(tree.join(name), "").expect("file");
        }
    });
    let layout = image.layout();
    let ids = [unique_id("image"), unique_id("image")];
    for id in &ids {
        launch(&store, &["-d", "--name", id, &layout, "sleep", "1000"]).expect(0);
    }
    let exec = |id: &str, script: &str| {
        run(bulkhead().args(["exec", id, "/bin/sh", "-c", script])).expect(0).text()
    };
    let seen = "pwd; ls /opaque; stat -c '%h %a %u:%g' /linked /again; ls /gone 2>/dev/null; \
                grep -c $(hostname) /etc/hosts; echo $0 > /written; touch /volume/x; cat /written";
    for id in &ids {
        let text = exec(id, seen);
        let wanted = "/made/here\nyoung\n2 4711 7:8\n2 4711 7:8\n1\n/bin/sh";
        assert_eq!(text, wanted);
    }
    exec(&ids[0], "echo first > /written; rm /linked; echo x >> /opaque/young");
    assert_eq!(exec(&ids[1], "cat /written; cat /opaque/young; stat -c %h /again"), "/bin/sh\n2");
    for id in &ids {
        run(bulkhead().args(["delete", "--force", id])).expect(0);
    }
    let names = |part: &str| fs::read_dir(store.path().join(part)).expect("a part").count();
    assert_eq!((names("images"), names("containers"), names("work")), (1, 0, 0));

    // The image is there: nothing is said of making it, and flags mean what they mean elsewhere.
    let data = scratch();
    let disk = blank(&data, "disk.img", MIB);
    let device = format!("{}:/dev/disk:r", disk.display());
    let script = "stat -c %A /dev/disk; touch /x 2>/dev/null; echo $?; \
                  dd if=/dev/zero of=/dev/disk count=1 2>/dev/null; echo $?";
    let words = ["--rm", "--read-only", "--device", &device, &layout, "sh", "-c", script];
    let outcome = launch(&store, &words).expect(0);
    assert_eq!((outcome.text().as_str(), outcome.stderr.as_str()), ("brw-rw----\n1\n1", ""));
    let tree = tempfile::tempdir().expect("a directory");
    fs::write(tree.path().join("content"), "content\n").expect("a file");
    let mount =
        format!("type=image,source={},target=/x", image_of(tree.path(), "ext4", &data).display());
    let words = ["--rm", "--mount", &mount, &layout, "sh", "-c", "cat /x/content; touch /x/y"];
    assert_eq!(launch(&store, &words).expect(0).text(), "content");
    assert_clean(&data.path().join("ext4.img"));
    before.assert_none();
}

/// A container in the background, deleted at the end of the test.
struct Running(String, #[expect(dead_code, reason = "its files are in use")] Bundle);

impl Running {
    fn start(bundle: Bundle) -> Self {
        let id = unique_id("block");
        let mut command = bulkhead();
        command.args(["run", "--detach", "--bundle"]).arg(bundle.path()).arg(&id);
        // The supervisor inherits the standard streams: a pipe would not reach its end.
        let output = File::create(bundle.path().join("output")).expect("file");
        let errors = output.try_clone().expect("file");
        let status = command.stdin(Stdio::null()).stdout(output).stderr(errors).status();
        let said = fs::read_to_string(bundle.path().join("output")).expect("file");
        assert!(status.expect("bulkhead starts").success(), "{said}");
        Self(id, bundle)
    }

    fn exec(&self, script: &str) -> Outcome {
        run(bulkhead().args(["exec", &self.0, "/bin/sh", "-c", script]))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        run(bulkhead().args(["delete", "--force", &self.0]));
    }
}

#[test]
fn image_that_one_container_writes_is_not_given_to_another() {
    let scratch = scratch();
    let disk = blank(&scratch, "disk", MIB);
    let with = |text: String| bundle("sleep 1000", json!({"io.bulkhead.block.d": text}));
    let (writer, reader) = (format!("{}", disk.display()), format!("{}:ro", disk.display()));
    let running = Running::start(with(writer.clone()));
    refused(&with(writer.clone()), "is in use");
    refused(&with(reader.clone()), "is in use");
    drop(running);
    let readers = [Running::start(with(reader.clone())), Running::start(with(reader))];
    refused(&with(writer.clone()), "is in use");
    drop(readers);
    let mut free = with(writer);
    free.edit(|config| config["process"]["args"] = json!(["/bin/true"]));
    run_bundle(&free).expect(0);

    // A file system of the host is mounted from it.
    let tree = tempfile::tempdir().expect("a directory");
    let image = image_of(tree.path(), "ext4", &scratch);
    let device = Loop::new(&image);
    let at = tempfile::tempdir().expect("a directory");
    tool("mount", &[&device.0, at.path().to_str().expect("UTF-8")]);
    let mounted = with(device.0.clone());
    let outcome = run_bundle(&mounted);
    tool("umount", &[at.path().to_str().expect("UTF-8")]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("is in use"), "{}", outcome.stderr);
}

#[test]
fn image_that_is_wrong_is_refused_by_field_with_a_fix() {
    let scratch = scratch();
    let tree = tempfile::tempdir().expect("a directory");
    fs::write(tree.path().join("content"), vec![7; 100_000]).expect("a file");
    let erofs = image_of(tree.path(), "erofs", &scratch);
    let cut = scratch.path().join("cut");
    fs::copy(&erofs, &cut).expect("a copy");
    File::options().write(true).open(&cut).and_then(|f| f.set_len(8192)).expect("shorter");
    let odd = blank(&scratch, "odd", 1000);
    let none = blank(&scratch, "none", 0);
    let empty = blank(&scratch, "empty", 8192);
    for (key, text, words) in [
        ("root", format!("{}", odd.display()), "1000 bytes, not a multiple of 512"),
        ("block.a", format!("{}", none.display()), "0 bytes, not a multiple of 512"),
        ("root", format!("{}", empty.display()), "holds no file system"),
        ("root", format!("{},type=ext4", erofs.display()), "holds erofs, not ext4"),
        ("root", format!("{}", cut.display()), "is truncated"),
        ("block.a", "/absent".to_owned(), "/absent: No such file"),
        ("block.a", "/var/tmp".to_owned(), "neither a regular file nor a block device"),
        ("block.a", "/dev/null".to_owned(), "neither a regular file nor a block device"),
    ] {
        let mut bundle = Bundle::script("true");
        bundle.edit(|config| config["annotations"] = json!({format!("io.bulkhead.{key}"): text}));
        refused(&bundle, words);
    }
    // What the superblock does not show, the guest's kernel says.
    let broken = image_of(tree.path(), "ext4", &scratch);
    let file = File::options().write(true).open(&broken).expect("an image");
    // Blocks, clusters and inodes of a group.
    file.write_all_at(&[0xff; 12], 1024 + 32).expect("an image");
    let mut bundle = Bundle::script("true");
    let text = format!("{},mount=/x", broken.display());
    bundle.edit(|config| config["annotations"] = json!({"io.bulkhead.block.a": text}));
    let outcome = run_bundle(&bundle);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("mount disk-a (ext4)"), "{}", outcome.stderr);
}

#[test]
fn image_that_shrinks_or_whose_disk_is_full_is_an_error_inside() {
    let scratch = scratch();
    let small = tempfile::tempdir().expect("a directory");
    let at = small.path().to_str().expect("UTF-8");
    tool("mount", &["-t", "tmpfs", "-o", "size=2m", "tmpfs", at]);
    let full = small.path().join("full");
    File::create(&full).and_then(|file| file.set_len(8 * MIB)).expect("an image");
    let shrinks = scratch.path().join("shrinks");
    fs::write(&shrinks, vec![1; 4 << 20]).expect("an image");
    let running = Running::start(bundle(
        "sleep 1000",
        json!({
            "io.bulkhead.block.full": full,
            "io.bulkhead.block.shrinks": shrinks,
        }),
    ));
    let write = "dd if=/dev/zero of=/dev/full0 bs=64k count=64 oflag=direct";
    let outcome = running.exec(&write.replace("full0", "full"));
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("Input/output error"), "{}", outcome.stderr);
    let read = |count: u32| {
        let dd = format!("dd if=/dev/shrinks of=/dev/null bs=64k count={count} iflag=direct");
        running.exec(&dd).code
    };
    assert_eq!(read(64), 0);
    File::options().write(true).open(&shrinks).and_then(|f| f.set_len(MIB)).expect("shorter");
    assert_eq!((read(64), read(16)), (1, 0));
    assert_eq!(running.exec("echo alive").expect(0).text(), "alive");
    drop(running);
    // The kernel lets go of a disk a moment after the monitor that had it was killed.
    run_until_done(Command::new("umount").arg(at));
}
