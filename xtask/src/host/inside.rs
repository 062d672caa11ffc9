//! `xtask host-inside`: process 1 of the emulated host after its first steps. Runs the one job,
//! relays its streams, reaps, beats, and reports the exit status.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitOptions, wait};

use super::job::{self, FromHost, Job, ToHost, WindowSize};
use super::terminal;

/// Time between signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// Bytes that one read of a stream takes.
const CHUNK: usize = 32 << 10;

type Control = Arc<Mutex<File>>;

/// Run the host's one job. Never returns: the caller outside ends the machine.
pub fn inside() -> Result<()> {
    let control = open_port(job::CONTROL)?;
    let mut messages = BufReader::new(control.try_clone()?);
    wait_for_caller(&control)?;
    let control: Control = Arc::new(Mutex::new(control));
    let beats = Arc::clone(&control);
    thread::spawn(move || {
        while send(&beats, &FromHost::Beat).is_ok() {
            thread::sleep(BEAT);
        }
    });
    let outcome = match receive(&mut messages)? {
        ToHost::Run(job) => run(&job, messages),
        ToHost::Resize(_) => bail!("the first message is not a job"),
    };
    let message = outcome
        .unwrap_or_else(|error| FromHost::Failed { message: format!("{error:#}"), status: 126 });
    rustix::fs::sync();
    send(&control, &message)?;
    loop {
        thread::park();
    }
}

fn run(job: &Job, messages: BufReader<File>) -> Result<FromHost> {
    prepare(job)?;
    let program = job.command.first().context("the job names no command")?;
    let mut command = Command::new(program);
    command.args(job.command.iter().skip(1)).current_dir(&job.directory);
    // The first steps have put plain memory there, unlike `/tmp`, which is part of the overlay.
    command.env_clear().env("TMPDIR", "/var/tmp");
    command.envs(job.environment.iter().map(|(name, value)| (name, value)));
    let started = match job.terminal {
        Some(size) => Streams::terminal(&mut command, size, messages),
        None => Streams::pipes(&mut command),
    };
    // It holds the terminal's user side, whose end the relay waits for.
    drop(command);
    let (child, streams) = match started {
        Ok(started) => started,
        Err(error) => return Ok(not_started(program, &error)),
    };
    let status = reap_until(&child)?;
    end_everything()?;
    let (stdout_bytes, stderr_bytes) = streams.finish()?;
    Ok(FromHost::Exit { status, stdout_bytes, stderr_bytes })
}

fn not_started(program: &str, error: &anyhow::Error) -> FromHost {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    let status = if kind == Some(std::io::ErrorKind::NotFound) { 127 } else { 126 };
    FromHost::Failed { message: format!("cannot run {program}: {error:#}"), status }
}

/// Put `target/` in its place and make the checkout's other files what they are outside.
fn prepare(job: &Job) -> Result<()> {
    let target = Path::new(&job.target);
    fs::create_dir_all(target).with_context(|| format!("cannot make {}", target.display()))?;
    rustix::mount::mount_move("/run/target", target).context("cannot mount target/")
}

/// The relays of a running command.
struct Streams {
    stdout: JoinHandle<std::io::Result<u64>>,
    stderr: Option<JoinHandle<std::io::Result<u64>>>,
}

