//! `bulkhead-vmm` by itself: this program stands in for the runtime, starts it with any
//! configuration, and sees its console and its end.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bulkhead_protocol::control::{CONTROL_FD, ExitReason, Reply, Request, VmState};
use bulkhead_protocol::limits::{CONTROL_FDS_MAX, CONTROL_MESSAGE_MAX};
use bulkhead_protocol::vm::{
    FdIndex, RawBlock, RawJail, RawNet, RawRateLimit, RawShareDevice, RawVmConfig,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Longest silence of a guest or of the process. Nothing takes that long unless it hangs, and a
/// test that hangs would take what the others have said with it.
const SILENCE: Duration = Duration::from_secs(600);
/// User and group id of the jailed process; any that is not root's.
const JAIL_ID: u32 = 100_000;

/// A machine to be: what the runtime would send.
pub struct Machine {
    pub(crate) config: RawVmConfig,
    fds: Vec<OwnedFd>,
}

impl Machine {
    /// A machine with one vCPU that starts `kernel`.
    pub fn new(kernel: &Path, mem_mib: u32) -> Result<Self> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
        let kernel = File::open(kernel).with_context(|| format!("no {}", kernel.display()))?;
        let config = RawVmConfig {
            kvm: FdIndex(0),
            kernel: FdIndex(1),
            initrd: None,
            cmdline: String::new(),
            vcpus: 1,
            mem_mib,
            console: None,
            vsock: None,
            blocks: Vec::new(),
            share: None,
            nets: vec![],
            net_spares: 0,
            balloon: false,
            hotplug_mib: 0,
            jail: RawJail { id: JAIL_ID },
        };
        Ok(Self { config, fds: vec![kvm.into(), kernel.into()] })
    }

    /// With an initial RAM file system and the kernel's command line.
    pub fn initrd(mut self, initrd: File, cmdline: &str) -> Self {
        self.config.initrd = Some(self.fd(initrd.into()));
        cmdline.clone_into(&mut self.config.cmdline);
        self
    }

    /// With so many vCPUs.
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.config.vcpus = vcpus;
        self
    }

    /// With one more block device.
    pub fn block(mut self, serial: &str, file: File, read_only: bool) -> Self {
        let file = self.fd(file.into());
        self.config.blocks.push(RawBlock {
            serial: serial.to_owned(),
            file,
            read_only,
            queues: 1,
            rate: None,
        });
        self
    }

    /// With one more network interface, whose queue is `tap`.
    pub fn net(mut self, mac: [u8; 6], mtu: u16, tap: OwnedFd) -> Self {
        let taps = vec![self.fd(tap)];
        self.config.nets.push(RawNet { mac, mtu, taps, rx_rate: None, tx_rate: None });
        self
    }

    /// With a share device named `tag`, whose requests the file server behind `server` answers.
    pub fn share(mut self, tag: &str, server: OwnedFd) -> Self {
        let server = self.fd(server);
        self.config.share = Some(RawShareDevice { tag: tag.to_owned(), server });
        self
    }

    /// The last block device with so many queues and this limit.
    pub fn tuned(mut self, queues: u32, rate: Option<RawRateLimit>) -> Self {
        let block = self.config.blocks.last_mut().expect("a block device");
        (block.queues, block.rate) = (queues, rate);
        self
    }

    pub(crate) fn fd(&mut self, fd: OwnedFd) -> FdIndex {
        self.fds.push(fd);
        FdIndex(u32::try_from(self.fds.len() - 1).expect("few descriptors"))
    }

    /// Starts the process and has it build the machine; the guest does not run yet.
    pub fn spawn(mut self) -> Result<Vmm> {
        let (console, writer) = std::io::pipe().context("cannot make a pipe")?;
        self.config.console = Some(self.fd(writer.into()));
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("cannot make the control socket")?;
        let child = start("bulkhead-vmm", theirs)?;
        let console = Console { file: OwnedFd::from(console).into(), seen: String::new() };
        let vmm = Vmm { child, control, console };
        let configure = Request::Configure { config: Box::new(self.config) };
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        vmm.send(&configure, &fds)?;
        vmm.done(VmState::Ready)?;
        Ok(vmm)
    }
}

/// A running `bulkhead-vmm`, killed when dropped.
pub struct Vmm {
    child: Child,
    control: OwnedFd,
    /// The serial console.
    pub console: Console,
}

impl Vmm {
    /// Runs the guest from its first instruction.
    pub fn start(&self) -> Result<()> {
        self.request(&Request::Start, VmState::Running)
    }

    /// Stops vCPUs and workers.
    pub fn pause(&self) -> Result<()> {
        self.request(&Request::Pause, VmState::Paused)
    }

