//! Redirection of everything that arrives at one interface to another (tc-mirred(8)): an ingress
//! queueing discipline, a filter that matches all, and a redirecting action.
//!
//! What arrives never reaches the host's own stack, so nothing of the host answers for the guest,
//! and the interface keeps its addresses. The action carries the supervisor that made it, so that
//! what a killed one has left is told from what a living one uses.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use rustix::io::Errno;

use super::attributes::{attribute, attributes, u32_at};
use super::netlink::{Netlink, Packet};
use crate::process::ProcessId;

/// Ours is the first filter that is asked.
const PREFERENCE: u32 = 1;
/// `ETH_P_ALL`, in network order as `tcm_info` wants it.
const EVERY_PROTOCOL: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;
/// Handles of filters that are asked before it: the kernel gives itself higher ones.
pub(super) const BEFORE: [u32; 3] = [0x8000_0001, 0x8000_0002, 0x8000_0003];
/// Where filters of arriving packets hang, of a discipline `ingress` as well as `clsact`.
const ARRIVING: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };
/// Attribute numbers of `linux/pkt_cls.h` that the netlink crate keeps to itself.
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_COOKIE: u16 = 6;
/// The discipline that holds filters of arriving packets.
const INGRESS: &str = "ingress";
/// Ends a cookie of ours.
const MARK: [u8; 3] = *b"bhk";

/// A filter of some sandbox at an interface.
struct Found {
    handle: u32,
    owner: ProcessId,
    /// The queueing discipline came with it.
    discipline: bool,
}

/// Why there is no redirection.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A living supervisor of this pid has one there.
    Taken(u32),
    /// The kernel refuses.
    Kernel(Errno),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

/// Sends everything that arrives at the interface `from` out through `to`. What a supervisor has
/// left that is no more is replaced.
pub(super) fn redirect(
    netlink: &mut Netlink,
    from: u32,
    to: u32,
    owner: ProcessId,
) -> Result<(), Refusal> {
    for found in filters(netlink, from)? {
        match found.owner.open() {
            Ok(None) => drop_filter(netlink, from, &found)?,
            _ => return Err(Refusal::Taken(found.owner.pid)),
        }
    }
    let discipline = !has_discipline(netlink, from)?;
    let cookie = cookie(owner, discipline);
    let (queueing, filter) = (ingress(from), filter(from, to, cookie));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let new_filter = Packet { kind: libc::RTM_NEWTFILTER, flags, message: &filter };
    if !discipline {
        return Ok(netlink.execute_all(&[new_filter])?.into_iter().collect::<Result<_, _>>()?);
    }
    // Together: whoever is killed in between leaves both, or nothing.
    let new_discipline = Packet { kind: libc::RTM_NEWQDISC, flags, message: &queueing };
    match netlink.execute_all(&[new_discipline, new_filter])?[..] {
        [Ok(()), Ok(())] => Ok(()),
        [Ok(()), Err(e)] => {
            // The first error is the one to tell.
            let _ = netlink.execute(libc::RTM_DELQDISC, 0, &queueing);
            Err(e.into())
        }
        [Err(e), ..] => Err(e.into()),
        _ => Err(Errno::IO.into()),
    }
}

/// Removes what `owner` has put at the interface `from`.
pub(super) fn remove(netlink: &mut Netlink, from: u32, owner: ProcessId) -> Result<(), Errno> {
    let found = filters(netlink, from)?;
    found.iter().filter(|f| f.owner == owner).try_for_each(|f| drop_filter(netlink, from, f))
}

fn drop_filter(netlink: &mut Netlink, from: u32, found: &Found) -> Result<(), Errno> {
    if found.discipline {
        return netlink.execute(libc::RTM_DELQDISC, 0, &ingress(from));
    }
    for handle in BEFORE {
        match netlink.execute(libc::RTM_DELTFILTER, 0, &filter_message(from, handle)) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    netlink.execute(libc::RTM_DELTFILTER, 0, &filter_message(from, found.handle))
}

fn ingress(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index as i32);
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes.push(TcAttribute::Kind(INGRESS.to_owned()));
    message
}

