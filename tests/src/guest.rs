//! Guests without an agent: the kernel, busybox, and a script as its first process.
//!
//! What the script finds out it says on the console; where it must wait for the test, it watches
//! a disk that the test writes a word to.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bundle::busybox_root;
use crate::run;

/// The console is the serial port's early driver; what the script says is not throttled.
pub const COMMAND_LINE: &str = "quiet loglevel=3 printk.devkmsg=on earlyprintk=ttyS0,keep \
                                panic=-1 reboot=k,panic_warm acpi=off random.trust_cpu=on \
                                tsc=reliable rdinit=/init";
/// Start of every script. `say` puts a line on the console, `sum` digests its input, `await` waits
/// for a word on the disk that [`Signal`] is.
const PRELUDE: &str = "#!/bin/sh\nexport PATH=/bin\n\
    mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys\n\
    say() { echo \"<2>said: $*\" > /dev/kmsg; }\n\
    sum() { sha256sum | cut -c 1-64; }\n\
    await() { until dd if=/dev/$signal bs=512 count=1 iflag=direct 2>/dev/null | grep -q \"<$1>\"; \
              do sleep 0.1; done; }\n";

/// The kernel of the sandboxes.
pub fn kernel() -> PathBuf {
    let guest = std::env::var_os("BULKHEAD_GUEST_DIR").map(PathBuf::from);
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    guest.unwrap_or_else(built).join("vmlinux")
}

/// An initial RAM file system of busybox with `script` as its first process, made in `scratch`.
pub fn initrd(scratch: &Path, script: &str) -> File {
    let root = tempfile::tempdir_in(scratch).expect("a directory");
    busybox_root(root.path());
    let init = root.path().join("init");
    fs::write(&init, format!("{PRELUDE}{script}")).expect("init");
    run(Command::new("chmod").arg("755").arg(&init)).expect(0);
    let path = scratch.join("initrd");
    let archive = "find . | busybox cpio -o -H newc";
    let mut make = Command::new("sh");
    make.args(["-c", archive]).current_dir(root.path());
    make.stdout(File::create(&path).expect("initrd")).stderr(Stdio::null());
    assert!(make.status().expect("sh").success());
    File::open(path).expect("initrd")
}

/// What scripts said, line by line, in what the console shows.
pub fn said(console: &str) -> Vec<String> {
    let lines = console.lines().filter_map(|line| line.split_once("said: "));
    lines.map(|(_, text)| text.trim_end().to_owned()).collect()
}

/// A disk that a script watches for words, named `$signal` there.
pub struct Signal(File);

impl Signal {
    /// Makes the disk in `scratch`.
    pub fn new(scratch: &Path) -> Self {
        let options = &mut File::options();
        let file = options.read(true).write(true).create_new(true).open(scratch.join("signal"));
        let file = file.expect("a disk");
        file.set_len(512).expect("a disk");
        Self(file)
    }

    /// The disk, for a machine.
    pub fn disk(&self) -> File {
        self.0.try_clone().expect("dup")
    }

    /// Lets a script that awaits `word` go on.
    pub fn give(&self, word: &str) {
        let mut sector = format!("<{word}>").into_bytes();
        sector.resize(512, b'\n');
        self.0.write_all_at(&sector, 0).expect("writing a disk");
    }
}
