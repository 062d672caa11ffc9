//! `bulkhead-fsd` by itself: this program stands in for the runtime and starts it with any
//! configuration.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Child;

use anyhow::{Context, Result};
use bulkhead_protocol::share::{RawShare, RawShareConfig};
use bulkhead_protocol::vm::FdIndex;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::vmm::{send, start};

/// A running file server, killed when dropped.
pub struct FileServer {
    child: Child,
    /// The server ends when this is closed.
    control: OwnedFd,
    /// The socket of the VMM's share device, until it is [taken](FileServer::take_device).
    device: Option<OwnedFd>,
}

impl FileServer {
    /// Starts a server of the directories `shares`, by name, writable.
    pub fn spawn(shares: &[(&str, &Path)]) -> Result<Self> {
        let pair = || {
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("cannot make a socket pair")
        };
        let (control, far_control) = pair()?;
        let (device, far_device) = pair()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directories = shares
            .iter()
            .map(|(_, path)| {
                rustix::fs::open(*path, flags, Mode::empty())
                    .map(File::from)
                    .with_context(|| format!("cannot open {}", path.display()))
            })
            .collect::<Result<Vec<_>>>()?;
        let shares = (1..)
            .zip(shares)
            .map(|(index, (name, _))| RawShare {
                name: (*name).to_owned(),
                source: FdIndex(index),
                read_only: false,
            })
            .collect();
        let config = RawShareConfig { device: FdIndex(0), shares };
        let text = serde_json::to_vec(&config).context("cannot write the configuration")?;
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(far_device.as_fd())
            .chain(directories.iter().map(AsFd::as_fd))
            .collect();
        let child = start("bulkhead-fsd", far_control)?;
        let server = Self { child, control, device: Some(device) };
        send(server.control.as_fd(), &text, &fds).context("cannot send to bulkhead-fsd")?;
        Ok(server)
    }

    /// The socket of the VMM's share device.
    pub fn take_device(&mut self) -> Result<OwnedFd> {
        self.device.take().context("the socket of the device was taken already")
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
