//! Between processes: locks, sockets, pipes with names, watches, programs that run.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};
use rustix::io::Errno;
use rustix::mm::MapFlags;

use super::mapped::Mapping;
use super::{Case, acl, file, finish, help, helper, refused, same};

pub const CASES: &[Case] = &[
    ("posix_locks", posix_locks),
    ("posix_lock_that_waits", posix_lock_that_waits),
    ("locks_of_open_files", locks_of_open_files),
    ("flock", bsd_locks),
    ("stream_socket", stream_socket),
    ("datagram_socket", datagram_socket),
    ("fifo", fifo),
    ("content_is_seen_at_once", content_is_seen_at_once),
    ("watches", watches),
    ("programs", programs),
];

/// What a second process appends again and again.
pub const LINE: &str = "a line of the log, long enough that a torn one would be noticed";

/// What the second process of a case does.
pub fn second(name: &str, path: &Path) -> Result<()> {
    match name {
        "read" => drop(fs::read(path)?),
        "append" => {
            let mut log = File::options().create(true).append(true).open(path)?;
            (0..200).try_for_each(|_| log.write_all(format!("{LINE}\n").as_bytes()))?;
        }
        "unlink" => fs::remove_file(path)?,
        "share" => acl::share(path)?,
        "map" => {
            let file = File::options().read(true).write(true).open(path)?;
            let mapping = Mapping::new(&file, 4097, MapFlags::SHARED)?;
            same(mapping.byte(4096).load(Ordering::Relaxed), 2, "the other's change")?;
            mapping.byte(7).store(4, Ordering::Relaxed);
        }
        "lock" => lock(&open(path)?, libc::F_SETLK, libc::F_WRLCK, (0, 10))?,
        "lock-wait" => {
            println!("waiting");
            let file = open(path)?;
            lock(&file, libc::F_SETLKW, libc::F_WRLCK, (0, 10))?;
            same(fs::read(path)?, b"written under the lock".to_vec(), "content")?;
        }
        "flock" => flock(open(path)?, FlockOperation::NonBlockingLockExclusive)?,
        "connect" => {
            let mut stream = UnixStream::connect(path)?;
            stream.write_all(b"to the server")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            same(answer.as_str(), "to the client", "the answer")?;
        }
        "send" => same(UnixDatagram::unbound()?.send_to(b"datagram", path)?, 8, "bytes sent")?,
        "fifo" => File::options().write(true).open(path)?.write_all(b"through the pipe")?,
        other => bail!("there is no second process {other}"),
    }
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    File::options().read(true).write(true).open(path).context("opening")
}

/// Sets a record lock of `range`, first byte and length.
fn lock(file: impl AsFd, how: i32, kind: i32, range: (i64, i64)) -> Result<()> {
    let wanted = record(kind, range)?;
    // SAFETY: the structure lives until the call returns, which only reads it.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), how, &raw const wanted) };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context("fcntl"),
    }
}

fn record(kind: i32, (start, length): (i64, i64)) -> Result<libc::flock> {
    let (l_type, l_whence) = (i16::try_from(kind)?, i16::try_from(libc::SEEK_SET)?);
    Ok(libc::flock { l_type, l_whence, l_start: start, l_len: length, l_pid: 0 })
}

fn posix_locks(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"0123456789")?;
    let open = open(&path)?;
    lock(&open, libc::F_SETLK, libc::F_RDLCK, (5, 1))?;
    ensure!(help("lock", &path).is_err(), "a read lock is no obstacle");
    lock(&open, libc::F_SETLK, libc::F_UNLCK, (5, 1))?;
    help("lock", &path).context("after the lock was given back")?;
    lock(&open, libc::F_SETLK, libc::F_WRLCK, (100, 0))?;
    help("lock", &path).context("beside a lock of other bytes")?;
    // Any descriptor of the file that is closed takes the locks with it.
    lock(&open, libc::F_SETLK, libc::F_WRLCK, (0, 10))?;
    drop(File::open(&path)?);
    help("lock", &path).context("after a descriptor was closed")
}

fn posix_lock_that_waits(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"before")?;
    let open = open(&path)?;
    lock(&open, libc::F_SETLK, libc::F_WRLCK, (0, 10))?;
    let mut other = helper("lock-wait", &path)?.stdout(Stdio::piped()).spawn()?;
    other.stdout.as_mut().context("piped")?.read_exact(&mut [0; 7])?;
    // Not through another descriptor of the file, whose close would end the lock.
    rustix::io::pwrite(&open, b"written under the lock", 0)?;
    lock(&open, libc::F_SETLK, libc::F_UNLCK, (0, 10))?;
    finish(other)
}

