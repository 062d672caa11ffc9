//! `bulkhead-vmm` as the runtime starts it, with guests of a few instructions: jail, control
//! socket, console, and the ways in which a guest ends.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_protocol::control::{CONTROL_FD, ExitReason, Reply, Request, VmState};
use bulkhead_protocol::vm::{FdIndex, RawBlock, RawJail, RawVmConfig};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};

/// Prints the line "hi" on the serial port.
const HELLO: &[u8] = b"\x66\xba\xf8\x03\xb0h\xee\xb0i\xee\xb0\n\xee";
/// Writes 0xfe to port 0x64: the reset line.
const RESET: &[u8] = b"\xb0\xfe\xe6\x64\xf4";
/// Writes the panic mark to 0x472, then resets.
const PANIC: &[u8] = b"\x66\xc7\x05\x72\x04\x00\x00\x34\x12\xb0\xfe\xe6\x64\xf4";
/// Loads an empty interrupt table and raises an exception.
const TRIPLE_FAULT: &[u8] = b"\x0f\x01\x1d\x00\x70\x00\x00\x0f\x0b";
/// Jumps to itself.
const SPIN: &[u8] = b"\xeb\xfe";

/// An ELF file with a PVH entry note (Xen's `XEN_ELFNOTE_PHYS32_ENTRY`) and `code` at 16 MiB.
fn pvh_elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x100_0000;
    let note: Vec<u8> = [4u32, 4, 18]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(*b"Xen\0")
        .chain((BASE as u32).to_le_bytes())
        .collect();
    let (headers, note_len, code_len) = (64 + 2 * 56, note.len() as u64, code.len() as u64);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |n: u16| n.to_le_bytes();
    let word = |n: u32| n.to_le_bytes();
    let long = |n: u64| n.to_le_bytes();
    elf.extend([half(2), half(62)].concat());
    elf.extend(word(1));
    elf.extend([long(BASE), long(64), long(0)].concat());
    elf.extend(word(0));
    elf.extend([half(64), half(56), half(2), half(0), half(0), half(0)].concat());
    elf.extend([word(1), word(7)].concat());
    elf.extend(
        [long(headers + note_len), long(BASE), long(BASE), long(code_len), long(code_len), long(1)]
            .concat(),
    );
    elf.extend([word(4), word(4)].concat());
    elf.extend([long(headers), long(0), long(0), long(note_len), long(note_len), long(4)].concat());
    elf.extend(note);
    elf.extend(code);
    elf
}

/// A user id for each machine, as the runtime gives it: threads are counted by it.
fn jail_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    0x7000_0000 + std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed)
}

struct Vmm {
    child: Child,
    control: OwnedFd,
    console: File,
}

impl Vmm {
    /// Starts the monitor with a guest of `code`; `None`, with a printed reason, where it cannot.
    fn start(code: &[u8]) -> Option<Self> {
        Self::start_with(code, &[])
    }

