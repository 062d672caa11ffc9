//! What the processes of a sandbox that runs are asked, and what they answer.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bulkhead_protocol::control::{Reply, Request};
use bulkhead_protocol::share::{RawShareRequest, ShareReply};
use rustix::event::{PollFd, PollFlags, poll};

use super::SandboxError;
use super::channel::Channel;
use super::machine::{End, Machine};
use crate::failure::printable;
use crate::spawn::Child;
use crate::vsock::until;

/// How long a process may take to answer. The VMM does it between two instructions of the guest,
/// the file server beside its requests.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

impl Machine {
    /// Sends a request to the VMM, whose reply comes as an event.
    pub fn request(&self, request: &Request) -> Result<(), SandboxError> {
        self.control.send(request, &[])
    }

    /// Asks the VMM of a running guest something and waits for the answer. An end of the machine
    /// that comes instead is the next event, too.
    pub fn ask(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, SandboxError> {
        self.control.send(request, fds)?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            match self.control.receive::<Reply>()? {
                Some(Reply::Exited { reason }) => {
                    let end = self.end_of(reason);
                    self.ended = Some(end.clone());
                    return Err(SandboxError::Ended(end));
                }
                Some(Reply::Failed { message }) => {
                    return Err(SandboxError::Refused(printable(&message)));
                }
                Some(reply) => return Ok(reply),
                None => self.await_answer(deadline)?,
            }
        }
    }

    /// Waits until the VMM has said something. One that has ended, or says nothing in time, is
    /// an error.
    fn await_answer(&mut self, deadline: Instant) -> Result<(), SandboxError> {
        // What a VMM that has hung up said last is read with its end.
        match wait_for(&self.control, &self.vmm, deadline)? {
            true => Err(SandboxError::Ended(self.vmm_end()?)),
            false => Ok(()),
        }
    }

    /// Asks the file server to add or remove shares.
    pub fn share(
        &mut self,
        request: &RawShareRequest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SandboxError> {
        self.fsd_control.send(request, fds)?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            match self.fsd_control.receive::<ShareReply>()? {
                Some(ShareReply::Done) => return Ok(()),
                Some(ShareReply::Failed { message }) => {
                    return Err(SandboxError::Refused(printable(&message)));
                }
                None => self.await_file_server(deadline)?,
            }
        }
    }

    /// As [`Self::await_answer`], of the file server; its end is the next event, too.
    fn await_file_server(&self, deadline: Instant) -> Result<(), SandboxError> {
        match wait_for(&self.fsd_control, &self.fsd, deadline)? {
            true => Err(SandboxError::Ended(End::FileServerDied("has ended".to_owned()))),
            false => Ok(()),
        }
    }
}

/// Waits until `process` has said something on `channel`, and tells whether it has ended instead.
/// One that stays silent is an error.
fn wait_for(channel: &Channel, process: &Child, deadline: Instant) -> Result<bool, SandboxError> {
    let mut fds =
        [channel.as_fd(), process.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match poll(&mut fds, Some(&until(deadline))) {
        Ok(0) => Err(SandboxError::Unanswered { name: process.name, limit: ANSWER_LIMIT }),
        Ok(_) | Err(rustix::io::Errno::INTR) => {
            Ok(fds[0].revents().contains(PollFlags::HUP) || !fds[1].revents().is_empty())
        }
        Err(e) => Err(SandboxError::Poll(e.into())),
    }
}
