//! The threads of the server, all of which take requests from one socket.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::thread::{Builder, Scope};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown};
use thiserror::Error;

use crate::control::serve_request;
use crate::identity::Identity;
use crate::reply::Reply;
use crate::server::{Answer, MESSAGE_MAX, Server};

/// Threads that serve. Requests wait for the disk (`FUSE_FSYNC`, `FUSE_SYNCFS`), so that a few
/// of them must not hold up the others.
const THREADS: usize = 4;

/// Stack of a thread: the deepest is a listing with its buffer of 8 KiB.
const STACK_SIZE: usize = 128 << 10;

/// What a thread runs first.
pub type Hook<'a> = &'a (dyn Fn() -> io::Result<()> + Sync);

/// Why serving has ended.
#[derive(Debug, Error)]
pub enum PoolError {
    /// Starting a thread.
    #[error("starting a server thread")]
    Spawn(#[source] std::io::Error),
    /// What a thread runs first has failed.
    #[error("preparing a server thread")]
    Hook(#[source] io::Error),
    /// Preparing a thread.
    #[error("setting the identity of a server thread")]
    Identity(#[source] std::io::Error),
    /// Waiting for the sockets.
    #[error("waiting for the end of the VMM or of the runtime")]
    Wait(#[source] std::io::Error),
    /// Talking to the runtime.
    #[error("talking to the runtime")]
    Control(#[source] std::io::Error),
    /// Reading a request.
    #[error("reading a request")]
    Receive(#[source] std::io::Error),
    /// Sending a reply.
    #[error("sending a reply")]
    Send(#[source] std::io::Error),
}

/// Serves requests of the sequential-packet socket `device` until it is closed by the peer, or
/// until the peer of `control` closes that. Returns after every thread has ended.
///
/// Every thread, this one too, runs `hook` before it serves or waits: the system call filter is
/// installed there, since a filter that lets threads be started would let too much.
pub fn serve(
    server: &Server,
    device: BorrowedFd<'_>,
    control: BorrowedFd<'_>,
    hook: Hook<'_>,
) -> Result<(), PoolError> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|_| spawn(scope, server, device, hook)).collect::<Result<_, _>>()?;
        let waited = hook().map_err(PoolError::Hook).and_then(|()| wait(server, device, control));
        // Wakes threads that wait for a request.
        let _ = rustix::net::shutdown(device, Shutdown::Both);
        let ended = threads.into_iter().map(|thread| {
            // A panic was reported by its own message; in what ships it ended the process.
            thread.join().unwrap_or(Ok(()))
        });
        ended.fold(waited, Result::and)
    })
}

fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    server: &'scope Server,
    device: BorrowedFd<'scope>,
    hook: Hook<'scope>,
) -> Result<std::thread::ScopedJoinHandle<'scope, Result<(), PoolError>>, PoolError> {
    let started =
        Builder::new().name("fsd".into()).stack_size(STACK_SIZE).spawn_scoped(scope, move || {
            let ended = run(server, device, hook);
            if ended.is_err() {
                // The others must not go on without this one.
                let _ = rustix::net::shutdown(device, Shutdown::Both);
            }
            ended
        });
    started.map_err(|source| {
        // Ends those that were started.
        let _ = rustix::net::shutdown(device, Shutdown::Both);
        PoolError::Spawn(source)
    })
}

/// Serves the runtime until either peer is gone.
fn wait(server: &Server, device: BorrowedFd<'_>, control: BorrowedFd<'_>) -> Result<(), PoolError> {
    loop {
        let mut sockets = [
            // An end of the connection is told without being asked for.
            PollFd::from_borrowed_fd(device, PollFlags::empty()),
            PollFd::from_borrowed_fd(control, PollFlags::IN),
        ];
        match rustix::event::poll(&mut sockets, None) {
            Ok(_) if !sockets[0].revents().is_empty() => return Ok(()),
            Ok(_) => match serve_request(server, control) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => return Err(PoolError::Control(error)),
            },
            Err(Errno::INTR) => {}
            Err(errno) => return Err(PoolError::Wait(errno.into())),
        }
    }
}

/// The body of a thread.
fn run(server: &Server, device: BorrowedFd<'_>, hook: Hook<'_>) -> Result<(), PoolError> {
    let mut identity = Identity::of_this_thread(server.descriptors())
        .map_err(|errno| PoolError::Identity(errno.into()))?;
    // After the identity, so that a filter need not let a thread unshare anything.
    hook().map_err(PoolError::Hook)?;
    // One allocation, large enough to be mapped: pages that no request uses stay untouched.
    let mut memory = vec![0; 2 * MESSAGE_MAX];
    let (message, buffer) = memory.split_at_mut(MESSAGE_MAX);
    loop {
        let len = match rustix::net::recv(device, &mut *message, RecvFlags::TRUNC) {
            // A message is never empty: the peer is gone.
            Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(()),
            // One that is cut off tells another length in its header, and is refused.
            Ok((_, len)) => len.min(MESSAGE_MAX),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(PoolError::Receive(errno.into())),
        };
        let mut reply = Reply::new(buffer);
        let Some(answer) = server.answer(&message[..len], &mut reply, &mut identity) else {
            continue;
        };
        match send(device, &answer) {
            Ok(()) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            Err(errno) => return Err(PoolError::Send(errno.into())),
        }
    }
}

fn send(device: BorrowedFd<'_>, answer: &Answer<'_>) -> Result<(), Errno> {
    let files = answer.file.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(files));
    }
    let bytes = [IoSlice::new(answer.bytes)];
    loop {
        match rustix::net::sendmsg(device, &bytes, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(drop),
        }
    }
}
