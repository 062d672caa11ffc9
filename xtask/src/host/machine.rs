//! The emulated host's processes: QEMU and one virtiofsd for each shared directory.
//!
//! Every channel is a descriptor, so there is no socket file that could be left behind; every
//! process dies with this one.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};

use super::image::Image;
use super::job;
use crate::{checkout, process};

/// Memory of the host; it is taken from this machine only as it is used.
const MEMORY_MIB: u32 = 3072;
/// Where Debian puts the file server of QEMU 7.2.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// A running emulated host. Dropping it ends every process of it.
pub struct Machine {
    servers: Vec<Child>,
    qemu: Child,
    /// Our ends of the ports.
    pub ports: Ports,
    /// The console: only looked at when something went wrong.
    pub console: Option<ChildStdout>,
    /// What QEMU itself says.
    pub messages: Option<ChildStderr>,
}

/// Our ends of the virtio-serial ports.
pub struct Ports {
    /// Standard input of the command.
    pub stdin: UnixStream,
    /// Its standard output.
    pub stdout: UnixStream,
    /// Its standard error.
    pub stderr: UnixStream,
    /// The protocol of `job`.
    pub control: UnixStream,
}

impl Machine {
    /// Boot the host. `icount` gives the clock that counts instructions.
    pub fn start(image: &Image, icount: bool) -> Result<Self> {
        let target = checkout::target();
        fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
        let (stdin, far_stdin) = UnixStream::pair()?;
        let (stdout, far_stdout) = UnixStream::pair()?;
        let (stderr, far_stderr) = UnixStream::pair()?;
        let (control, far_control) = UnixStream::pair()?;
        let (root, root_server) = share(Path::new("/"))?;
        let (writable, writable_server) = share(&target)?;
        let (modules, modules_server) = share(&image.modules)?;
        let mut qemu = Command::new("qemu-system-x86_64");
        base_arguments(&mut qemu, image, icount);
        let shares = [("root", root), ("target", writable), ("modules", modules)];
        for (tag, socket) in &shares {
            let device = format!("vhost-user-fs-pci,chardev={tag},tag={tag}");
            socket_argument(&mut qemu, tag, socket.as_fd())?.arg("-device").arg(device);
        }
        let ports = [
            (job::STDIN, far_stdin),
            (job::STDOUT, far_stdout),
            (job::STDERR, far_stderr),
            (job::CONTROL, far_control),
        ];
        qemu.args(["-device", "virtio-serial-pci,max_ports=8"]);
        for (name, socket) in &ports {
            let device = format!("virtserialport,chardev={name},name={name}");
            socket_argument(&mut qemu, name, socket.as_fd())?.arg("-device").arg(device);
        }
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut qemu = process::tie(&mut qemu).spawn().context("cannot start QEMU")?;
        Ok(Self {
            servers: vec![root_server, writable_server, modules_server],
            console: qemu.stdout.take(),
            messages: qemu.stderr.take(),
            qemu,
            ports: Ports { stdin, stdout, stderr, control },
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // QEMU first: it complains when its file servers vanish.
        for child in std::iter::once(&mut self.qemu).chain(&mut self.servers) {
            // Each may have ended by itself, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn base_arguments(qemu: &mut Command, image: &Image, icount: bool) {
    let memory = format!("memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on");
    // One CPU: with two, QEMU 7.2 loses timer wake-ups and a host in twenty-five hangs.
    qemu.args(["-machine", "q35", "-cpu", "max", "-smp", "1", "-m", &MEMORY_MIB.to_string()]);
    qemu.args(["-object", &memory, "-numa", "node,memdev=memory"]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    let mut command_line = String::from(
        "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check cgroup_no_v1=all \
         random.trust_cpu=on",
    );
    if icount {
        qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
        qemu.args(["-seed", "1", "-rtc", "base=2026-01-01,clock=vm"]);
        command_line += " nokaslr norandmaps";
    } else {
        qemu.args(["-accel", "tcg,thread=multi"]);
    }
    qemu.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
    qemu.arg("-append").arg(command_line);
}

/// Pass `socket` to QEMU as the character device `id`.
fn socket_argument<'a>(
    qemu: &'a mut Command,
    id: &str,
    socket: BorrowedFd<'_>,
) -> Result<&'a mut Command> {
    inherit(socket)?;
    Ok(qemu.arg("-chardev").arg(format!("socket,id={id},fd={}", socket.as_raw_fd())))
}

/// Let children have `socket` under its number.
fn inherit(socket: BorrowedFd<'_>) -> Result<()> {
    fcntl_setfd(socket, FdFlags::empty()).context("cannot pass a socket to a child")
}

/// Serve `directory`; returns a connection to its server.
///
/// virtiofsd wants a listening socket. It gets one that is connected and has no name any more.
fn share(directory: &Path) -> Result<(OwnedFd, Child)> {
    let path = std::env::temp_dir().join(format!("bulkhead-host-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot make the socket {}", path.display()))?;
    let connection = UnixStream::connect(&path);
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    let connection = connection.with_context(|| format!("cannot connect to {}", path.display()))?;
    inherit(listener.as_fd())?;
    let mut source = std::ffi::OsString::from("source=");
    source.push(directory);
    let mut server = Command::new(VIRTIOFSD);
    server.arg(format!("--fd={}", listener.as_raw_fd())).arg("-o").arg(source);
    // Nothing changes underneath while the host runs, so the guest may remember what it saw.
    server.args(["-o", "sandbox=chroot", "-o", "cache=always"]);
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = process::tie(&mut server)
        .spawn()
        .with_context(|| format!("cannot start {VIRTIOFSD} for {}", directory.display()))?;
    Ok((connection.into(), server))
}