    /// As [`Vmm::start`], with a block device for each of `disks`.
    fn start_with(code: &[u8], disks: &[File]) -> Option<Self> {
        let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else {
            println!("skipped: /dev/kvm is missing");
            return None;
        };
        if !rustix::process::geteuid().is_root() {
            println!("skipped: not root");
            return None;
        }
        let (control, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socketpair");
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_bulkhead-vmm")]);
        command.stdin(Stdio::null());
        let inherited = theirs.as_raw_fd();
        let hand_over = move || {
            // SAFETY: dup2 takes integers; the number is free in the child.
            match unsafe { libc::dup2(inherited, CONTROL_FD) } {
                CONTROL_FD => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: dup2 is async-signal-safe.
        unsafe { command.pre_exec(hand_over) };
        let child = command.spawn().expect("unshare starts");
        let mut kernel = tempfile::tempfile().expect("temp file");
        kernel.write_all(&pvh_elf(code)).expect("writing");
        let (console, writer) = std::io::pipe().expect("pipe");
        let vmm = Self { child, control, console: File::from(OwnedFd::from(console)) };
        let block = |index| RawBlock {
            file: FdIndex(index),
            serial: index.to_string(),
            read_only: false,
            queues: 1,
            rate: None,
        };
        let config = RawVmConfig {
            kvm: FdIndex(0),
            kernel: FdIndex(1),
            initrd: None,
            cmdline: String::new(),
            vcpus: 1,
            mem_mib: 64,
            console: Some(FdIndex(2)),
            vsock: None,
            blocks: (3..).take(disks.len()).map(block).collect(),
            share: None,
            nets: vec![],
            net_spares: 0,
            balloon: false,
            hotplug_mib: 0,
            jail: RawJail { id: jail_id() },
        };
        let request = Request::Configure { config: Box::new(config) };
        let mut fds = vec![kvm.as_fd(), kernel.as_fd(), writer.as_fd()];
        fds.extend(disks.iter().map(AsFd::as_fd));
        vmm.send(&request, &fds);
        assert_eq!(vmm.receive(), Reply::Done { state: VmState::Ready });
        Some(vmm)
    }

    fn send(&self, request: &Request, fds: &[std::os::fd::BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        let text = serde_json::to_vec(request).expect("JSON");
        let parts = [IoSlice::new(&text)];
        rustix::net::sendmsg(&self.control, &parts, &mut ancillary, SendFlags::empty())
            .expect("sending");
    }

    fn receive(&self) -> Reply {
        let mut text = [0; 4096];
        let (_, len) =
            rustix::net::recv(&self.control, &mut text, RecvFlags::empty()).expect("receiving");
        serde_json::from_slice(&text[..len]).expect("a reply")
    }

    fn ask(&self, request: &Request) -> Reply {
        self.send(request, &[]);
        self.receive()
    }

    /// What the descriptors of the monitor are, as the kernel names them.
    fn descriptors(&self) -> Vec<String> {
        let parent = self.child.id();
        let children = format!("/proc/{parent}/task/{parent}/children");
        let pid = std::fs::read_to_string(children).expect("the child of unshare");
        let fds = std::fs::read_dir(format!("/proc/{}/fd", pid.trim())).expect("its descriptors");
        fds.map(|fd| std::fs::read_link(fd.expect("an entry").path()).expect("a link"))
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    /// Starts the guest and gives the reason for its end and what it printed.
    fn run(mut self) -> (ExitReason, String) {
        assert_eq!(self.ask(&Request::Start), Reply::Done { state: VmState::Running });
        let Reply::Exited { reason } = self.receive() else { panic!("no exit") };
        assert!(self.child.wait().expect("waiting").success());
        let mut text = String::new();
        self.console.read_to_string(&mut text).expect("the console's text");
        (reason, text)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn reset_is_a_power_off_and_the_console_is_complete() {
    let Some(vmm) = Vmm::start(&[HELLO, RESET].concat()) else { return };
    assert_eq!(vmm.run(), (ExitReason::PowerOff, "hi\n".into()));
}

#[test]
fn reset_with_the_panic_mark_is_a_panic() {
    let Some(vmm) = Vmm::start(PANIC) else { return };
    assert_eq!(vmm.run().0, ExitReason::Panic);
}

#[test]
fn triple_fault_is_told_apart() {
    let Some(vmm) = Vmm::start(TRIPLE_FAULT) else { return };
    assert_eq!(vmm.run().0, ExitReason::TripleFault);
}

#[test]
fn machine_goes_through_its_states_and_stops() {
    let Some(mut vmm) = Vmm::start(SPIN) else { return };
    assert!(matches!(vmm.ask(&Request::Pause), Reply::Failed { .. }));
    assert_eq!(vmm.ask(&Request::Start), Reply::Done { state: VmState::Running });
    assert!(matches!(vmm.ask(&Request::Start), Reply::Failed { .. }));
    for _ in 0..3 {
        assert_eq!(vmm.ask(&Request::Pause), Reply::Done { state: VmState::Paused });
        assert_eq!(vmm.ask(&Request::Status), Reply::Done { state: VmState::Paused });
        assert_eq!(vmm.ask(&Request::Resume), Reply::Done { state: VmState::Running });
    }
    assert_eq!(vmm.ask(&Request::Stop), Reply::Exited { reason: ExitReason::Stopped });
    assert!(vmm.child.wait().expect("waiting").success());
}

/// Whether this host has io_uring.
fn has_io_uring() -> bool {
    let mut parameters = [0u64; 15];
    // SAFETY: the structure has 120 bytes, and zeroes ask for nothing.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    // SAFETY: the kernel has just made the descriptor, if it is one.
    ring >= 0 && unsafe { libc::close(ring as i32) } == 0
}

#[test]
fn block_device_of_a_jailed_monitor_has_its_ring() {
    if !has_io_uring() {
        return println!("skipped: no io_uring");
    }
    let disk = || {
        let file = tempfile::tempfile().expect("temp file");
        file.set_len(1 << 20).expect("its size");
        file
    };
    let Some(vmm) = Vmm::start_with(SPIN, &[disk(), disk()]) else { return };
    let descriptors = vmm.descriptors();
    let rings = descriptors.iter().filter(|name| name.contains("io_uring")).count();
    assert_eq!(rings, 2, "{descriptors:?}");
    assert!(!descriptors.iter().any(|name| name == "/dev/kvm"), "{descriptors:?}");
}

#[test]
fn monitor_ends_when_the_runtime_is_gone() {
    let Some(vmm) = Vmm::start(SPIN) else { return };
    assert_eq!(vmm.ask(&Request::Start), Reply::Done { state: VmState::Running });
    let (keep, _) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("socketpair");
    let mut vmm = vmm;
    drop(std::mem::replace(&mut vmm.control, keep));
    assert!(vmm.child.wait().expect("waiting").success());
}

#[test]
fn malformed_configuration_is_an_error_and_not_a_machine() {
    let Some(vmm) = Vmm::start(SPIN) else { return };
    let text = br#"{"op":"configure","config":{"path":"/etc/shadow"}}"#;
    rustix::net::send(&vmm.control, text, SendFlags::empty()).expect("sending");
    let Reply::Exited { reason: ExitReason::Error { message } } = vmm.receive() else {
        panic!("accepted");
    };
    assert!(message.contains("not a request"), "{message}");
}
