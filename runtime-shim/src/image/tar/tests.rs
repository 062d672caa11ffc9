use std::io;

use proptest::prelude::*;
use tar::EntryType;

use super::*;
use crate::image::testing::TarStream;

/// A stream of bytes in memory.
pub struct Bytes<'a>(pub &'a [u8]);

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl SkipRead for Bytes<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        skip_by_reading(self, bytes)
    }
}

fn read_all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(Bytes(bytes));
    let mut members = Vec::new();
    while let Some(member) = reader.next_member()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data).map_err(TarError::Read)?;
        members.push((member, data));
    }
    Ok(members)
}

fn only(bytes: &[u8]) -> (Member, Vec<u8>) {
    let mut members = read_all(bytes).unwrap();
    assert_eq!(members.len(), 1);
    members.remove(0)
}

#[test]
fn members_of_every_kind_are_read() {
    let mut device = TarStream::header(EntryType::Char, b"dev", b"", 0);
    device.set_device_major(5).unwrap();
    device.set_device_minor(1).unwrap();
    let tar = TarStream::new()
        .dir("d/")
        .file("d/f", &[7; 600])
        .symlink("s", "d/f")
        .hard_link("h", "d/f")
        .add(device, b"")
        .entry(EntryType::Fifo, "p", "", b"")
        .finish();
    let members = read_all(&tar).unwrap();
    let kinds: Vec<Kind> = members.iter().map(|(member, _)| member.kind).collect();
    let expected = [
        Kind::Directory,
        Kind::Regular,
        Kind::Symlink,
        Kind::HardLink,
        Kind::CharDevice,
        Kind::Fifo,
    ];
    assert_eq!(kinds, expected);
    assert_eq!(members[1].1, [7; 600]);
    assert_eq!(members[2].0.link, b"d/f");
    assert_eq!(members[4].0.device, (5, 1));
    assert_eq!(members[1].0.mtime, Time { secs: 1_000_000_000, nanos: 0 });
}

#[test]
fn pax_records_override_the_header() {
    let long = "x/".repeat(300) + "end";
    let tar = TarStream::new()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"70000000"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.a", b"line\nline\0"),
            ("comment", b"ignored"),
        ])
        .file("short", b"abc")
        .finish();
    let (member, data) = only(&tar);
    assert_eq!(member.path, long.as_bytes());
    assert_eq!((member.uid, member.gid), (70_000_000, 0));
    assert_eq!(member.mtime, Time { secs: -2, nanos: 750_000_000 });
    assert_eq!(member.xattrs, [(b"user.a".to_vec(), b"line\nline\0".to_vec())]);
    assert_eq!(data, b"abc");
}

