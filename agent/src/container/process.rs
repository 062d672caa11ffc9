//! One process that the host asked for: a container's init or a process added to it.

use std::{
    io,
    sync::{Arc, Weak},
};

use rustix::{
    io::Errno,
    process::Signal,
    termios::{Winsize, tcsetwinsize},
};
use tokio::sync::{oneshot, watch};

use crate::{
    channel::Channel,
    reaper::{Child, Exit},
};

/// A process and its terminal.
#[derive(Debug)]
pub struct Process {
    child: Arc<Child>,
    /// Held by the relay alone, with whose end the terminal hangs up.
    master: Option<Weak<Channel>>,
    /// Set once it has ended and its output has been handed over.
    finished: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// `drained` fire when output written before the end has been handed over.
    pub fn new(
        child: Arc<Child>,
        master: Option<Weak<Channel>>,
        drained: Vec<oneshot::Receiver<()>>,
    ) -> Self {
        let (sender, finished) = watch::channel(None);
        let mut exit = child.exit();
        tokio::spawn(async move {
            let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
            for stream in drained {
                // A relay that is gone has nothing left to hand over.
                let _ = stream.await;
            }
            sender.send_replace(ended.unwrap_or(None));
        });
        Self { child, master, finished }
    }

    /// PID in the guest.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Whether it has ended; its output may still be under way.
    pub fn has_ended(&self) -> bool {
        self.child.ended().is_some()
    }

    /// Waits for its end and its output; `None` if its watcher was cancelled with the agent.
    pub async fn wait(&self) -> Option<Exit> {
        let mut finished = self.finished.clone();
        let exit = finished.wait_for(Option::is_some).await.ok()?;
        *exit
    }

    /// Waits until it was reaped.
    pub async fn reaped(&self) {
        // Fails only when the reaper has gone, and with it the agent.
        let _ = self.child.exit().wait_for(Option::is_some).await;
    }

    /// Sends a signal; ESRCH when it has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        self.child.signal(signal)
    }

    /// Sets the window size of its terminal; `None` without a terminal, or after its end.
    pub fn resize(&self, rows: u16, columns: u16) -> Option<io::Result<()>> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let master = self.master.as_ref()?.upgrade()?;
        Some(tcsetwinsize(&*master, size).map_err(io::Error::from))
    }
}
