//! What the runtime asks of a server that serves: shares to add and to remove.
//!
//! Input: JSON and descriptors from the runtime, which is trusted, but checked nevertheless. The
//! server is confined by now and cannot set a share apart from the host's tree ([`apart`]): the
//! runtime has done that, and one that is not set apart is refused.

use std::io::IoSlice;
use std::os::fd::{BorrowedFd, OwnedFd};

use bulkhead_jail::apart;
use bulkhead_protocol::share::{RawShareRequest, ShareConfigError, ShareReply, check_shares};
use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use thiserror::Error;

use crate::config::{ConfigError, Fds, receive};
use crate::server::{NewShare, Server, ServerError};

/// Why a request is refused.
#[derive(Debug, Error)]
enum RequestError {
    #[error("parsing the request: {0}")]
    Parse(#[source] serde_json::Error),
    #[error(transparent)]
    Check(ShareConfigError),
    #[error(transparent)]
    Fds(ConfigError),
    #[error("share {0:?} is not set apart from the host's tree")]
    Apart(String),
    #[error("share {name:?}: looking at its mount: {errno}")]
    Look { name: String, errno: Errno },
    #[error(transparent)]
    Server(ServerError),
}

/// Takes a request from `control` and answers it. False when the runtime is gone.
pub(crate) fn serve_request(
    server: &Server,
    control: BorrowedFd<'_>,
) -> Result<bool, std::io::Error> {
    let (text, fds) = match receive(control) {
        Ok(message) => message,
        Err(ConfigError::Receive(error)) => return Err(error),
        Err(ConfigError::Closed) => return Ok(false),
        Err(error) => {
            return answer(control, &ShareReply::Failed { message: error.to_string() });
        }
    };
    let reply = match carry_out(server, &text, fds) {
        Ok(()) => ShareReply::Done,
        Err(error) => ShareReply::Failed { message: error.to_string() },
    };
    answer(control, &reply)
}

fn answer(control: BorrowedFd<'_>, reply: &ShareReply) -> Result<bool, std::io::Error> {
    let bytes = serde_json::to_vec(reply)?;
    let mut none = SendAncillaryBuffer::default();
    loop {
        match rustix::net::sendmsg(control, &[IoSlice::new(&bytes)], &mut none, SendFlags::NOSIGNAL)
        {
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
            sent => return Ok(sent.map(|_| true)?),
        }
    }
}

fn carry_out(server: &Server, text: &[u8], fds: Vec<OwnedFd>) -> Result<(), RequestError> {
    match serde_json::from_slice(text).map_err(RequestError::Parse)? {
        RawShareRequest::Add { shares } => {
            check_shares(&shares, fds.len()).map_err(RequestError::Check)?;
            let shares = Fds::new(fds).shares(&shares).map_err(RequestError::Fds)?;
            shares.iter().try_for_each(check_apart)?;
            server.add_shares(shares).map_err(RequestError::Server)
        }
        RawShareRequest::Remove { names } => {
            server.remove_shares(&names);
            Ok(())
        }
    }
}

/// Whether nothing lies above the share, its devices do not open, and the kernel refuses changes
/// of one that is read-only.
fn check_apart((name, fd, read_only): &NewShare) -> Result<(), RequestError> {
    let look = |errno| RequestError::Look { name: name.clone(), errno };
    let flags = rustix::fs::fstatvfs(fd).map_err(look)?.f_flag;
    let mut wanted = StatVfsMountFlags::NODEV | StatVfsMountFlags::NOSUID;
    wanted.set(StatVfsMountFlags::RDONLY, *read_only);
    match apart::is_top(fd).map_err(look)? && flags.contains(wanted) {
        true => Ok(()),
        false => Err(RequestError::Apart(name.clone())),
    }
}
