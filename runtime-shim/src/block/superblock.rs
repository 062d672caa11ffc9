//! Which file system an image holds: magic number and size, from one bounded read.
//!
//! Sources: fs/erofs/erofs_fs.h, fs/ext4/ext4.h, fs/squashfs/squashfs_fs.h of Linux.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::plan::FileSystem;

/// Bytes from the start that hold every superblock looked at.
const HEAD_BYTES: usize = 4096;
/// Offset of the superblocks of EROFS and ext4.
const SUPER_OFFSET: usize = 1024;

/// What an image says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    pub kind: FileSystem,
    /// Bytes of the file system, as it says.
    pub bytes: u64,
}

/// The superblock of `file`, or the name of another thing that it holds, or nothing.
pub(super) fn read(file: &File) -> io::Result<Result<Superblock, Option<&'static str>>> {
    let mut head = [0; HEAD_BYTES];
    let mut length = 0;
    while length < HEAD_BYTES {
        match file.read_at(&mut head[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(parse(&head))
}

fn parse(head: &[u8; HEAD_BYTES]) -> Result<Superblock, Option<&'static str>> {
    let word = |at: usize| u32::from_le_bytes(bytes(head, at));
    let long = |at: usize| u64::from_le_bytes(bytes(head, at));
    let superblock = |kind, bytes| Ok(Superblock { kind, bytes });
    if word(SUPER_OFFSET) == 0xe0f5_e1e2 {
        // blkszbits and blocks; a shift beyond any block size is not believed.
        let shift = u32::from(head[SUPER_OFFSET + 12]).min(16);
        let blocks = u64::from(word(SUPER_OFFSET + 36));
        return superblock(FileSystem::Erofs, blocks << shift);
    }
    if u16::from_le_bytes(bytes(head, SUPER_OFFSET + 56)) == 0xef53 {
        // s_log_block_size, s_blocks_count_lo and, with INCOMPAT_64BIT, s_blocks_count_hi.
        let shift = 10 + word(SUPER_OFFSET + 24).min(6);
        let wide = word(SUPER_OFFSET + 96) & 0x80 != 0;
        let high = if wide { u64::from(word(SUPER_OFFSET + 336)) } else { 0 };
        let blocks = high << 32 | u64::from(word(SUPER_OFFSET + 4));
        return superblock(FileSystem::Ext4, blocks.saturating_mul(1 << shift));
    }
    if &head[..4] == b"hsqs" {
        return superblock(FileSystem::Squashfs, long(40));
    }
    let others: [(&[u8], usize, &str); 4] = [
        (b"XFSB", 0, "xfs"),
        (b"QFI\xfb", 0, "a qcow2 image"),
        (b"\x55\xaa", 510, "a partition table"),
        (b"\x1f\x8b", 0, "a gzip archive"),
    ];
    let found = others.iter().find(|(magic, at, _)| head[*at..].starts_with(magic));
    Err(found.map(|(.., name)| *name))
}

fn bytes<const N: usize>(head: &[u8; HEAD_BYTES], at: usize) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&head[at..at + N]);
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(parts: &[(usize, &[u8])]) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        for (at, bytes) in parts {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn each_file_system_is_told_by_its_magic() {
        let erofs = head(&[(1024, &[0xe2, 0xe1, 0xf5, 0xe0]), (1036, &[12]), (1060, &[5])]);
        let ext4 = head(&[(1080, &[0x53, 0xef]), (1048, &[2]), (1028, &[8]), (1120, &[0x80])]);
        let squashfs = head(&[(0, b"hsqs"), (40, &[0, 2])]);
        for (head, kind, bytes) in [
            (erofs, FileSystem::Erofs, 5 * 4096),
            (ext4, FileSystem::Ext4, 8 * 4096),
            (squashfs, FileSystem::Squashfs, 512),
        ] {
            assert_eq!(parse(&head), Ok(Superblock { kind, bytes }));
            assert_eq!(FileSystem::parse(&kind.to_string()), Some(kind));
        }
    }

    #[test]
    fn other_things_are_named() {
        assert_eq!(parse(&head(&[(0, b"XFSB")])), Err(Some("xfs")));
        assert_eq!(parse(&head(&[(510, &[0x55, 0xaa])])), Err(Some("a partition table")));
        assert_eq!(parse(&head(&[])), Err(None));
    }

    #[test]
    fn short_file_is_read_as_zeroes() {
        let file = tempfile::tempfile().unwrap();
        file.write_at(b"hsqs", 0).unwrap();
        let seen = read(&file).unwrap();
        assert_eq!(seen, Ok(Superblock { kind: FileSystem::Squashfs, bytes: 0 }));
    }

    proptest! {
        #[test]
        fn any_head_is_answered(
            magic in 0usize..3,
            noise in prop::collection::vec((0..HEAD_BYTES, any::<u8>()), 0..64),
        ) {
            let mut head = match magic {
                0 => head(&[(1024, &[0xe2, 0xe1, 0xf5, 0xe0])]),
                1 => head(&[(1080, &[0x53, 0xef])]),
                _ => head(&[(0, b"hsqs")]),
            };
            for (at, byte) in noise {
                head[at] = byte;
            }
            let _ = parse(&head);
        }
    }
}
