//! QEMU's microvm machine with the same guests: the leanest that a general monitor offers.

use std::process::Command;

use bulkhead_tests::bench::room::KERNEL;

use crate::{INITRD, TINY};

/// No device that the guests do not use; the serial port is the output.
const MACHINE: &str =
    "microvm,pit=off,pic=off,rtc=off,acpi=off,pcie=off,usb=off,auto-kernel-cmdline=off";
/// What bulkhead's own guests get, as far as it concerns the kernel itself.
const COMMAND_LINE: &str = "quiet loglevel=1 earlyprintk=ttyS0,keep panic=-1 reboot=k \
                            acpi=off random.trust_cpu=on tsc=reliable noreplace-smp rdinit=/init";

fn qemu(memory_mib: u32) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", MACHINE, "-enable-kvm", "-cpu", "host", "-smp", "1"]);
    qemu.arg("-m").arg(memory_mib.to_string());
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-serial", "stdio"]);
    qemu
}

/// The guest of a few instructions.
pub fn qemu_tiny() -> Command {
    let mut qemu = qemu(crate::MEMORY_MIB);
    qemu.args(["-kernel", TINY]);
    qemu
}

/// The guest kernel with a first process that prints a line.
pub fn qemu_kernel() -> Command {
    let mut qemu = qemu(crate::MEMORY_MIB);
    qemu.args(["-kernel", KERNEL, "-initrd", INITRD, "-append", COMMAND_LINE]);
    qemu
}
