//! The end of the guest: write back the share, answer the host, then go.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use rustix::{
    fs::syncfs,
    mount::{UnmountFlags, unmount},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::timeout,
};

use crate::{channel::Channel, transport::Listener};

/// How long the host may take to read the last answer and hang up.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Whether the guest is to go, and who still listens.
#[derive(Debug)]
pub struct Power {
    share: Option<PathBuf>,
    off: watch::Sender<bool>,
    connections: watch::Sender<usize>,
}

impl Power {
    /// `share` is the directory with the host's files, if one is mounted.
    pub fn new(share: Option<&Path>) -> Self {
        Self {
            share: share.map(Path::to_owned),
            off: watch::Sender::new(false),
            connections: watch::Sender::new(0),
        }
    }

    /// Gives dirty pages of the share, mapped ones too, back to the host.
    pub fn write_back(&self) {
        if let Some(share) = &self.share {
            // Whatever fails here is reported by nobody: the host's files are the host's to check.
            let _ = File::open(share).and_then(|root| Ok(syncfs(root)?));
            let _ = unmount(share, UnmountFlags::DETACH);
        }
    }

    /// Asks for the end.
    pub fn off(&self) {
        self.off.send_replace(true);
    }

    /// Returns when the end was asked for and the host has hung up: it has read the answer then.
    pub async fn wait_off(&self) {
        // Neither sender can go before `self`.
        let _ = self.off.subscribe().wait_for(|off| *off).await;
        let mut connections = self.connections.subscribe();
        let _ = timeout(LAST_ANSWER, connections.wait_for(|count| *count == 0)).await;
    }
}

/// The API's connections, counted.
pub struct ApiListener {
    listener: Listener,
    power: Arc<Power>,
}

impl ApiListener {
    /// Counts what `listener` accepts.
    pub fn new(listener: Listener, power: Arc<Power>) -> Self {
        Self { listener, power }
    }
}

impl Stream for ApiListener {
    type Item = io::Result<ApiConnection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = Pin::new(&mut self.listener).poll_next(context);
        let power = &self.power;
        accepted.map_ok(|channel| {
            power.connections.send_modify(|count| *count += 1);
            ApiConnection { channel, power: Arc::clone(power) }
        })
    }
}

/// One connection of the API.
pub struct ApiConnection {
    channel: Channel,
    power: Arc<Power>,
}

impl Drop for ApiConnection {
    fn drop(&mut self) {
        self.power.connections.send_modify(|count| *count -= 1);
    }
}

impl AsyncRead for ApiConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.channel).poll_read(context, buffer)
    }
}

impl AsyncWrite for ApiConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.channel).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.channel).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.channel).poll_shutdown(context)
    }
}
