//! Listings, small and large.

use std::collections::BTreeMap;

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::client::*;
use crate::abi::*;
use crate::server::Limits;

/// Lists a directory by requests of `size` bytes: names with their node ids (0 in a plain
/// listing) and types.
fn list(client: &mut Client, node: u64, size: u32, plus: bool) -> BTreeMap<String, (u64, u32)> {
    let fh = client.opendir(node).unwrap();
    let mut offset = 0;
    let mut names = BTreeMap::new();
    loop {
        let wanted = ReadIn { fh, offset, size, ..ReadIn::default() };
        let opcode = if plus { opcode::READDIRPLUS } else { opcode::READDIR };
        let listed = client.call(opcode, node, &[wanted.as_bytes()]).unwrap();
        assert!(listed.payload.len() <= size as usize);
        let mut rest = &listed.payload[..];
        if rest.is_empty() {
            break;
        }
        while !rest.is_empty() {
            let mut nodeid = 0;
            if plus {
                let (entry, after) = EntryOut::read_from_prefix(rest).unwrap();
                (nodeid, rest) = (entry.nodeid, after);
            }
            let (dirent, after) = Dirent::read_from_prefix(rest).unwrap();
            let len = dirent.namelen as usize;
            let name = String::from_utf8(after[..len].to_vec()).unwrap();
            rest = &after[(24 + len).next_multiple_of(8) - 24..];
            offset = dirent.off;
            assert!(names.insert(name.clone(), (nodeid, dirent.kind)).is_none(), "{name} twice");
        }
    }
    let release = ReleaseIn { fh, ..ReleaseIn::default() };
    client.call(opcode::RELEASEDIR, node, &[release.as_bytes()]).unwrap();
    names
}

#[test]
fn ten_thousand_entries_are_listed_once_each() {
    let mut client = Client::new();
    for index in 0..10_000 {
        std::fs::write(client.host(&format!("entry-{index}")), "").unwrap();
    }
    let root = client.root();
    for (size, plus) in [(4096, false), (1 << 20, false), (4096, true)] {
        let names = list(&mut client, root, size, plus);
        assert_eq!(names.len(), 10_002);
        assert!(names.contains_key("entry-9999") && names.contains_key(".."));
        assert!(names.iter().all(|(name, (_, kind))| name.starts_with('.') || *kind == 8));
    }
}

#[test]
fn listing_with_attributes_spares_inodes_when_they_are_scarce() {
    let mut client = Client::with(false, Limits { inodes: 20, handles: 8 });
    for index in 0..100 {
        std::fs::write(client.host(&format!("{index}")), "").unwrap();
    }
    let root = client.root();
    let names = list(&mut client, root, 4096, true);
    assert_eq!(names.len(), 102);
    let known = names.values().filter(|(nodeid, _)| *nodeid != 0).count();
    assert!((5..=11).contains(&known), "{known}");
    // Beyond the limit, lookups fail and nothing else does.
    let outcomes: Vec<_> = (0..100).map(|i| client.lookup(root, &i.to_string())).collect();
    let refused = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert_eq!(refused, 100 - 19);
    assert!(outcomes.iter().all(|o| o.as_ref().err().is_none_or(|e| *e == Errno::NFILE)));
    assert_eq!(client.server.inodes().count(), 20);
    assert!(client.getattr(root).is_ok());
    let opened: Vec<_> = (0..9).map(|_| client.opendir(root)).collect();
    assert_eq!(opened[8], Err(Errno::NFILE));
}

#[test]
fn shares_are_listed_as_the_root_directory() {
    let mut client = Client::new();
    for plus in [false, true] {
        let names = list(&mut client, ROOT_ID, 4096, plus);
        let kinds: Vec<_> = names.iter().map(|(name, (_, kind))| (name.as_str(), *kind)).collect();
        assert_eq!(kinds, [(".", 4), ("..", 4), ("file", 8), ("root", 4)]);
        assert_eq!(names["root"].0 != 0, plus);
        let small = list(&mut client, ROOT_ID, 160, plus);
        assert_eq!(small.len(), 4);
    }
}

#[test]
fn hostile_offsets_and_sizes_are_answered() {
    let mut client = Client::new();
    let root = client.root();
    let fh = client.opendir(root).unwrap();
    for (offset, size) in [(u64::MAX, 4096), (0, 0), (0, 31), (i64::MAX as u64, u32::MAX)] {
        let wanted = ReadIn { fh, offset, size, ..ReadIn::default() };
        let _ = client.call(opcode::READDIR, root, &[wanted.as_bytes()]);
    }
    let wanted = ReadIn { fh, size: 4096, ..ReadIn::default() };
    let listed = client.call(opcode::READDIR, root, &[wanted.as_bytes()]).unwrap();
    assert!(!listed.payload.is_empty());
}
