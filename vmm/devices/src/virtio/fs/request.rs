//! A request in guest memory becomes work.
//!
//! What decides is copied out of guest memory once. The data of a READ or WRITE stays there;
//! every other request is copied whole, so that what the server gets is what was looked at.

use vm_memory::GuestMemoryMmap;
use zerocopy::{FromBytes, IntoBytes};

use super::backend::MESSAGE_MAX;
use super::wire::{InHeader, LseekIn, ReleaseIn, TransferIn, opcode};
use crate::virtio::chain::Chain;

/// Bytes before the data of a WRITE.
pub(super) const WRITE_DATA_OFFSET: usize = size_of::<InHeader>() + size_of::<TransferIn>();

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    /// Read from a file that was handed over.
    Read(TransferIn),
    /// Write to one.
    Write(TransferIn),
    /// Find data or a hole in one.
    Seek(LseekIn),
    /// Tell the server, which does not answer.
    Tell,
    /// Nothing is to be done or answered.
    Ignore,
    /// Ask the server.
    Ask(Effect),
}

/// What a request to the server means for the files that were handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The reply hands over a file; `fuse_open_out` is at this offset of its payload.
    Opens(usize),
    /// This file is done with.
    Closes(u64),
    /// All files are done with.
    ClosesAll,
}

/// Copies what matters of the request in `chain`: the header and, unless its data stays in guest
/// memory, all of it to the start of `message`. An error is the error number of the reply.
///
/// `None` if there is not even a header, so that nobody can be answered.
pub(super) fn parse(
    chain: &Chain,
    memory: &GuestMemoryMmap,
    message: &mut [u8; MESSAGE_MAX],
) -> Option<(InHeader, Result<Work, i32>)> {
    let header: InHeader = chain.read_object(memory, 0).ok()?;
    let work = if header.len as usize == chain.readable_len() {
        work(&header, chain, memory, message)
    } else {
        Err(libc::EINVAL)
    };
    Some((header, work))
}

fn work(
    header: &InHeader,
    chain: &Chain,
    memory: &GuestMemoryMmap,
    message: &mut [u8; MESSAGE_MAX],
) -> Result<Work, i32> {
    const BODY: usize = size_of::<InHeader>();
    match header.opcode {
        opcode::READ | opcode::WRITE => {
            let transfer = chain.read_object(memory, BODY).map_err(|_| libc::EINVAL)?;
            return Ok(if header.opcode == opcode::READ {
                Work::Read(transfer)
            } else {
                Work::Write(transfer)
            });
        }
        opcode::INTERRUPT | opcode::NOTIFY_REPLY => return Ok(Work::Ignore),
        // The server has none, but guests ask at each open whether a file is a terminal.
        opcode::IOCTL => return Err(libc::ENOSYS),
        _ => {}
    }
    let len = chain.readable_len();
    let message = message.get_mut(..len).ok_or(libc::EMSGSIZE)?;
    chain.read(memory, 0, message).map_err(|_| libc::EFAULT)?;
    // The guest may have changed it meanwhile.
    message[..BODY].copy_from_slice(header.as_bytes());
    let body = &message[BODY..];
    let effect = match header.opcode {
        opcode::FORGET | opcode::BATCH_FORGET => return Ok(Work::Tell),
        opcode::LSEEK => return object(body).map(Work::Seek),
        opcode::OPEN => Effect::Opens(0),
        opcode::CREATE | opcode::TMPFILE => Effect::Opens(super::wire::ENTRY_OUT_BYTES),
        opcode::RELEASE => Effect::Closes(object::<ReleaseIn>(body)?.fh),
        opcode::INIT | opcode::DESTROY => Effect::ClosesAll,
        _ => Effect::None,
    };
    Ok(Work::Ask(effect))
}

fn object<T: FromBytes>(body: &[u8]) -> Result<T, i32> {
    T::read_from_prefix(body).map(|(object, _)| object).map_err(|_| libc::EINVAL)
}
