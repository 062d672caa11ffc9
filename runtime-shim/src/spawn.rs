//! Starting a process of the sandbox: first process of a new pid namespace and session, with
//! nothing of the supervisor's but three or four descriptors.
//!
//! `std::process` cannot do it: the child must wait between fork and exec until the supervisor
//! has recorded its pid, so that whoever finds the record after a crash finds every process. If
//! the supervisor dies first, the child sees the end of the gate and exits; until it execs it
//! holds a copy of the lock on the state directory, so a deletion waits for it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bulkhead_protocol::control::CONTROL_FD;
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::ProcessId;

/// Exit code of a child that could not become the program.
pub(crate) const EXIT_NO_EXEC: i32 = 127;
/// Descriptors are moved up here first, so that none is where another must go.
const FIRST_FREE_FD: i32 = 10;

/// What is to run, and what it is given.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its file.
    pub path: &'a Path,
    /// Its name, for messages, and its argument 0.
    pub name: &'static str,
    /// The other arguments.
    pub arguments: Vec<CString>,
    /// Its standard input, if that is not to be empty.
    pub input: Option<BorrowedFd<'a>>,
    /// Its descriptor 3, if it has one.
    pub control: Option<BorrowedFd<'a>>,
    /// Its standard output.
    pub output: BorrowedFd<'a>,
    /// Its standard error.
    pub log: BorrowedFd<'a>,
    /// Its network namespace, if it is not that of the calling thread.
    pub network: Option<BorrowedFd<'a>>,
    /// Directory of its cgroup, if it is not the caller's.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child that waits before the gate.
#[derive(Debug)]
pub struct Gated {
    child: Child,
    gate: OwnedFd,
}

/// A running process of the sandbox; killed and reaped when dropped.
#[derive(Debug)]
pub struct Child {
    /// Name, for messages.
    pub(crate) name: &'static str,
    id: ProcessId,
    pidfd: OwnedFd,
    reaped: bool,
}

/// Everything that the child needs, made before the fork: it must not allocate.
struct Image {
    path: CString,
    arguments: Vec<CString>,
    input: OwnedFd,
    output: OwnedFd,
    log: OwnedFd,
    control: Option<OwnedFd>,
    network: Option<OwnedFd>,
    gate: OwnedFd,
}

impl Program<'_> {
    /// Forks a child that will run this. Must be called by the thread that lives longest: the
    /// child is killed when that thread ends.
    pub fn spawn(&self) -> io::Result<Gated> {
        let (gate, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let up = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE_FD);
        let null = std::fs::File::open("/dev/null")?;
        let mut arguments = vec![CString::new(self.name)?];
        arguments.extend_from_slice(&self.arguments);
        let image = Image {
            path: CString::new(self.path.as_os_str().as_bytes())?,
            arguments,
            input: up(self.input.unwrap_or(null.as_fd()))?,
            output: up(self.output)?,
            log: up(self.log)?,
            control: self.control.map(up).transpose()?,
            network: self.network.map(up).transpose()?,
            gate: up(gate.as_fd())?,
        };
        drop(gate);
        let writer_up = up(writer.as_fd())?;
        drop(writer);
        let argv: Vec<*const libc::c_char> =
            image.arguments.iter().map(|a| a.as_ptr()).chain([std::ptr::null()]).collect();
        let (pid, pidfd) = fork(&image, &argv, &writer_up, self.cgroup)?;
        let id = ProcessId::of(pid)?;
        let child = Child { name: self.name, id, pidfd, reaped: false };
        Ok(Gated { child, gate: writer_up })
    }
}

