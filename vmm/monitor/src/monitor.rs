//! The life of the machine: configured once, then started, paused, resumed and stopped as the
//! runtime says, until guest, file server or runtime end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bulkhead_devices::virtio::ActivateError;
use bulkhead_jail::confine::{self, ConfineError, Limits};
use bulkhead_jail::seccomp::SeccompError;
use bulkhead_machine::memory::panic_mark;
use bulkhead_machine::run::{StartError, VcpuExit, VcpuSet};
use bulkhead_protocol::control::{ExitReason, Reply, Request, VmState, VmStats};
use bulkhead_protocol::vm::{VmConfig, VmConfigError};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::assemble::{self, AssembleError, Descriptors, Devices, Machine};
use crate::control::{Control, ControlError};
use crate::threads::Filters;

/// Descriptors that the process may hold: files that the file server has passed, vsock
/// connections, and what the machine itself needs.
const DESCRIPTORS: u64 = 16_384;

/// Threads besides vCPUs, block devices and network slots: control, rng, vsock, fs, balloon and
/// memory device, with room to spare.
const OTHER_THREADS: u64 = 8;

/// Threads of a queue of a block device: its own and those that the kernel adds for its ring.
const BLOCK_THREADS: u64 = 6;

/// Memory of a queue of a block device that the kernel counts as locked: the pages of its ring.
/// With less the device works without one, a request at a time.
const BLOCK_LOCKED_BYTES: u64 = 64 << 10;

