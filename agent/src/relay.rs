//! Moves bytes between a process and the host's streams: every byte, in order, with back-pressure.
//!
//! The process's end is a pipe or the master of a terminal; nothing in a byte is looked at.

use std::{convert::Infallible, future::pending, io, sync::Arc};

use rustix::io::ioctl_fionread;
use tokio::sync::{oneshot, watch};

use crate::{channel::Channel, reaper::Exit};

/// Bytes moved at once; the capacity of a pipe.
const CHUNK: usize = 64 << 10;
/// What a terminal may still hold after its writer has ended: its buffers are smaller.
const TERMINAL_MAX: usize = 128 << 10;

/// Where output of a process comes from.
#[derive(Debug)]
pub enum Source {
    /// Reading end of a pipe.
    Pipe(Channel),
    /// Master of a terminal.
    Terminal(Arc<Channel>),
    /// One end of a pair of sockets.
    Socket(Arc<Channel>),
}

impl Source {
    fn channel(&self) -> &Channel {
        match self {
            Self::Pipe(channel) => channel,
            Self::Terminal(channel) | Self::Socket(channel) => channel,
        }
    }

    /// The end of a pipe is 0 bytes, that of a terminal EIO.
    fn is_end(result: &io::Result<usize>) -> bool {
        !matches!(result, Ok(1..))
    }

    /// Upper bound of what was written before now.
    fn pending(&self) -> usize {
        match self {
            Self::Pipe(_) | Self::Socket(_) => ioctl_fionread(self.channel())
                .map_or(0, |count| usize::try_from(count).unwrap_or(0)),
            Self::Terminal(_) => TERMINAL_MAX,
        }
    }
}

/// Starts to move output to `sink`. The receiver fires when everything that the process wrote
/// before it ended has been handed over.
pub fn output(
    source: Source,
    sink: Channel,
    exit: watch::Receiver<Option<Exit>>,
) -> oneshot::Receiver<()> {
    let (done, drained) = oneshot::channel();
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        let ended = move_output(&source, &sink, exit, &mut buffer).await;
        finish(source, sink, ended, done, buffer).await;
    });
    drained
}

/// As [`output`] of the terminal that `master` is of, and moves what comes from `stream` into it,
/// which has no end of input. When the host takes no more output, nothing of this holds the master
/// any more: the end of the host's terminal is that of the process's.
pub fn terminal(
    master: Arc<Channel>,
    stream: Option<Channel>,
    sink: Channel,
    exit: watch::Receiver<Option<Exit>>,
) -> oneshot::Receiver<()> {
    let (done, drained) = oneshot::channel();
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        let source = Source::Terminal(Arc::clone(&master));
        let typed = async move {
            if let Some(stream) = stream {
                copy_input(&stream, &master).await;
            }
            pending::<Infallible>().await
        };
        let ended = tokio::select! {
            ended = move_output(&source, &sink, exit, &mut buffer) => ended,
            () = closed(&sink) => Ended::Closed,
            never = typed => match never {},
        };
        finish(source, sink, ended, done, buffer).await;
    });
    drained
}

/// What is left to do with a stream of which everything was handed over.
async fn finish(
    source: Source,
    sink: Channel,
    ended: Ended,
    done: oneshot::Sender<()>,
    mut buffer: Vec<u8>,
) {
    // Fails when the host has gone, which is as good.
    let _ = sink.shutdown_write();
    let _ = done.send(());
    if matches!(ended, Ended::Exited) {
        // Children of the process that still hold the pipe must not block on it.
        while matches!(source.channel().read(&mut buffer).await, Ok(1..)) {}
    }
    drop(source);
    // The socket stays until the host has closed it, so that no byte is cut off by a reset.
    closed(&sink).await;
}

/// Waits until the host reads no more. It never writes into an output.
async fn closed(sink: &Channel) {
    let mut buffer = [0; 16];
    while matches!(sink.read(&mut buffer).await, Ok(1..)) {}
}

enum Ended {
    /// No writer is left, or the host reads no more.
    Closed,
    /// The process has ended, others may still hold the writing end.
    Exited,
}

async fn move_output(
    source: &Source,
    sink: &Channel,
    mut exit: watch::Receiver<Option<Exit>>,
    buffer: &mut [u8],
) -> Ended {
    loop {
        let result = tokio::select! {
            biased;
            _ = exit.wait_for(Option::is_some) => break,
            result = source.channel().read(buffer) => result,
        };
        if Source::is_end(&result) {
            return Ended::Closed;
        }
        if sink.write_all(&buffer[..result.unwrap_or(0)]).await.is_err() {
            return Ended::Closed;
        }
    }
    let mut pending = source.pending();
    while pending > 0 {
        let chunk = pending.min(buffer.len());
        let count = match source.channel().read_now(&mut buffer[..chunk]) {
            Ok(Some(count @ 1..)) => count,
            Ok(None) => break,
            Ok(Some(_)) | Err(_) => return Ended::Closed,
        };
        if sink.write_all(&buffer[..count]).await.is_err() {
            return Ended::Closed;
        }
        pending -= count;
    }
    Ended::Exited
}

/// Starts to move bytes between a socket of the process and the host's stream, until both
/// directions have ended or the process has. The receiver fires when everything that the process
/// wrote has been handed over.
pub fn socket(
    near: Channel,
    stream: Channel,
    exit: watch::Receiver<Option<Exit>>,
) -> oneshot::Receiver<()> {
    let (done, drained) = oneshot::channel();
    tokio::spawn(async move {
        let near = Arc::new(near);
        let outward = async {
            let mut buffer = vec![0; CHUNK];
            let source = Source::Socket(Arc::clone(&near));
            move_output(&source, &stream, exit.clone(), &mut buffer).await;
            // Fails when the host has gone, which is as good.
            let _ = stream.shutdown_write();
            let _ = done.send(());
        };
        let inward = async {
            copy_input(&stream, &near).await;
            // Fails when the process has closed it.
            let _ = near.shutdown_write();
        };
        let inward = async {
            let mut exit = exit.clone();
            tokio::select! {
                () = inward => {}
                _ = exit.wait_for(Option::is_some) => {}
            }
        };
        tokio::join!(outward, inward);
        // What still holds the process's end must not block on it.
        drop(near);
        // The stream stays until the host has closed it, so that no byte is cut off by a reset.
        closed(&stream).await;
    });
    drained
}

/// Starts to move the host's bytes into a pipe, which is closed at their end.
pub fn input(stream: Channel, to: Channel, mut exit: watch::Receiver<Option<Exit>>) {
    tokio::spawn(async move {
        tokio::select! {
            () = copy_input(&stream, &to) => {}
            _ = exit.wait_for(Option::is_some) => {}
        }
    });
}

async fn copy_input(stream: &Channel, to: &Channel) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            // The process reads no more.
            return;
        }
    }
}