fn filter(from: u32, to: u32, cookie: [u8; 16]) -> TcMessage {
    // No bit of the packet's first word has to have a value.
    let keys = vec![TcU32Key::default()];
    let mut action = mirred(to, TcMirrorActionType::EgressRedir, TcActionType::Stolen);
    action.attributes.push(TcActionAttribute::Cookie(cookie.to_vec()));
    u32_filter(from, 0, keys, Some(action))
}

/// A filter of packets that arrive at `from` and have all `keys`. They go on their way if there is
/// no action.
pub(super) fn u32_filter(
    from: u32,
    handle: u32,
    keys: Vec<TcU32Key>,
    action: Option<TcAction>,
) -> TcMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    (selector.nkeys, selector.keys) = (keys.len() as u8, keys);
    let mut options = vec![TcOption::U32(TcFilterU32Option::Selector(selector))];
    options.extend(action.map(|action| TcOption::U32(TcFilterU32Option::Action(vec![action]))));
    let mut message = filter_message(from, handle);
    message.attributes.push(TcAttribute::Options(options));
    message
}

/// Sends a packet, or a copy of it, out through `to`; what becomes of it `then`.
pub(super) fn mirred(to: u32, how: TcMirrorActionType, then: TcActionType) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = then;
    (mirror.eaction, mirror.ifindex) = (how, to);
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    action
}

/// Names a filter, or all that is common to those that are made.
fn filter_message(from: u32, handle: u32) -> TcMessage {
    let mut message = TcMessage::with_index(from as i32);
    message.header.parent = ARRIVING;
    message.header.handle = handle.into();
    message.header.info = PREFERENCE << 16 | EVERY_PROTOCOL;
    message.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    message
}

/// Whether the interface has a queueing discipline for what arrives.
fn has_discipline(netlink: &mut Netlink, index: u32) -> Result<bool, Errno> {
    let answers = netlink.dump(libc::RTM_GETQDISC, &TcMessage::with_index(index as i32))?;
    // struct tcmsg: family and padding, then index, handle, parent.
    Ok(answers.iter().any(|payload| {
        u32_at(payload, 4) == Some(index) && u32_at(payload, 12) == Some(TcHandle::INGRESS.into())
    }))
}

/// The sandboxes' filters at an interface.
fn filters(netlink: &mut Netlink, index: u32) -> Result<Vec<Found>, Errno> {
    let mut message = TcMessage::with_index(index as i32);
    message.header.parent = ARRIVING;
    match netlink.dump(libc::RTM_GETTFILTER, &message) {
        Ok(answers) => Ok(answers.iter().filter_map(|payload| found(payload)).collect()),
        // No discipline, no filters.
        Err(Errno::INVAL) => Ok(vec![]),
        Err(e) => Err(e),
    }
}

fn found(payload: &[u8]) -> Option<Found> {
    let handle = u32_at(payload, 8)?;
    let options = attribute(payload.get(20..)?, libc::TCA_OPTIONS)?;
    let actions = attribute(options, TCA_U32_ACT)?;
    let (_, action) = attributes(actions).next()?;
    let cookie = attribute(action, TCA_ACT_COOKIE)?;
    let (owner, discipline) = read_cookie(cookie)?;
    Some(Found { handle, owner, discipline })
}

/// 16 bytes that the kernel keeps with an action: pid, start time, whether the discipline is
/// ours, mark.
fn cookie(owner: ProcessId, discipline: bool) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&owner.pid.to_ne_bytes());
    bytes[4..12].copy_from_slice(&owner.started.to_ne_bytes());
    bytes[12] = discipline.into();
    bytes[13..].copy_from_slice(&MARK);
    bytes
}

fn read_cookie(bytes: &[u8]) -> Option<(ProcessId, bool)> {
    let bytes: &[u8; 16] = bytes.try_into().ok()?;
    let pid = u32::from_ne_bytes(*bytes.first_chunk()?);
    let started = u64::from_ne_bytes(*bytes[4..].first_chunk()?);
    (bytes[13..] == MARK).then_some((ProcessId { pid, started }, bytes[12] != 0))
}
