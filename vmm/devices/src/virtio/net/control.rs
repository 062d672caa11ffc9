//! The control queue (virtio 1.2, section 5.1.6.5).
//!
//! Input: commands of a hostile driver. The one command here chooses how many queue pairs are used;
//! every other is answered with `VIRTIO_NET_ERR`, which a driver takes as "not supported".

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vm_memory::GuestMemoryMmap;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::virtio::chain::Chain;

/// `struct virtio_net_ctrl` of the command, without the answer.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SetPairs {
    class: u8,
    command: u8,
    pairs: U16,
}

/// The number of queue pairs that a command asks for, if it does and is one of `1..=pairs_max`.
pub(super) fn parse(chain: &Chain, memory: &GuestMemoryMmap, pairs_max: usize) -> Option<usize> {
    let command: SetPairs = chain.read_object(memory, 0).ok()?;
    let known = u32::from(command.class) == VIRTIO_NET_CTRL_MQ
        && u32::from(command.command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
    let pairs = usize::from(command.pairs);
    (known && (1..=pairs_max).contains(&pairs)).then_some(pairs)
}

/// Writes the answer; the number of bytes written.
pub(super) fn answer(chain: &Chain, memory: &GuestMemoryMmap, done: bool) -> usize {
    let status = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8;
    // A driver that has left no room for it wants none.
    chain.write(memory, 0, &[status]).map_or(0, |()| 1)
}
