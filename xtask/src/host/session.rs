//! One command in the emulated host, seen from outside: streams, signals, time limit, signs of
//! life, exit status.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::image::Image;
use super::job::{FromHost, Job, ToHost};
use super::machine::Machine;
use super::signals::Signals;
use super::terminal::Caller;

/// Longest silence of a host that boots or runs. Its clock may lag behind ours on a busy machine.
const SILENCE: Duration = Duration::from_secs(40);
/// The same with the instruction clock, on which a second is a thousand million instructions.
const SILENCE_ICOUNT: Duration = Duration::from_secs(180);
/// Exit status of a command that ran out of time, as `timeout` has it.
const TIMED_OUT: u8 = 124;
/// Bytes of the console that are kept for an error message.
const CONSOLE_TAIL: usize = 4 << 10;
/// Bytes that one read of a stream takes.
const CHUNK: usize = 64 << 10;

/// How a session ended.
pub enum Ended {
    /// With this exit status.
    Status(u8),
    /// The host gave no sign of life, so it was ended; whether input was consumed.
    Hung {
        /// Standard input was read, so the command cannot simply be run again.
        input_read: bool,
    },
}

/// What a session needs besides the job.
pub struct Limits {
    /// The host has the instruction clock.
    pub icount: bool,
    /// Time that the command may take.
    pub timeout: Option<Duration>,
}

/// Boot a host, run `job`, relay, end the host.
pub fn run(image: &Image, job: &Job, limits: &Limits, signals: &mut Signals) -> Result<Ended> {
    let mut machine = Machine::start(image, limits.icount)?;
    let console = Tail::follow(machine.console.take().context("the console is a pipe")?);
    let messages = Tail::follow(machine.messages.take().context("QEMU's messages are a pipe")?);
    let raw = job.terminal.map(|_| Caller::raw()).transpose()?;
    let input_read = Arc::new(AtomicBool::new(false));
    feed(machine.ports.stdin.try_clone()?, Arc::clone(&input_read));
    let stdout = Drain::start(machine.ports.stdout.try_clone()?, io::stdout());
    let stderr = Drain::start(machine.ports.stderr.try_clone()?, io::stderr());
    let mut control = Control::start(machine.ports.control.try_clone()?)?;
    control.send(&ToHost::Run(job.clone()))?;
    let outcome = control.wait(limits, signals);
    let ended = match outcome? {
        Outcome::Exit { status, stdout_bytes, stderr_bytes } => {
            stdout.wait_for(stdout_bytes);
            stderr.wait_for(stderr_bytes);
            Ended::Status(status)
        }
        Outcome::Ended(status) => Ended::Status(status),
        Outcome::Hung => Ended::Hung { input_read: input_read.load(Ordering::Acquire) },
        Outcome::Vanished => {
            drop(raw);
            drop(machine);
            bail!("the emulated host ended by itself\n{}{}", messages.text(), console.text());
        }
    };
    drop(raw);
    Ok(ended)
}

enum Outcome {
    Exit { status: u8, stdout_bytes: u64, stderr_bytes: u64 },
    Ended(u8),
    Hung,
    Vanished,
}

/// The control port: a thread reads it, so that one poll sees messages, signals and time.
struct Control {
    writer: UnixStream,
    messages: mpsc::Receiver<FromHost>,
    wake: UnixStream,
}

impl Control {
    fn start(port: UnixStream) -> Result<Self> {
        let writer = port.try_clone()?;
        let (sender, messages) = mpsc::channel();
        let (wake, mut waker) = UnixStream::pair()?;
        thread::spawn(move || {
            for line in BufReader::new(port).lines() {
                let message = line.ok().and_then(|line| serde_json::from_str(&line).ok());
                let Some(message) = message else { return };
                if sender.send(message).is_err() || waker.write_all(&[0]).is_err() {
                    return;
                }
            }
        });
        Ok(Self { writer, messages, wake })
    }