    /// Undoes a pause.
    pub fn resume(&self) -> Result<()> {
        self.request(&Request::Resume, VmState::Running)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says that the file of block device `index` has another size.
    pub fn resize_block(&self, index: u32) -> Result<()> {
        self.request(&Request::ResizeBlock { block: index }, VmState::Running)
    }

    /// Asks for the end of the guest.
    pub fn stop(&self) -> Result<()> {
        self.send(&Request::Stop, &[])
    }

    /// Reads the console to its end and gives why the guest ended.
    pub fn finish(&mut self) -> Result<ExitReason> {
        self.console.read_to_end()?;
        match self.receive()? {
            Reply::Exited { reason } => Ok(reason),
            other => bail!("bulkhead-vmm answered {other:?}"),
        }
    }

    fn request(&self, request: &Request, state: VmState) -> Result<()> {
        self.send(request, &[])?;
        self.done(state)
    }

    pub(crate) fn done(&self, expected: VmState) -> Result<()> {
        match self.receive()? {
            Reply::Done { state } if state == expected => Ok(()),
            Reply::Exited { reason: ExitReason::Error { message } } => bail!(message),
            other => bail!("bulkhead-vmm answered {other:?}"),
        }
    }

    pub(crate) fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let text = serde_json::to_vec(request).context("cannot write the request")?;
        send(self.control.as_fd(), &text, fds).context("cannot send to bulkhead-vmm")
    }

    pub(crate) fn receive(&self) -> Result<Reply> {
        let mut bytes = vec![0; CONTROL_MESSAGE_MAX];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut none = RecvAncillaryBuffer::default();
        await_readable(self.control.as_fd()).context("bulkhead-vmm does not answer")?;
        let received = recvmsg(&self.control, &mut parts, &mut none, RecvFlags::empty())
            .context("cannot receive from bulkhead-vmm")?;
        serde_json::from_slice(&bytes[..received.bytes]).context("bulkhead-vmm sent no reply")
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the guest writes on its serial port.
pub struct Console {
    file: File,
    seen: String,
}

impl Console {
    /// Reads until `word` has come.
    pub fn wait_for(&mut self, word: &str) -> Result<()> {
        while !self.seen.contains(word) {
            ensure!(self.read()? > 0, "it ended without {word:?}: {}", self.seen);
        }
        Ok(())
    }

    /// Everything that was read so far.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    fn read_to_end(&mut self) -> Result<()> {
        while self.read()? > 0 {}
        Ok(())
    }

    fn read(&mut self) -> Result<usize> {
        let mut buffer = [0; 4096];
        await_readable(self.file.as_fd())
            .with_context(|| format!("the guest has said only: {}", self.seen))?;
        let count = self.file.read(&mut buffer).context("cannot read the console")?;
        // What the guest writes need not be text.
        self.seen += &String::from_utf8_lossy(&buffer[..count]);
        Ok(count)
    }
}

impl Read for Console {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.file.read(buffer)
    }
}

/// Waits until there is something to read, or an end.
fn await_readable(fd: BorrowedFd<'_>) -> Result<()> {
    let limit = Timespec::try_from(SILENCE).context("a number of seconds")?;
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit)) {
            Ok(0) => bail!("nothing came for {SILENCE:?}"),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait"),
        }
    }
}

/// Sends one message with descriptors.
pub(crate) fn send(to: BorrowedFd<'_>, text: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CONTROL_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(to, &[IoSlice::new(text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Starts a program of bulkhead with `control` as its control socket.
pub(crate) fn start(program: &str, control: OwnedFd) -> Result<Child> {
    let libexec = std::env::var_os("BULKHEAD_LIBEXEC").context("BULKHEAD_LIBEXEC is not set")?;
    let mut command = Command::new(Path::new(&libexec).join(program));
    let take_control = move || {
        // SAFETY: both are numbers; what is replaced is the child's own copy of a descriptor.
        match unsafe { libc::dup2(control.as_raw_fd(), CONTROL_FD) } {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure makes one system call and allocates nothing, which is allowed between
    // fork and exec.
    unsafe { command.pre_exec(take_control) };
    first_of_namespace(&mut command).with_context(|| format!("cannot start {program}"))
}

/// Starts `command` as process 1 of a PID namespace, as the runtime does.
fn first_of_namespace(command: &mut Command) -> Result<Child> {
    let own = File::open("/proc/self/ns/pid").context("cannot open the own PID namespace")?;
    // SAFETY: only the namespace of this thread's children changes.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.context("cannot make a PID namespace")?;
    let child = command.spawn();
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))
        .context("cannot leave the PID namespace")?;
    Ok(child?)
}
