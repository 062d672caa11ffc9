//! The two machines, with everything but the device that is measured.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use bulkhead_tests::bench::idle::Idle;
use bulkhead_tests::bench::room::{ASSETS, KERNEL};
use bulkhead_tests::vmm::Machine;

use crate::marks::{self, Case};

/// QEMU's program.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Guest memory.
const MEMORY_MIB: u32 = 512;

/// The command line of both kernels. The guest's messages pass through the kernel log unlimited.
fn command_line(suite: &str) -> String {
    format!(
        "quiet loglevel=1 earlyprintk=ttyS0,keep panic=-1 reboot=k acpi=off random.trust_cpu=on \
         tsc=reliable noreplace-smp printk.devkmsg=on rdinit=/init bench={suite}"
    )
}

fn asset(name: &str) -> String {
    format!("{ASSETS}/{name}")
}

/// A machine of `bulkhead-vmm` for `suite`, whose initial RAM file system is `initrd`.
pub fn bulkhead(suite: &str, initrd: &str) -> Result<Machine> {
    let initrd = File::open(asset(initrd)).context("no initrd")?;
    Ok(Machine::new(Path::new(KERNEL), MEMORY_MIB)?.initrd(initrd, &command_line(suite)))
}

/// Runs `machine` until its guest is done.
pub fn run_bulkhead(machine: Machine, idle: &Idle) -> Result<Vec<Case>> {
    let mut vmm = machine.spawn()?;
    vmm.start()?;
    marks::follow(&mut vmm.console, idle)
}

/// A microvm of QEMU for `suite`: no device that the guest does not use, memory that other
/// processes can share, the modern transport.
pub fn qemu(suite: &str, initrd: &str) -> Command {
    let mut qemu = Command::new(QEMU);
    qemu.args([
        "-M",
        "microvm,pit=off,pic=off,rtc=off,acpi=off,pcie=off,usb=off,memory-backend=ram",
    ]);
    qemu.args(["-enable-kvm", "-cpu", "host", "-smp", "1", "-m", &MEMORY_MIB.to_string()]);
    let memory = format!("memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on");
    qemu.args(["-object", &memory]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-serial", "stdio", "-global", "virtio-mmio.force-legacy=false"]);
    qemu.args(["-kernel", KERNEL, "-initrd", &asset(initrd), "-append", &command_line(suite)]);
    qemu
}

/// Runs `qemu` until its guest is done.
pub fn run_qemu(qemu: &mut Command, idle: &Idle) -> Result<Vec<Case>> {
    let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = Killed(child.context("cannot start QEMU")?);
    let console = child.0.stdout.take().context("the console is a pipe")?;
    marks::follow(console, idle)
}

/// A process that is killed when it is dropped.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
