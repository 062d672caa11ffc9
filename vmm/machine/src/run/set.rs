//! The vCPUs of a machine as a whole.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{Killable, unblock_signal};

use super::control::{Command, Control};
use super::exit::{RunError, VcpuExit};
use super::thread::Context;
use super::{IoBus, kick};
use crate::vm::Vm;

/// What each vCPU thread runs first, with the number of its vCPU: the monitor installs the seccomp
/// filter here. No vCPU enters the guest before every hook has succeeded.
pub type VcpuHook = Arc<dyn Fn(u32) -> io::Result<()> + Send + Sync>;

/// Stack of a vCPU thread in bytes; only what is touched counts.
const STACK_SIZE: usize = 256 << 10;

/// Why the vCPUs do not run.
#[derive(Debug, Error)]
pub enum StartError {
    /// Installing the signal handler.
    #[error("installing the handler of the vCPU signal")]
    Signal(#[source] io::Error),
    /// Creating or copying the descriptor that reports ends.
    #[error("creating an event descriptor")]
    Event(#[source] io::Error),
    /// Spawning a thread.
    #[error("starting the thread of vCPU {0}")]
    Spawn(u32, #[source] io::Error),
    /// A vCPU ended before it could run.
    #[error("vCPU {0} did not start")]
    Ended(u32, #[source] RunError),
    /// The threads are gone without a word.
    #[error("a vCPU thread ended without saying why")]
    Lost,
}

/// Running vCPUs, each on a thread of its own, and the machine they belong to.
///
/// Dropping it stops and joins them. It must not be used, or dropped, on a vCPU's thread.
pub struct VcpuSet {
    threads: Vec<JoinHandle<()>>,
    control: Arc<Control>,
    exits: Receiver<(u32, VcpuExit)>,
    event: EventFd,
    vm: Vm,
}

impl VcpuSet {
    /// Runs the vCPUs of `vm`: [`Self::spawn`], then [`Self::resume`].
    pub fn start(vm: Vm, bus: Arc<dyn IoBus>, hook: VcpuHook) -> Result<Self, StartError> {
        let set = Self::spawn(vm, bus, hook)?;
        set.resume();
        Ok(set)
    }

    /// Spawns the threads of the vCPUs of `vm`, paused, each with `hook` run.
    ///
    /// Takes the first real-time signal of the process for itself. Either all threads wait for
    /// [`Self::resume`] in the end, or none does and all have been joined.
    pub fn spawn(mut vm: Vm, bus: Arc<dyn IoBus>, hook: VcpuHook) -> Result<Self, StartError> {
        kick::install().map_err(StartError::Signal)?;
        let vcpus = vm.take_vcpus();
        let (sender, exits) = mpsc::channel();
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(StartError::Event)?;
        let control = Arc::new(Control::new(vcpus.len()));
        let context =
            Context { control: control.clone(), interrupts: vm.interrupts().clone(), bus, hook };
        // From here on, dropping the set stops what has been spawned.
        let mut set = Self { threads: Vec::with_capacity(vcpus.len()), control, exits, event, vm };
        for (id, vcpu) in (0..).zip(vcpus) {
            let event = set.event.try_clone().map_err(StartError::Event)?;
            let report =
                Report { id, exit: None, sender: sender.clone(), event, context: context.clone() };
            set.threads.push(spawn(report, vcpu).map_err(|e| StartError::Spawn(id, e))?);
        }
        set.control.wait_until_quiet();
        match set.exits.try_recv() {
            Ok((id, VcpuExit::Error(error))) => Err(StartError::Ended(id, error)),
            Ok(_) => Err(StartError::Lost),
            Err(_) => Ok(set),
        }
    }

    /// Readable once a vCPU has ended; the owner reads it, then calls [`Self::try_exit`] until
    /// there is none.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The next vCPU that has ended, and how. Each ends once; the others run on.
    pub fn try_exit(&self) -> Option<(u32, VcpuExit)> {
        self.exits.try_recv().ok()
    }

    /// Takes every vCPU out of the guest, and returns when all are out. A port or memory access
    /// that was under way is complete.
    pub fn pause(&self) {
        self.control.set(Command::Pause);
        self.kick();
        self.control.wait_until_quiet();
    }

    /// Lets paused vCPUs run on.
    pub fn resume(&self) {
        self.control.set(Command::Run);
    }

    /// Ends every vCPU, running or paused, and returns when their threads are gone.
    pub fn stop(&mut self) {
        self.control.set(Command::Stop);
        self.kick();
        for thread in self.threads.drain(..) {
            // The thread has reported its panic as the end of its vCPU.
            let _ = thread.join();
        }
    }

    /// The machine.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    fn kick(&self) {
        for thread in &self.threads {
            // Fails only for a thread that has ended.
            let _ = thread.kill(kick::signal());
        }
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reports the end of a vCPU exactly once, also when its thread panics.
struct Report {
    id: u32,
    exit: Option<VcpuExit>,
    sender: Sender<(u32, VcpuExit)>,
    event: EventFd,
    context: Context,
}

impl Report {
    fn run(&mut self, vcpu: VcpuFd) {
        // The mask is inherited from whoever starts the machine.
        let exit = match unblock_signal(kick::signal()) {
            Ok(()) => self.context.run(self.id, vcpu),
            Err(error) => VcpuExit::Error(RunError::Hook(io::Error::other(error.to_string()))),
        };
        self.exit = Some(exit);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let exit = self.exit.take().unwrap_or(VcpuExit::Error(RunError::Panic));
        // Fails only when the set is gone, and with it whoever would want to know.
        let _ = self.sender.send((self.id, exit));
        // The counter of an eventfd overflows only after 2^64 - 2 unread signals.
        let _ = self.event.write(1);
        self.context.control.ended();
    }
}

fn spawn(mut report: Report, vcpu: VcpuFd) -> io::Result<JoinHandle<()>> {
    let name = format!("vcpu{}", report.id);
    thread::Builder::new().name(name).stack_size(STACK_SIZE).spawn(move || report.run(vcpu))
}
