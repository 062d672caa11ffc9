//! From a plan to a machine whose agent serves.
//!
//! Order: everything is opened and every program found before a process exists; the processes
//! are recorded before they run; the VMM is configured and started; the agent's first byte ends
//! the boot. Whatever fails on the way, dropping the half-made machine ends its processes.

use std::env;
use std::io::{self, PipeReader};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use bulkhead_protocol::control::{Reply, Request, VmState};
use bulkhead_protocol::guest::{GUEST_CID, READY_PORT, SHARE_TAG};
use bulkhead_protocol::share::{RawShare, RawShareConfig};
use bulkhead_protocol::vm::{
    FdIndex, RawBlock, RawDial, RawJail, RawShareDevice, RawVmConfig, RawVsock,
};

use super::capacity::Host;
use super::channel::{Channel, packet_pair};
use super::machine::Log;
use super::sources::{OpenShare, open_kvm, open_shares};
use super::{Capacity, Event, Machine, SandboxError, View, cmdline};
use crate::Failure;
use crate::block::{GuestDisks, OpenDisk, open_disks};
use crate::cgroup::HostCgroup;
use crate::failure::printable;
use crate::install::{FSD, INITRD, Install, KERNEL, VMM};
use crate::network::Devices;
use crate::plan::SandboxPlan;
use crate::process::ProcessId;
use crate::request::RootSource;
use crate::signal::Signals;
use crate::spawn::{Gated, spawn};
use crate::state::{ContainerDir, LOG, VSOCK_SOCKET};

/// Seconds that a silent guest may take to start, for every sandbox of this caller.
pub const BOOT_TIMEOUT_ENV: &str = "BULKHEAD_BOOT_TIMEOUT_S";
/// How long a silent guest may take to start.
const BOOT_LIMIT: Duration = Duration::from_secs(5);
/// Host id of the jailed VMM, less the supervisor's pid: no two live sandboxes share one, and
/// the range (to 0x703f_ffff, pids end at 2^22) is above what distributions give to users.
const JAIL_ID_BASE: u32 = 0x7000_0000;

/// A sandbox that has been opened, but has no processes yet.
#[derive(Debug)]
pub struct Prepared {
    limit: Duration,
    debug: bool,
    capacity: Capacity,
    kernel_parameters: Vec<String>,
    oom_score_adj: Option<i32>,
    install: Install,
    kvm: OwnedFd,
    kernel: OwnedFd,
    initrd: OwnedFd,
    shares: Vec<OpenShare>,
    view: View,
    disks: Vec<OpenDisk>,
    /// What the agent makes of the disks.
    guest_disks: GuestDisks,
}

/// The ends of sockets and pipes that go to the VMM and the file server.
struct Ends {
    console: OwnedFd,
    listener: OwnedFd,
    dial: OwnedFd,
    vmm_device: OwnedFd,
    fsd_device: OwnedFd,
    network: Devices,
}

/// Descriptors of a message, with their indices.
#[derive(Default)]
struct Fds<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Fds<'a> {
    fn add(&mut self, fd: &'a impl AsFd) -> FdIndex {
        self.0.push(fd.as_fd());
        FdIndex(self.0.len() as u32 - 1)
    }
}

/// How long a silent guest may take to start: the plan's word, the environment's, or 5 s.
pub fn boot_limit(plan: &SandboxPlan) -> Result<Duration, Failure> {
    if let Some(limit) = plan.boot_limit {
        return Ok(limit);
    }
    let Some(text) = env::var_os(BOOT_TIMEOUT_ENV) else {
        return Ok(BOOT_LIMIT);
    };
    let seconds = text.to_str().and_then(|t| t.parse::<u32>().ok()).filter(|s| *s > 0);
    seconds.map(|s| Duration::from_secs(s.into())).ok_or_else(|| {
        let cause = format!("{BOOT_TIMEOUT_ENV}: {text:?} is not a number of seconds");
        Failure::new("planning the sandbox", cause, "set 1 or more, or unset it")
    })
}

/// Opens everything that the sandbox needs.
pub fn prepare(plan: &SandboxPlan, root: RootSource, debug: bool) -> Result<Prepared, Failure> {
    let install = Install::find()?;
    for program in [VMM, FSD] {
        install.program(program)?;
    }
    let (disks, guest_disks) = open_disks(plan)?;
    let (shares, view) = open_shares(plan, root)?;
    Ok(Prepared {
        limit: boot_limit(plan)?,
        debug,
        capacity: Capacity::new(plan, Host::here()),
        kernel_parameters: plan.kernel_parameters.clone(),
        oom_score_adj: plan.guest_spec.process().as_ref().and_then(|p| p.oom_score_adj()),
        kvm: open_kvm()?.into(),
        kernel: install.guest_file(KERNEL)?.into(),
        initrd: install.guest_file(INITRD)?.into(),
        shares,
        view,
        disks,
        guest_disks,
        install,
    })
}