/// Why the VMM cannot go on.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The first request was another.
    #[error("the runtime's first request does not configure the machine")]
    NotConfigured,
    /// The configuration.
    #[error("checking the VM configuration")]
    Config(#[from] VmConfigError),
    /// The jail.
    #[error("entering the jail")]
    Jail(#[from] ConfineError),
    /// A seccomp filter.
    #[error("entering the jail")]
    Seccomp(#[from] SeccompError),
    /// The machine.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// The vCPU threads.
    #[error("starting the vCPU threads")]
    Vcpus(#[from] StartError),
    /// Waiting.
    #[error("waiting for the runtime or the guest")]
    Poll(#[source] io::Error),
}

/// Runs the machine that the runtime configures. `None`: the runtime is gone.
pub fn run(control: &Control) -> Result<Option<ExitReason>, MonitorError> {
    let Some((request, fds)) = control.receive()? else {
        return Ok(None);
    };
    let Request::Configure { config } = request else {
        return Err(MonitorError::NotConfigured);
    };
    let config = VmConfig::new(*config, fds.len())?;

    let queues = config.blocks().iter().map(|block| u64::from(block.queues)).sum::<u64>();
    let nets = config.nets().len() as u64 + u64::from(config.net_spares());
    let threads = u64::from(config.vcpus()) + BLOCK_THREADS * queues + nets + OTHER_THREADS;
    let locked_bytes = BLOCK_LOCKED_BYTES * queues;
    let limits = Limits { descriptors: DESCRIPTORS, threads: Some(threads), locked_bytes };
    confine::enter_unprivileged(config.jail_id(), limits)?;

    let filters = Filters::compile(&assemble::thread_kinds(&config))?;
    let machine = assemble::assemble(&config, Descriptors::new(fds), &filters.device_hook())?;
    let running = Running::new(machine, &filters)?;
    filters.confine_control()?;
    control.send(&Reply::Done { state: VmState::Ready })?;
    running.serve(control)
}

/// A machine whose threads exist.
struct Running {
    vcpus: VcpuSet,
    devices: Devices,
    memory: GuestMemoryMmap,
    reset: EventFd,
    server_gone: EventFd,
    state: VmState,
}

/// What the runtime or the guest has done.
enum Happened {
    Request,
    Ended(ExitReason),
}

impl Running {
    fn new(machine: Machine, filters: &Filters) -> Result<Self, MonitorError> {
        let Machine { vm, buses, devices, reset, server_gone } = machine;
        let memory = vm.memory().clone();
        let vcpus = VcpuSet::spawn(vm, buses, filters.vcpu_hook())?;
        Ok(Self { vcpus, devices, memory, reset, server_gone, state: VmState::Ready })
    }

    fn serve(mut self, control: &Control) -> Result<Option<ExitReason>, MonitorError> {
        let reason = loop {
            match self.wait(control)? {
                Happened::Ended(reason) => break Some(reason),
                Happened::Request => match control.receive()? {
                    None => break None,
                    Some((Request::Stop, _)) => break Some(ExitReason::Stopped),
                    Some((request, fds)) => control.send(&self.carry_out(&request, fds))?,
                },
            }
        };
        self.vcpus.stop();
        self.devices.pause();
        self.devices.flush_console();
        Ok(reason)
    }

    fn wait(&self, control: &Control) -> Result<Happened, MonitorError> {
        let mut fds = [
            PollFd::from_borrowed_fd(borrow(&self.reset), PollFlags::IN),
            PollFd::from_borrowed_fd(borrow(self.vcpus.event()), PollFlags::IN),
            PollFd::from_borrowed_fd(borrow(&self.server_gone), PollFlags::IN),
            PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN),
        ];
        loop {
            match rustix::event::poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(MonitorError::Poll(error.into())),
                Ok(_) => break,
            }
        }
        let [reset, exits, server_gone, _] = fds.map(|fd| !fd.revents().is_empty());
        // The guest's own end comes before the ends that it causes.
        if reset {
            return Ok(Happened::Ended(self.reset_reason()));
        }
        if exits && let Some(reason) = self.exit_reason() {
            return Ok(Happened::Ended(reason));
        }
        if server_gone {
            let message = "the file server has ended".to_owned();
            return Ok(Happened::Ended(ExitReason::Error { message }));
        }
        Ok(Happened::Request)
    }

    /// Clean power-offs and panics both end in a reset; a panic leaves a mark.
    fn reset_reason(&self) -> ExitReason {
        if panic_mark(&self.memory) { ExitReason::Panic } else { ExitReason::PowerOff }
    }

    fn exit_reason(&self) -> Option<ExitReason> {
        // The event stays readable: an exit ends the machine.
        match self.vcpus.try_exit()?.1 {
            VcpuExit::TripleFault => Some(ExitReason::TripleFault),
            VcpuExit::Stopped => None,
            VcpuExit::SystemEvent(number) => Some(ExitReason::Error {
                message: format!("the guest asked KVM for system event {number}"),
            }),
            VcpuExit::Error(error) => Some(ExitReason::Error { message: crate::chain(&error) }),
        }
    }

    /// One transition of the machine's state; a request that does not fit changes nothing.
    fn carry_out(&mut self, request: &Request, fds: Vec<OwnedFd>) -> Reply {
        if let Request::Stats = request {
            let (blocks, nets) = (self.devices.blocks().stats(), self.devices.nets().stats());
            let mut stats = VmStats { blocks, nets, ..VmStats::default() };
            self.devices.memory().tell(&mut stats);
            return Reply::Stats { stats: Box::new(stats) };
        }
        let next = match (self.state, request) {
            (VmState::Ready, Request::Start) => self.start(),
            (VmState::Running, Request::Pause) => self.pause(),
            (VmState::Paused, Request::Resume) => self.resume(),
            (state, Request::Status) => Ok(state),
            (state, Request::ResizeBlock { block }) => self.resize_block(*block).map(|()| state),
            (state, Request::AttachNet { slot, net }) => {
                let nets = self.devices.nets();
                nets.attach(*slot, net, fds).map(|()| state).map_err(|e| crate::chain(&e))
            }
            (state, Request::DetachNet { slot }) => {
                self.devices.nets().detach(*slot).map(|()| state).map_err(|e| crate::chain(&e))
            }
            (state, Request::Balloon { mib }) => {
                let inflated = self.devices.memory().inflate(*mib);
                inflated.map(|()| state).map_err(|error| crate::chain(&error))
            }
            (state, Request::Hotplug { mib }) => {
                let plugged = self.devices.memory().plug(*mib);
                plugged.map(|()| state).map_err(|error| crate::chain(&error))
            }
            (state, request) => Err(format!("{} in state {state:?}", name(request))),
        };
        match next {
            Ok(state) => {
                self.state = state;
                Reply::Done { state }
            }
            Err(message) => Reply::Failed { message },
        }
    }

    fn start(&mut self) -> Result<VmState, String> {
        self.vcpus.resume();
        Ok(VmState::Running)
    }

    fn pause(&mut self) -> Result<VmState, String> {
        self.vcpus.pause();
        self.devices.pause();
        Ok(VmState::Paused)
    }

    fn resize_block(&self, block: u32) -> Result<(), String> {
        self.devices.blocks().resize(block).map_err(|error| crate::chain(&error))
    }

    fn resume(&mut self) -> Result<VmState, String> {
        self.devices.resume().map_err(|error: ActivateError| crate::chain(&error))?;
        self.vcpus.resume();
        Ok(VmState::Running)
    }
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Configure { .. } => "configure",
        Request::Start => "start",
        Request::Pause => "pause",
        Request::Resume => "resume",
        Request::Stop => "stop",
        Request::Status => "status",
        Request::AttachNet { .. } => "attach_net",
        Request::DetachNet { .. } => "detach_net",
        Request::Balloon { .. } => "balloon",
        Request::Hotplug { .. } => "hotplug",
        Request::ResizeBlock { .. } => "resize_block",
        Request::Stats => "stats",
    }
}