    fn send(&mut self, message: &ToHost) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line).context("cannot write to the host's control port")
    }

    fn wait(&mut self, limits: &Limits, signals: &mut Signals) -> Result<Outcome> {
        let silence = if limits.icount { SILENCE_ICOUNT } else { SILENCE };
        // The time of the command starts with the first sign of life.
        let mut deadline = None;
        let mut last_beat = Instant::now();
        loop {
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                eprintln!("xtask host: out of time: ended the command and the emulated host");
                return Ok(Outcome::Ended(TIMED_OUT));
            }
            if now.duration_since(last_beat) >= silence {
                return Ok(Outcome::Hung);
            }
            let limit = deadline.map_or(last_beat + silence, |at| at.min(last_beat + silence));
            let (message, signal) = self.poll(limit.saturating_duration_since(now), signals)?;
            if signal {
                match signals.next()? {
                    libc::SIGWINCH => self.resize()?,
                    other => return Ok(Outcome::Ended(u8::try_from(128 + other).unwrap_or(255))),
                }
            }
            if message {
                match self.next()? {
                    Some(FromHost::Beat) => {
                        last_beat = Instant::now();
                        deadline = deadline.or(limits.timeout.map(|limit| last_beat + limit));
                    }
                    Some(FromHost::Exit { status, stdout_bytes, stderr_bytes }) => {
                        return Ok(Outcome::Exit { status, stdout_bytes, stderr_bytes });
                    }
                    Some(FromHost::Failed { message, status }) => {
                        eprintln!("xtask host: {message}");
                        return Ok(Outcome::Ended(status));
                    }
                    None => return Ok(Outcome::Vanished),
                }
            }
        }
    }

    /// Wait for a message or a signal, at most for `limit`.
    fn poll(&self, limit: Duration, signals: &Signals) -> Result<(bool, bool)> {
        let wake = self.wake.as_fd();
        let mut polled = [
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN),
        ];
        let limit = Timespec::try_from(limit).context("the limit is a number of seconds")?;
        match poll(&mut polled, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the emulated host"),
        }
        Ok((!polled[0].revents().is_empty(), !polled[1].revents().is_empty()))
    }

    /// The message that the wake-up stood for; none when the port is closed.
    fn next(&mut self) -> Result<Option<FromHost>> {
        let woken = self.wake.read(&mut [0]).context("cannot read a wake-up")?;
        Ok(if woken == 0 { None } else { self.messages.recv().ok() })
    }

    fn resize(&mut self) -> Result<()> {
        Caller::size().map_or(Ok(()), |size| self.send(&ToHost::Resize(size)))
    }
}

/// Pass our standard input on; the thread ends with it, or with this process.
fn feed(mut port: UnixStream, input_read: Arc<AtomicBool>) {
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    input_read.store(true, Ordering::Release);
                    if port.write_all(buffer.get(..count).unwrap_or_default()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // Half-closed only: QEMU drops what it has not read when both halves are closed.
        let _ = port.shutdown(Shutdown::Write);
    });
}

/// A thread that copies a port to an output of ours and counts.
struct Drain {
    count: Arc<(Mutex<u64>, Condvar)>,
}

impl Drain {
    fn start(mut port: UnixStream, mut output: impl Write + Send + 'static) -> Self {
        let count = Arc::new((Mutex::new(0), Condvar::new()));
        let shared = Arc::clone(&count);
        thread::spawn(move || {
            let mut buffer = vec![0; CHUNK];
            let mut open = true;
            while let Ok(read @ 1..) = port.read(&mut buffer) {
                let bytes = buffer.get(..read).unwrap_or_default();
                // When nobody reads our output the command still runs to its end.
                open = open && output.write_all(bytes).and_then(|()| output.flush()).is_ok();
                let (total, changed) = &*shared;
                *total.lock().unwrap_or_else(PoisonError::into_inner) += read as u64;
                changed.notify_all();
            }
        });
        Self { count }
    }

    /// Wait until `bytes` have come through.
    fn wait_for(&self, bytes: u64) {
        let (total, changed) = &*self.count;
        let total = total.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_while(total, |total| *total < bytes));
    }
}

/// The last bytes of a pipe.
struct Tail {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl Tail {
    fn follow(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                let mut bytes = shared.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
                let surplus = bytes.len().saturating_sub(CONSOLE_TAIL);
                bytes.drain(..surplus);
            }
        });
        Self { bytes, reader }
    }

    /// What was kept, once the pipe is closed.
    fn text(self) -> String {
        // A reader that panicked has kept what it had.
        let _ = self.reader.join();
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