impl Prepared {
    /// What the host is to see of the container's file system; nothing the second time.
    pub fn take_view(&mut self) -> View {
        mem::take(&mut self.view)
    }

    /// What the agent makes of the disks, which are open.
    pub fn guest_disks(&self) -> &GuestDisks {
        &self.guest_disks
    }

    /// Starts the processes in `cgroup`, tells `record` who they are before they run, boots the guest, and
    /// returns once its agent serves.
    pub fn boot(
        self,
        dir: &ContainerDir,
        signals: &mut Signals,
        network: Devices,
        cgroup: Option<&mut HostCgroup>,
        record: impl FnOnce(Vec<ProcessId>) -> Result<(), Failure>,
    ) -> Result<Machine, Failure> {
        let deadline = Instant::now() + self.limit;
        let (ready, dial) = UnixStream::pair().map_err(plumbing("the ready connection"))?;
        ready.set_nonblocking(true).map_err(plumbing("the ready connection"))?;
        let listener =
            UnixListener::bind(dir.path(VSOCK_SOCKET)).map_err(plumbing("vsock.sock"))?;
        let (vmm_device, fsd_device) = packet_pair("the file system socket")?;
        let (mut machine, console) = self.processes(dir, ready, cgroup.as_deref(), record)?;
        let (listener, dial) = (listener.into(), dial.into());
        let ends = Ends { console, listener, dial, vmm_device, fsd_device, network };
        match self.start(&mut machine, ends, signals, cgroup, deadline) {
            Ok(()) => Ok(machine),
            Err(failure) => Err(failure.with_details(machine.last_words())),
        }
    }

    /// Starts the processes, which wait for their configuration, and gives the VMM's end of the
    /// console.
    fn processes(
        &self,
        dir: &ContainerDir,
        ready: UnixStream,
        cgroup: Option<&HostCgroup>,
        record: impl FnOnce(Vec<ProcessId>) -> Result<(), Failure>,
    ) -> Result<(Machine, OwnedFd), Failure> {
        let (console, console_writer) = pipe("the console pipe")?;
        let (output, output_writer) = pipe("the log pipe")?;
        let (fsd_control, fsd_end) = Channel::pair(FSD)?;
        let (control, vmm_end) = Channel::pair(VMM)?;
        let log = Log::new(dir.create(LOG)?);
        let fsd = self.spawn(FSD, &fsd_end, output_writer.as_fd(), cgroup)?;
        let vmm = self.spawn(VMM, &vmm_end, output_writer.as_fd(), cgroup)?;
        record(vec![fsd.id(), vmm.id()])?;
        self.set_oom_score(&[fsd.id(), vmm.id()])?;
        let machine = Machine {
            vmm: vmm.release().map_err(|e| SandboxError::Spawn(VMM, e))?,
            fsd: fsd.release().map_err(|e| SandboxError::Spawn(FSD, e))?,
            control,
            fsd_control,
            _root: self.root()?,
            ready: Some(ready),
            console: Some(console),
            output: Some(output),
            log,
            control_ended: false,
            fsd_left: false,
            booted: false,
            ended: None,
            afterlife: None,
            capacity: self.capacity,
            size: self.capacity.start,
        };
        Ok((machine, console_writer))
    }

    fn root(&self) -> Result<Option<OwnedFd>, SandboxError> {
        let root = self.shares.first().map(|share| share.fd.try_clone());
        root.transpose().map_err(plumbing("a copy of the root's descriptor"))
    }

    /// What the host's kernel is to know when it runs out of memory: these processes hold that
    /// of the container. In the guest the agent sets the same for the container's own.
    fn set_oom_score(&self, processes: &[ProcessId]) -> Result<(), SandboxError> {
        let Some(score) = self.oom_score_adj else { return Ok(()) };
        for process in processes {
            let file = format!("/proc/{}/oom_score_adj", process.pid);
            std::fs::write(file, score.to_string()).map_err(SandboxError::OomScore)?;
        }
        Ok(())
    }

    fn spawn(
        &self,
        name: &'static str,
        control: &OwnedFd,
        log: BorrowedFd<'_>,
        cgroup: Option<&HostCgroup>,
    ) -> Result<Gated, Failure> {
        let program = self.install.program(name)?;
        let spawned = spawn(&program, name, control, log, cgroup.map(AsFd::as_fd));
        Ok(spawned.map_err(|e| SandboxError::Spawn(name, e))?)
    }

