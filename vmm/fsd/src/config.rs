//! The first message, which tells the server what to serve.
//!
//! Input: JSON and descriptors from the runtime, which is trusted, but checked nevertheless.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use bulkhead_protocol::limits::{CONTROL_FDS_MAX, CONTROL_MESSAGE_MAX};
use bulkhead_protocol::share::{RawShare, RawShareConfig, ShareConfig, ShareConfigError};
use bulkhead_protocol::vm::FdIndex;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use thiserror::Error;

use crate::server::NewShare;

/// Why the message is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Receiving it.
    #[error("receiving the configuration")]
    Receive(#[source] std::io::Error),
    /// The runtime went away first.
    #[error("the runtime closed the control socket before it sent a configuration")]
    Closed,
    /// More bytes or descriptors than allowed.
    #[error(
        "the configuration is larger than {CONTROL_MESSAGE_MAX} bytes or has more than {CONTROL_FDS_MAX} descriptors"
    )]
    TooLarge,
    /// Not the JSON expected.
    #[error("parsing the configuration")]
    Parse(#[source] serde_json::Error),
    /// A value out of bounds.
    #[error("checking the configuration")]
    Check(#[source] ShareConfigError),
    /// A descriptor for two purposes.
    #[error("descriptor {0} is named twice")]
    Twice(u32),
}

/// What to serve.
pub struct Config {
    /// Socket to the VMM's device.
    pub device: OwnedFd,
    /// Each somewhere in a file system of the host.
    pub shares: Vec<NewShare>,
}

impl Config {
    /// Receives the message on the control socket.
    pub fn receive(control: BorrowedFd<'_>) -> Result<Self, ConfigError> {
        let (text, fds) = receive(control)?;
        Self::parse(&text, fds)
    }

    fn parse(text: &[u8], fds: Vec<OwnedFd>) -> Result<Self, ConfigError> {
        let raw: RawShareConfig = serde_json::from_slice(text).map_err(ConfigError::Parse)?;
        let checked = ShareConfig::new(raw, fds.len()).map_err(ConfigError::Check)?;
        let mut fds = Fds::new(fds);
        let device = fds.take(checked.device())?;
        Ok(Self { device, shares: fds.shares(checked.shares())? })
    }
}

/// Descriptors that came with a message, each for one purpose.
pub(crate) struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    fn take(&mut self, index: FdIndex) -> Result<OwnedFd, ConfigError> {
        let slot = self.0.get_mut(index.0 as usize);
        slot.and_then(Option::take).ok_or(ConfigError::Twice(index.0))
    }

    /// The shares with their descriptors.
    pub fn shares(&mut self, shares: &[RawShare]) -> Result<Vec<NewShare>, ConfigError> {
        let with_fd =
            |share: &RawShare| Ok((share.name.clone(), self.take(share.source)?, share.read_only));
        shares.iter().map(with_fd).collect()
    }
}

/// The next message on the control socket, and the descriptors that came along.
pub(crate) fn receive(control: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), ConfigError> {
    let mut text = vec![0; CONTROL_MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CONTROL_FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        control,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|errno| ConfigError::Receive(errno.into()))?;
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(ConfigError::TooLarge);
    }
    if received.bytes == 0 {
        return Err(ConfigError::Closed);
    }
    text.truncate(received.bytes);
    Ok((text, fds))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn fds(count: usize) -> Vec<OwnedFd> {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        (0..count).map(|_| null()).collect()
    }

    fn text(device: u32, source: u32) -> String {
        format!(
            r#"{{"device":{device},
                 "shares":[{{"name":"root","source":{source},"read_only":true}}]}}"#
        )
    }

    #[test]
    fn configuration_takes_each_descriptor_once() {
        let config = Config::parse(text(0, 2).as_bytes(), fds(3)).unwrap();
        assert_eq!((config.shares[0].0.as_str(), config.shares[0].2), ("root", true));
        let twice = Config::parse(text(2, 2).as_bytes(), fds(3));
        assert!(matches!(twice, Err(ConfigError::Twice(2))));
        let absent = Config::parse(text(0, 3).as_bytes(), fds(3));
        assert!(matches!(absent, Err(ConfigError::Check(ShareConfigError::Fd(3)))));
    }

    #[test]
    fn configuration_that_is_none_is_refused() {
        for text in ["", "{", "[]", r#"{"device":0,"shares":[],"path":"/etc"}"#] {
            let parsed = Config::parse(text.as_bytes(), fds(3));
            assert!(matches!(parsed, Err(ConfigError::Parse(_))), "{text}");
        }
    }

    #[test]
    fn runtime_that_is_gone_or_says_too_much_is_told_apart() {
        use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let long = vec![b' '; CONTROL_MESSAGE_MAX + 1];
        rustix::net::send(&theirs, &long, SendFlags::empty()).unwrap();
        assert!(matches!(Config::receive(ours.as_fd()), Err(ConfigError::TooLarge)));
        drop(theirs);
        assert!(matches!(Config::receive(ours.as_fd()), Err(ConfigError::Closed)));
    }
}
