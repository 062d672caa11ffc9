//! The reserved names of whiteouts (OCI image specification, "Whiteouts"). Input: paths of an
//! untrusted layer.

use super::path::MemberPath;

/// Reserved prefix of whiteouts.
const WHITEOUT: &[u8] = b".wh.";
/// Marks its directory as opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of AUFS's own files, which mean nothing outside it.
const AUFS: &[u8] = b".wh..wh.";

/// What a member with a reserved name means.
pub enum Mark {
    /// Its directory hides everything below.
    Opaque,
    /// It hides this path.
    Hides(MemberPath),
    /// AUFS's own.
    Ignored,
    /// Nothing that can be done.
    Invalid,
}

/// Recognises reserved names; `None` for an ordinary member.
pub fn reserved(path: &MemberPath) -> Option<Mark> {
    let bytes = path.as_bytes();
    let mut directories = bytes.split(|&b| b == b'/');
    let name = directories.next_back().unwrap_or_default();
    if name == OPAQUE {
        return Some(Mark::Opaque);
    }
    if name.starts_with(AUFS) || directories.any(|directory| directory.starts_with(AUFS)) {
        return Some(Mark::Ignored);
    }
    let hidden = name.strip_prefix(WHITEOUT)?;
    // `.wh..` and `.wh...` would hide the directory itself or the one above it.
    if matches!(hidden, b"" | b"." | b"..") {
        return Some(Mark::Invalid);
    }
    let parent = &bytes[..bytes.len() - name.len()];
    let hidden = MemberPath::parse(&[parent, hidden].concat());
    Some(hidden.map_or(Mark::Invalid, Mark::Hides))
}