    fn start(
        &self,
        machine: &mut Machine,
        ends: Ends,
        signals: &mut Signals,
        cgroup: Option<&mut HostCgroup>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let mut fds = Fds::default();
        let config = self.share_config(&ends, &mut fds);
        machine.fsd_control.send(&config, &fds.0)?;
        let mut fds = Fds::default();
        let config = Box::new(self.vm_config(&ends, &mut fds));
        machine.control.send(&Request::Configure { config }, &fds.0)?;
        // What is the processes' own must end when they end.
        drop(fds);
        drop(ends);
        let mut wait = Wait { machine, signals, deadline, limit: self.limit };
        wait.for_state(VmState::Ready)?;
        wait.machine.request(&Request::Start)?;
        wait.for_state(VmState::Running)?;
        // This process follows the others while the guest boots: the kernel lets it wait.
        if let Some(cgroup) = cgroup {
            cgroup.join()?;
        }
        Ok(wait.for_agent()?)
    }

    fn share_config<'a>(&'a self, ends: &'a Ends, fds: &mut Fds<'a>) -> RawShareConfig {
        RawShareConfig {
            device: fds.add(&ends.fsd_device),
            shares: self
                .shares
                .iter()
                .map(|share| RawShare {
                    name: share.name.clone(),
                    source: fds.add(&share.fd),
                    read_only: share.read_only,
                })
                .collect(),
        }
    }

    fn vm_config<'a>(&'a self, ends: &'a Ends, fds: &mut Fds<'a>) -> RawVmConfig {
        RawVmConfig {
            kvm: fds.add(&self.kvm),
            kernel: fds.add(&self.kernel),
            initrd: Some(fds.add(&self.initrd)),
            cmdline: cmdline::cmdline(self.debug, &self.capacity, &self.kernel_parameters),
            vcpus: self.capacity.most.vcpus,
            mem_mib: self.capacity.start.mem_mib,
            console: Some(fds.add(&ends.console)),
            vsock: Some(RawVsock {
                guest_cid: GUEST_CID,
                listener: fds.add(&ends.listener),
                dials: vec![RawDial { port: READY_PORT, socket: fds.add(&ends.dial) }],
            }),
            blocks: self.disks.iter().map(|disk| raw_block(disk, fds)).collect(),
            share: Some(RawShareDevice {
                tag: SHARE_TAG.to_owned(),
                server: fds.add(&ends.vmm_device),
            }),
            nets: ends.network.nets.iter().map(|net| net.raw(|tap| fds.add(tap))).collect(),
            net_spares: ends.network.spares,
            balloon: true,
            hotplug_mib: self.capacity.hotplug_mib(),
            jail: RawJail { id: JAIL_ID_BASE + std::process::id() },
        }
    }
}

fn raw_block<'a>(disk: &'a OpenDisk, fds: &mut Fds<'a>) -> RawBlock {
    RawBlock {
        serial: disk.serial.clone(),
        file: fds.add(&disk.file),
        read_only: disk.read_only,
        queues: disk.queues,
        rate: disk.rate,
    }
}

/// Waiting for one step of the boot.
struct Wait<'a> {
    machine: &'a mut Machine,
    signals: &'a mut Signals,
    deadline: Instant,
    limit: Duration,
}

impl Wait<'_> {
    fn for_state(&mut self, wanted: VmState) -> Result<(), SandboxError> {
        match self.next()? {
            Event::Reply(Reply::Done { state }) if state == wanted => Ok(()),
            Event::Reply(Reply::Failed { message }) => {
                Err(SandboxError::Refused(printable(&message)))
            }
            _ => Err(SandboxError::Garbage(VMM)),
        }
    }

    fn for_agent(&mut self) -> Result<(), SandboxError> {
        match self.next()? {
            Event::Ready => Ok(()),
            _ => Err(SandboxError::Garbage(VMM)),
        }
    }

    /// The next event that is not an end of the boot.
    fn next(&mut self) -> Result<Event, SandboxError> {
        loop {
            let extra = [self.signals.as_fd()];
            match self.machine.next(&extra, Some(self.deadline))? {
                Event::Ended(end) => return Err(SandboxError::Ended(end)),
                Event::Timeout => return Err(SandboxError::Silent(self.limit)),
                Event::Extra(_) => self.check_signal()?,
                event => return Ok(event),
            }
        }
    }

    /// A signal that would end a program ends the boot.
    fn check_signal(&mut self) -> Result<(), SandboxError> {
        match self.signals.take() {
            Some(signal) if crate::signal::ends_a_program(signal) => {
                Err(SandboxError::Interrupted(signal))
            }
            _ => Ok(()),
        }
    }
}

/// A pipe whose reading end never blocks.
fn pipe(what: &'static str) -> Result<(PipeReader, OwnedFd), SandboxError> {
    let (reader, writer) = io::pipe().map_err(plumbing(what))?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(|e| plumbing(what)(e.into()))?;
    Ok((reader, writer.into()))
}

fn plumbing(what: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |e| SandboxError::Plumbing(what, e)
}