#[test]
fn gnu_long_names_are_read() {
    let mut builder = tar::Builder::new(Vec::new());
    let path = "a/".repeat(120) + "f";
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_entry_type(EntryType::Symlink);
    header.set_mode(0o777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_link(&mut header, &path, "b/".repeat(120)).unwrap();
    let (member, _) = only(&builder.into_inner().unwrap());
    assert_eq!(member.path, path.as_bytes());
    assert_eq!(member.link, "b/".repeat(120).as_bytes());
}

#[test]
fn ustar_prefix_is_joined() {
    let mut header = TarStream::header(EntryType::Regular, b"name", b"", 0);
    header.as_ustar_mut().unwrap().prefix[..3].copy_from_slice(b"a/b");
    let (member, _) = only(&TarStream::new().add(header, b"").finish());
    assert_eq!(member.path, b"a/b/name");
}

#[test]
fn large_numbers_in_base_256_are_read() {
    assert_eq!(header::number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
    assert_eq!(header::number(&[0xff; 8]), Some(-1));
    assert_eq!(header::number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    assert_eq!(header::number(b"0000644\0"), Some(0o644));
    assert_eq!(header::number(b"  644 \0\0"), Some(0o644));
    assert_eq!(header::number(b"\0\0\0\0"), Some(0));
    assert_eq!(header::number(b"64x\0"), None);
}

#[test]
fn header_with_wrong_checksum_is_refused() {
    let mut tar = TarStream::new().file("f", b"x").finish();
    tar[0] ^= 1;
    assert!(matches!(read_all(&tar), Err(TarError::Checksum(0))));
}

#[test]
fn archive_that_ends_inside_a_member_is_refused() {
    let tar = TarStream::new().file("f", &[1; 2000]).finish();
    for end in [1, 511, 513, 1500, 2400] {
        assert!(matches!(read_all(&tar[..end]), Err(TarError::Read(_))), "{end}");
    }
    assert_eq!(read_all(&tar[..512 + 2048]).unwrap().len(), 1);
}

#[test]
fn archive_without_filling_of_its_last_block_is_read() {
    let tar = TarStream::new().file("f", &[1; 2000]).finish();
    for end in [512 + 2000, 512 + 2001, 512 + 2047] {
        assert_eq!(read_all(&tar[..end]).unwrap().len(), 1, "{end}");
    }
}

#[test]
fn archive_that_goes_on_after_one_block_of_zeros_is_refused() {
    let one = TarStream::new().file("f", b"").finish();
    let mut tar = one[..512].to_vec();
    tar.extend_from_slice(&[0; 512]);
    tar.extend_from_slice(&one[..512]);
    assert!(matches!(read_all(&tar), Err(TarError::End(_))));
}

#[test]
fn huge_extension_header_is_refused_before_it_is_read() {
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
        let header = TarStream::header(kind, b"x", b"", 1 << 33);
        assert!(matches!(
            read_all(header.as_bytes()),
            Err(TarError::ExtensionSize { at: 0, size }) if size == 1 << 33
        ));
    }
}

#[test]
fn malformed_pax_header_is_refused() {
    let bad: [&[u8]; 6] = [b"5 a=b\n", b"99 a=b\n", b"x a=b\n", b"6 a=bX", b"6 =b\n\n", b"5 abc\n"];
    for record in bad {
        let tar = TarStream::new();
        let header = TarStream::header(EntryType::XHeader, b"x", b"", record.len() as u64);
        let tar = tar.add(header, record).file("f", b"").finish();
        assert!(matches!(read_all(&tar), Err(TarError::Pax(0))), "{record:?}");
    }
}

#[test]
fn extension_header_without_a_member_is_refused() {
    let tar = TarStream::new().pax(&[("path", b"x")]).finish();
    assert!(matches!(read_all(&tar), Err(TarError::Extension(_))));
    let tar = TarStream::new().pax(&[("path", b"x")]).pax(&[("path", b"y")]).file("f", b"");
    assert!(matches!(read_all(&tar.finish()), Err(TarError::Extension(_))));
}

#[test]
fn names_with_nul_or_beyond_path_max_are_refused() {
    let long = vec![b'a'; 4096];
    for path in [&b"a\0b"[..], &long] {
        let tar = TarStream::new().pax(&[("path", path)]).file("f", b"").finish();
        assert!(matches!(read_all(&tar), Err(TarError::Name(_))));
    }
    assert!(matches!(read_all(&TarStream::new().file("", b"").finish()), Err(TarError::Name(_))));
    assert!(matches!(
        read_all(&TarStream::new().symlink("s", "").finish()),
        Err(TarError::Name(_))
    ));
}

#[test]
fn owner_that_means_unchanged_is_refused() {
    let tar = TarStream::new().pax(&[("uid", b"4294967295")]).file("f", b"").finish();
    assert!(matches!(read_all(&tar), Err(TarError::Number { field: "uid", .. })));
}

#[test]
fn size_field_of_a_link_is_not_data() {
    let link = TarStream::header(EntryType::Link, b"h", b"f", 512);
    let mut tar = link.as_bytes().to_vec();
    tar.extend(TarStream::new().file("next", b"").finish());
    assert_eq!(read_all(&tar).unwrap().len(), 2);
}

#[test]
fn unknown_type_is_refused() {
    let header = TarStream::header(EntryType::new(b'M'), b"f", b"", 0);
    let tar = TarStream::new().add(header, b"").finish();
    assert!(matches!(read_all(&tar), Err(TarError::Type { flag: b'M', .. })));
}

#[test]
fn sparse_map_in_pax_records_is_read() {
    let formats: [Vec<(&str, &[u8])>; 2] = [
        vec![
            ("GNU.sparse.size", b"10000"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"8000"),
            ("GNU.sparse.numbytes", b"2"),
        ],
        vec![
            ("GNU.sparse.size", b"10000"),
            ("GNU.sparse.map", b"0,3,8000,2"),
            ("GNU.sparse.name", b"real"),
        ],
    ];
    for records in formats {
        let (member, data) = only(&TarStream::new().pax(&records).file("f", b"abcde").finish());
        let extents = [Extent { offset: 0, length: 3 }, Extent { offset: 8000, length: 2 }];
        assert_eq!(member.extents.as_deref(), Some(&extents[..]));
        assert_eq!((member.size, data.as_slice()), (10_000, &b"abcde"[..]));
    }
}

#[test]
fn sparse_map_in_the_data_is_read() {
    let mut data = b"2\n0\n3\n8000\n2\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"abcde");
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.realsize", b"10000"),
    ];
    let (member, data) = only(&TarStream::new().pax(&records).file("f", &data).finish());
    assert_eq!(member.path, b"real");
    assert_eq!(member.extents.unwrap().len(), 2);
    assert_eq!(data, b"abcde");
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let maps: [&[u8]; 7] = [
        b"8000,2,0,3",             // out of order
        b"0,3,2,2",                // overlapping
        b"0,3",                    // less data than stored
        b"9999,5",                 // beyond the end
        b"18446744073709551615,5", // overflow
        b"0,3,8000",               // half a pair
        b"0,-5",                   // not a number
    ];
    for map in maps {
        let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"10000"), ("GNU.sparse.map", map)];
        let tar = TarStream::new().pax(&records).file("f", b"abcde").finish();
        assert!(matches!(read_all(&tar), Err(TarError::Sparse(_))), "{map:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_end_in_members_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = read_all(&bytes);
    }

    #[test]
    fn damaged_archive_ends_in_members_or_an_error(
        changes in proptest::collection::vec((0_usize..6000, any::<u8>()), 0..8),
    ) {
        let records: [(&str, &[u8]); 3] =
            [("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,3"), ("path", b"p")];
        let mut tar = TarStream::new().dir("d").pax(&records).file("f", b"abc").symlink("s", "t").finish();
        for (at, byte) in changes {
            let at = at % tar.len();
            tar[at] = byte;
        }
        // Right checksums let the damage through to the fields.
        for at in (0..tar.len()).step_by(512) {
            let block = &mut tar[at..at + 512];
            if block[257..262] == *b"ustar" {
                block[148..156].copy_from_slice(b"        ");
                let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let _ = read_all(&tar);
    }

    #[test]
    fn pax_records_of_any_content_come_back(
        value in proptest::collection::vec(any::<u8>(), 1..300),
    ) {
        let tar = TarStream::new().pax(&[("SCHILY.xattr.user.x", &value)]).file("f", b"").finish();
        let (member, _) = only(&tar);
        prop_assert_eq!(member.xattrs, [(b"user.x".to_vec(), value)]);
    }
}
