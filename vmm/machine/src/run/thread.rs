//! One vCPU's thread: run, serve the exit, run again.

use std::slice;
use std::sync::Arc;

use kvm_bindings::{KVM_EXIT_IO_IN, kvm_run};
use kvm_ioctls::{VcpuExit as KvmExit, VcpuFd};

use super::control::{Control, Turn};
use super::exit::{InternalError, RunError, VcpuExit};
use super::kick::Kickable;
use super::{IoBus, VcpuHook};
use crate::irq::Interrupts;

/// What every vCPU thread works with.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) control: Arc<Control>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) bus: Arc<dyn IoBus>,
    pub(super) hook: VcpuHook,
}

/// What to do after an exit of the guest.
enum Next {
    Run,
    /// The exit is a port access; its data lies behind `kvm_run`.
    Port,
    /// Look for a command.
    Command,
    /// The exit is an internal error, described in `kvm_run`.
    Internal,
    /// The exit reason in `kvm_run` has no meaning here.
    Unexpected,
    End(VcpuExit),
}

impl Context {
    /// Runs vCPU `id` to its end.
    pub(super) fn run(&self, id: u32, vcpu: VcpuFd) -> VcpuExit {
        if let Err(error) = (self.hook)(id) {
            return VcpuExit::Error(RunError::Hook(error));
        }
        let mut vcpu = Kickable::new(vcpu);
        loop {
            vcpu.clear();
            match self.control.wait_turn() {
                Turn::Run => {}
                // The guest's watchdogs are told that time has passed without them. Fails, and
                // rightly so, for a guest that does not use kvm-clock (yet).
                Turn::Resume => drop(vcpu.vcpu().kvmclock_ctrl()),
                Turn::Stop => return VcpuExit::Stopped,
            }
            if let Some(exit) = self.run_until_kicked(vcpu.vcpu()) {
                return exit;
            }
        }
    }

    /// Returns `None` when there may be a command.
    fn run_until_kicked(&self, vcpu: &mut VcpuFd) -> Option<VcpuExit> {
        loop {
            match self.step(vcpu) {
                Next::Run => {}
                Next::Port => self.access_ports(vcpu.get_kvm_run()),
                Next::Command => return None,
                Next::Internal => {
                    let rip = vcpu.get_regs().ok().map(|registers| registers.rip);
                    let error = InternalError::new(vcpu.get_kvm_run(), rip);
                    return Some(VcpuExit::Error(RunError::Internal(error)));
                }
                Next::Unexpected => {
                    let number = vcpu.get_kvm_run().exit_reason;
                    return Some(VcpuExit::Error(RunError::Unexpected { number }));
                }
                Next::End(exit) => return Some(exit),
            }
        }
    }

    /// Runs the guest up to one exit and serves it.
    fn step(&self, vcpu: &mut VcpuFd) -> Next {
        match vcpu.run() {
            Ok(KvmExit::IoIn(..) | KvmExit::IoOut(..)) => Next::Port,
            Ok(KvmExit::MmioRead(addr, data)) => {
                match Interrupts::offset(addr) {
                    Some(offset) => self.interrupts.read(offset, data),
                    None => self.bus.mmio_read(addr, data),
                }
                Next::Run
            }
            Ok(KvmExit::MmioWrite(addr, data)) => self.write_memory(addr, data),
            Ok(KvmExit::Intr) => Next::Command,
            Ok(exit) => end(&exit),
            Err(error) => match error.errno() {
                libc::EINTR => Next::Command,
                // A processor that waits for its start was woken for something else.
                libc::EAGAIN => Next::Run,
                _ => Next::End(VcpuExit::Error(RunError::Run(error))),
            },
        }
    }

    fn write_memory(&self, addr: u64, data: &[u8]) -> Next {
        match Interrupts::offset(addr) {
            Some(offset) => match self.interrupts.write(offset, data) {
                Ok(()) => Next::Run,
                Err(error) => Next::End(VcpuExit::Error(error.into())),
            },
            None => {
                self.bus.mmio_write(addr, data);
                Next::Run
            }
        }
    }

    /// Serves a port exit, element by element: a string instruction moves several at once.
    fn access_ports(&self, run: &mut kvm_run) {
        // SAFETY: every member of the union is plain data, and KVM has filled this one.
        let io = unsafe { run.__bindgen_anon_1.io };
        let start = (&raw mut *run).cast::<u8>().wrapping_add(io.data_offset as usize);
        let (size, count) = (usize::from(io.size.max(1)), io.count as usize);
        // SAFETY: KVM places the data within the pages that are mapped for this vCPU, behind
        // `kvm_run`, and leaves them alone until the vCPU runs again.
        let data = unsafe { slice::from_raw_parts_mut(start, size * count) };
        for element in data.chunks_exact_mut(size) {
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                self.bus.pio_read(io.port, element);
            } else {
                self.bus.pio_write(io.port, element);
            }
        }
    }
}

/// Exits after which a vCPU does not run on.
fn end(exit: &KvmExit<'_>) -> Next {
    Next::End(match exit {
        KvmExit::Shutdown => VcpuExit::TripleFault,
        KvmExit::SystemEvent(kind, _) => VcpuExit::SystemEvent(*kind),
        KvmExit::FailEntry(reason, cpu) => {
            VcpuExit::Error(RunError::FailEntry { reason: *reason, cpu: *cpu })
        }
        KvmExit::MemoryFault { flags, gpa, size } => {
            VcpuExit::Error(RunError::MemoryFault { gpa: *gpa, size: *size, flags: *flags })
        }
        KvmExit::InternalError => return Next::Internal,
        _ => return Next::Unexpected,
    })
}