impl Streams {
    fn pipes(command: &mut Command) -> Result<(Child, Self)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that what the command leaves running can be told apart.
        let mut child = command.process_group(0).spawn()?;
        let stdin: OwnedFd = child.stdin.take().context("stdin is a pipe")?.into();
        let stdout: OwnedFd = child.stdout.take().context("stdout is a pipe")?.into();
        let stderr: OwnedFd = child.stderr.take().context("stderr is a pipe")?.into();
        let input = open_port(job::STDIN)?;
        // Ends with its pipe or with the machine; nobody waits for input that nobody reads.
        thread::spawn(move || relay(input, File::from(stdin)));
        let output = open_port(job::STDOUT)?;
        let errors = open_port(job::STDERR)?;
        let stdout = thread::spawn(move || relay(File::from(stdout), output));
        let stderr = thread::spawn(move || relay(File::from(stderr), errors));
        Ok((child, Self { stdout, stderr: Some(stderr) }))
    }

    fn terminal(
        command: &mut Command,
        size: WindowSize,
        mut messages: BufReader<File>,
    ) -> Result<(Child, Self)> {
        let pair = terminal::open(size)?;
        let child = terminal::spawn(command, &pair)?;
        let main = File::from(pair.main);
        drop(pair.user);
        let window = main.try_clone()?;
        thread::spawn(move || {
            while let Ok(ToHost::Resize(size)) = receive(&mut messages) {
                // The terminal may be gone already; then its size matters to nobody.
                let _ = terminal::resize(window.as_fd(), size);
            }
        });
        let input = open_port(job::STDIN)?;
        let keyboard = main.try_clone()?;
        thread::spawn(move || relay(input, keyboard));
        let output = open_port(job::STDOUT)?;
        let stdout = thread::spawn(move || relay(main, output));
        Ok((child, Self { stdout, stderr: None }))
    }

    /// Wait until all output is in the ports; returns the bytes of both.
    fn finish(self) -> Result<(u64, u64)> {
        let join = |relay: JoinHandle<std::io::Result<u64>>| match relay.join() {
            Ok(bytes) => bytes.context("cannot pass output on"),
            Err(_) => bail!("a relay panicked"),
        };
        Ok((join(self.stdout)?, self.stderr.map_or(Ok(0), join)?))
    }
}

/// Copy until the end of `from`; a terminal whose user side is closed ends with EIO.
fn relay(mut from: File, mut to: File) -> std::io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => count,
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(buffer.get(..count).unwrap_or_default())?;
        bytes += count as u64;
    }
}

/// Reap every child, as process 1 must, until the command itself has ended.
fn reap_until(child: &Child) -> Result<u8> {
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty()).context("cannot wait")? else {
            continue;
        };
        if u32::try_from(pid.as_raw_nonzero().get()) == Ok(child.id()) {
            let status = ExitStatus::from_raw(status.as_raw());
            let signalled = || status.signal().map_or(255, |signal| 128 + signal);
            return Ok(u8::try_from(status.code().unwrap_or_else(signalled)).unwrap_or(255));
        }
    }
}

/// End what the command left running, so that its pipes close.
fn end_everything() -> Result<()> {
    // SAFETY: process 1 sends a signal to all processes but itself; no memory is involved.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    while !matches!(wait(WaitOptions::empty()), Err(rustix::io::Errno::CHILD)) {}
    Ok(())
}

fn open_port(name: &str) -> Result<File> {
    let ports = Path::new("/sys/class/virtio-ports");
    for entry in fs::read_dir(ports).context("this host has no ports: run `cargo xtask host`")? {
        let entry = entry?;
        let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if found.trim_end() == name {
            let device = PathBuf::from("/dev").join(entry.file_name());
            return File::options()
                .read(true)
                .write(true)
                .open(&device)
                .with_context(|| format!("cannot open {}", device.display()));
        }
    }
    bail!("there is no port {name}")
}

/// Wait until the other side of the port is open. Until then a read is an end of file, and the
/// driver has no event for the change.
fn wait_for_caller(control: &File) -> Result<()> {
    loop {
        let mut polled = [PollFd::new(control, PollFlags::OUT)];
        poll(&mut polled, None).context("cannot poll the control port")?;
        if !polled[0].revents().contains(PollFlags::HUP) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn send(control: &Control, message: &FromHost) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut control = control.lock().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
    control.write_all(&line).context("cannot write to the control port")
}

fn receive(messages: &mut BufReader<File>) -> Result<ToHost> {
    let mut line = String::new();
    messages.read_line(&mut line).context("cannot read the control port")?;
    serde_json::from_str(&line).with_context(|| format!("not a message: {line:?}"))
}