fn locks_of_open_files(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    let (one, two) = (open(&path)?, open(&path)?);
    lock(&one, libc::F_OFD_SETLK, libc::F_WRLCK, (0, 10))?;
    let refused = lock(&two, libc::F_OFD_SETLK, libc::F_WRLCK, (0, 10));
    ensure!(refused.is_err(), "both open files have the lock");
    ensure!(help("lock", &path).is_err(), "another process has the lock too");
    drop(one);
    lock(&two, libc::F_OFD_SETLK, libc::F_WRLCK, (0, 10)).context("after the close")
}

fn bsd_locks(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    let open = open(&path)?;
    flock(&open, FlockOperation::LockShared)?;
    ensure!(help("flock", &path).is_err(), "a shared lock is no obstacle");
    flock(&open, FlockOperation::Unlock)?;
    help("flock", &path).context("after the lock was given back")
}

fn stream_socket(dir: &Path) -> Result<()> {
    let path = dir.join("socket");
    let listener = UnixListener::bind(&path)?;
    let client = helper("connect", &path)?.spawn()?;
    let (mut stream, _) = listener.accept()?;
    let mut request = [0; 13];
    stream.read_exact(&mut request)?;
    same(&request, b"to the server", "the request")?;
    stream.write_all(b"to the client")?;
    drop(stream);
    finish(client)?;
    drop(listener);
    ensure!(help("connect", &path).is_err(), "nobody listens, and one connects");
    Ok(())
}

fn datagram_socket(dir: &Path) -> Result<()> {
    let path = dir.join("socket");
    let socket = UnixDatagram::bind(&path)?;
    help("send", &path)?;
    let mut datagram = [0; 32];
    let length = socket.recv(&mut datagram)?;
    same(&datagram[..length], b"datagram", "the datagram")
}

fn fifo(dir: &Path) -> Result<()> {
    let path = dir.join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let writer = helper("fifo", &path)?.spawn()?;
    let mut content = String::new();
    File::open(&path)?.read_to_string(&mut content)?;
    finish(writer)?;
    same(content.as_str(), "through the pipe", "what came")
}

fn content_is_seen_at_once(dir: &Path) -> Result<()> {
    let path = file(dir, "file", b"")?;
    let mut reader = File::open(&path)?;
    help("append", &path)?;
    let mut content = String::new();
    reader.read_to_string(&mut content)?;
    same(content.lines().count(), 200, "lines through a file that was open before")
}

/// inotify(7) of what processes of the same kernel do.
fn watches(dir: &Path) -> Result<()> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, dir, WatchFlags::CREATE | WatchFlags::DELETE)?;
    let path = file(dir, "new", b"")?;
    fs::remove_file(path)?;
    let mut space = [std::mem::MaybeUninit::uninit(); 512];
    let mut events = inotify::Reader::new(&watch, &mut space);
    for wanted in [inotify::ReadFlags::CREATE, inotify::ReadFlags::DELETE] {
        let event = events.next().context("an event")?;
        ensure!(event.events().contains(wanted), "{wanted:?}: {:?}", event.events());
        same(event.file_name(), Some(c"new"), "its name")?;
    }
    Ok(())
}

/// Scripts and programs run, and a program that runs is not written to.
fn programs(dir: &Path) -> Result<()> {
    let script = file(dir, "script", b"#!/bin/sh\nexit 7\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let status = std::process::Command::new(&script).status().context("a script")?;
    same(status.code(), Some(7), "its exit code")?;
    let program = dir.join("program");
    fs::copy("/proc/self/exe", &program)?;
    let path = file(dir, "file", b"0123456789")?;
    let open = open(&path)?;
    lock(&open, libc::F_SETLK, libc::F_WRLCK, (0, 10))?;
    let mut command = std::process::Command::new(&program);
    command.args(["help", "lock-wait"]).arg(&path).stdout(Stdio::piped());
    let mut running = command.spawn().context("a program")?;
    running.stdout.as_mut().context("piped")?.read_exact(&mut [0; 7])?;
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    let busy = rustix::fs::open(&program, flags, Mode::empty());
    rustix::io::pwrite(&open, b"written under the lock", 0)?;
    lock(&open, libc::F_SETLK, libc::F_UNLCK, (0, 10))?;
    finish(running)?;
    refused(busy, Errno::TXTBSY, "writing to a program that runs")
}
