//! Devices that stand on descriptors: each is made from its part of the configuration.

use std::os::unix::net::{UnixListener, UnixStream};

use bulkhead_devices::virtio::block::{Backing, Block, BlockConfig, SerialNumber};
use bulkhead_devices::virtio::fs::{self, Fs, FsConfig, Tag};
use bulkhead_devices::virtio::vsock::{self, Vsock};
use bulkhead_devices::worker::ThreadHook;
use bulkhead_protocol::vm::{RawBlock, RawShareDevice, RawVsock};
use vmm_sys_util::eventfd::EventFd;

use super::descriptors::Descriptors;
use super::error::AssembleError;
use super::rate;

/// Files of shares that the guest may have open at once. With vsock connections and the machine's
/// own descriptors they stay below the process's limit.
const FILES_MAX: usize = 12_000;

/// The vsock device, with the listener for its clients and the connections that wait for the guest.
pub fn vsock_device(
    config: &RawVsock,
    fds: &mut Descriptors,
    hook: &ThreadHook,
) -> Result<Vsock, AssembleError> {
    let listener = UnixListener::from(fds.take(config.listener)?);
    let dials = config
        .dials
        .iter()
        .map(|dial| Ok((dial.port, UnixStream::from(fds.take(dial.socket)?))))
        .collect::<Result<_, AssembleError>>()?;
    let backend =
        vsock::Backend::new(Some(listener), dials).map_err(AssembleError::VsockListener)?;
    Ok(Vsock::new(config.guest_cid, Some(backend), hook)?)
}

/// The share device; `gone` is signalled when its file server has ended.
pub fn share_device(
    config: &RawShareDevice,
    gone: EventFd,
    fds: &mut Descriptors,
    hook: &ThreadHook,
) -> Result<Fs, AssembleError> {
    let tag = Tag::try_from(config.tag.as_str())?;
    let backend = fs::Backend::new(fds.take(config.server)?, gone)?;
    Ok(Fs::new(FsConfig { tag, files_max: FILES_MAX }, Some(backend), hook)?)
}

/// A block device on its file.
pub fn block_device(
    config: &RawBlock,
    fds: &mut Descriptors,
    hook: &ThreadHook,
) -> Result<Block, AssembleError> {
    let serial = SerialNumber::try_from(config.serial.as_str())?;
    let queues = config.queues as usize;
    let backing = Backing::new(fds.file(config.file)?, config.read_only, queues)
        .map_err(|source| AssembleError::Backing { serial: config.serial.clone(), source })?;
    let rate = config.rate.map(rate::limit);
    let config = BlockConfig { serial, read_only: config.read_only, queues, rate };
    Ok(Block::new(config, Some(backing), hook)?)
}