/// Forks a child that will run `program` with `control` as descriptor 3 and `log` as standard
/// output and error, in `cgroup` (a directory) or in the caller's.
pub(crate) fn spawn(
    path: &Path,
    name: &'static str,
    control: &OwnedFd,
    log: BorrowedFd<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Gated> {
    let control = Some(control.as_fd());
    let (input, network, output) = (None, None, log);
    Program { path, name, arguments: vec![], input, control, output, log, network, cgroup }.spawn()
}

impl Gated {
    /// The process, for the record.
    pub fn id(&self) -> ProcessId {
        self.child.id
    }

    /// Lets the child run its program.
    pub fn release(self) -> io::Result<Child> {
        rustix::io::write(&self.gate, &[1])?;
        Ok(self.child)
    }
}

impl Child {
    /// Whether it has ended, and how.
    pub fn try_wait(&mut self) -> io::Result<Option<WaitIdStatus>> {
        self.wait_with(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Kills it, and waits until it has ended.
    pub fn kill(&mut self) -> io::Result<()> {
        if self.reaped {
            return Ok(());
        }
        rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL)?;
        self.wait_with(WaitIdOptions::EXITED).map(drop)
    }

    fn wait_with(&mut self, options: WaitIdOptions) -> io::Result<Option<WaitIdStatus>> {
        loop {
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(status) => {
                    self.reaped |= status.is_some();
                    return Ok(status);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have been reaped; there is nobody to tell otherwise.
        drop(self.kill());
    }
}

/// clone(2) into a new pid namespace; the child never returns from here.
fn fork(
    image: &Image,
    argv: &[*const libc::c_char],
    gate_writer: &OwnedFd,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(u32, OwnedFd)> {
    let mut pidfd: i32 = -1;
    let into = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let mut args = CloneArgs {
        flags: (libc::CLONE_PIDFD | libc::CLONE_NEWPID) as u64 | into,
        cgroup: cgroup.map_or(0, |dir| dir.as_raw_fd() as u64),
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a clone_args structure of the size told, its pidfd pointer valid. Memory
    // is copied, not shared, and the child makes system calls only.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => become_program(image, argv, gate_writer),
        pid => {
            // SAFETY: the kernel has stored a new descriptor there, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = u32::try_from(pid).map_err(io::Error::other)?;
            Ok((pid, pidfd))
        }
    }
}

/// `CLONE_INTO_CGROUP` of linux/sched.h: the child begins in another cgroup, with no moment
/// outside of it, and without the wait that moving a process costs.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of clone3(2), version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// In the child: system calls only, no allocation, no lock, no return.
fn become_program(image: &Image, argv: &[*const libc::c_char], gate_writer: &OwnedFd) -> ! {
    if prepare(image, gate_writer).is_ok() {
        let envp: [*const libc::c_char; 1] = [std::ptr::null()];
        // SAFETY: path and both arrays are NUL-terminated and live until the call returns.
        unsafe { libc::execve(image.path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    }
    // SAFETY: ends this process without running anything of the supervisor's.
    unsafe { libc::_exit(EXIT_NO_EXEC) }
}

fn prepare(image: &Image, gate_writer: &OwnedFd) -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::setsid()?;
    rustix::process::chdir(c"/")?;
    crate::signal::reset().map_err(|_| rustix::io::Errno::INVAL)?;
    move_to(&image.input, 0)?;
    move_to(&image.output, 1)?;
    move_to(&image.log, 2)?;
    let mut first_unused = CONTROL_FD as u32;
    if let Some(control) = &image.control {
        move_to(control, CONTROL_FD)?;
        first_unused += 1;
    }
    if let Some(network) = &image.network {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    await_gate(image, gate_writer)?;
    // SAFETY: marks descriptors of this process close-on-exec; none of them is used again but
    // by execve, which needs none.
    let failed =
        unsafe { libc::close_range(first_unused, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    match failed {
        0 => Ok(()),
        _ => Err(rustix::io::Errno::INVAL),
    }
}

/// Waits until the supervisor has recorded this process. Its end of the gate is closed here
/// first, or the gate would never end with the supervisor.
fn await_gate(image: &Image, gate_writer: &OwnedFd) -> rustix::io::Result<()> {
    // SAFETY: closes this process's copy; the parent's is its own, and this process ends or
    // becomes another program without dropping the owner.
    unsafe { libc::close(gate_writer.as_raw_fd()) };
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(&image.gate, &mut byte) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err(rustix::io::Errno::PIPE),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

fn move_to(fd: &OwnedFd, number: i32) -> rustix::io::Result<()> {
    // SAFETY: both are numbers; sources lie above every target, so nothing in use is replaced.
    match unsafe { libc::dup2(fd.as_raw_fd(), number) } {
        -1 => Err(rustix::io::Errno::BADF),
        _ => Ok(()),
    }
}

/// How a process ended, for messages.
pub(crate) fn describe(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(EXIT_NO_EXEC), _) => "could not be executed".to_owned(),
        (Some(code), _) => format!("exited with code {code}"),
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        _ => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::privilege::is_root;

    /// Runs a shell script as a child would run, and gives what it printed.
    fn run(script: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        crate::script::write(&path, script);
        let control = control();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let gated = spawn(&path, "x", &control, writer.as_fd(), None).unwrap();
        drop(writer);
        let mut child = gated.release().unwrap();
        let mut printed = String::new();
        reader.read_to_string(&mut printed).unwrap();
        child.wait_with(WaitIdOptions::EXITED).unwrap();
        printed
    }

    /// Something to be descriptor 3.
    fn control() -> OwnedFd {
        std::os::unix::net::UnixStream::pair().unwrap().0.into()
    }

    #[test]
    fn child_is_first_of_its_namespace_and_has_four_descriptors() {
        if !is_root() {
            return;
        }
        // The shell itself opens its script as descriptor 10.
        let printed = run(
            "echo $$; for i in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/self/fd/$i ] && printf $i; done; echo; echo $HOME.",
        );
        let mut lines = printed.lines();
        assert_eq!(lines.next(), Some("1"));
        assert_eq!(lines.next(), Some("0123"));
        assert_eq!(lines.next(), Some("."));
    }

    #[test]
    fn child_without_control_has_its_arguments_output_and_namespace() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let script = "[ -e /proc/self/fd/3 ] && echo 3\n\
                      echo \"$1,$2\"; echo err >&2; /bin/readlink /proc/self/ns/net";
        crate::script::write(&path, script);
        let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let name = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        // SAFETY: only this thread's network namespace changes; no descriptor table is unshared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (mut errors, log) = std::io::pipe().unwrap();
        let program = Program {
            path: &path,
            name: "x",
            arguments: vec![c"a b".into(), c"".into()],
            input: None,
            control: None,
            output: writer.as_fd(),
            log: log.as_fd(),
            network: Some(own.as_fd()),
            cgroup: None,
        };
        let mut child = program.spawn().unwrap().release().unwrap();
        drop((writer, log));
        let mut printed = [String::new(), String::new()];
        reader.read_to_string(&mut printed[0]).unwrap();
        errors.read_to_string(&mut printed[1]).unwrap();
        child.wait_with(WaitIdOptions::EXITED).unwrap();
        assert_eq!(printed, [format!("a b,\n{}\n", name.display()), "err\n".to_owned()]);
    }

    #[test]
    fn child_whose_gate_closes_never_runs() {
        if !is_root() {
            return;
        }
        let control = control();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let gated = spawn(Path::new("/bin/echo"), "x", &control, writer.as_fd(), None).unwrap();
        drop(writer);
        let Gated { mut child, gate } = gated;
        drop(gate);
        let status = child.wait_with(WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(EXIT_NO_EXEC));
        let mut printed = String::new();
        reader.read_to_string(&mut printed).unwrap();
        assert_eq!(printed, "");
    }

    #[test]
    fn dropped_child_has_ended() {
        if !is_root() {
            return;
        }
        let control = control();
        let null = std::fs::File::open("/dev/null").unwrap();
        let gated = spawn(Path::new("/bin/cat"), "x", &control, null.as_fd(), None).unwrap();
        let id = gated.id();
        assert!(id.open().unwrap().is_some());
        drop(gated);
        assert!(id.open().unwrap().is_none());
    }
}
