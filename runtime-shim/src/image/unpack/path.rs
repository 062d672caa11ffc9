//! Paths of archive members as plain components. Input: untrusted bytes.

use std::ffi::CString;

/// A path below the root of a tree: components joined by single slashes, none of them empty,
/// `.` or `..`. The root itself has no component.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MemberPath {
    joined: Vec<u8>,
}

/// The path climbs with `..`, or holds a NUL.
#[derive(Debug, PartialEq, Eq)]
pub struct NotBelow;

impl MemberPath {
    /// Takes `path` as relative to the root whether or not it starts with a slash. A `..` is
    /// refused even where it would stay inside: no image writer makes one, and what it means
    /// depends on symbolic links.
    pub fn parse(path: &[u8]) -> Result<Self, NotBelow> {
        let mut joined = Vec::with_capacity(path.len());
        for component in path.split(|&b| b == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(NotBelow),
                _ if component.contains(&0) => return Err(NotBelow),
                _ => {}
            }
            if !joined.is_empty() {
                joined.push(b'/');
            }
            joined.extend_from_slice(component);
        }
        Ok(Self { joined })
    }

    /// All of it; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.joined
    }

    /// The directory part, empty for the root, and the last component; `None` for the root.
    pub fn split(&self) -> Option<(&[u8], CString)> {
        let (parent, name) = match self.joined.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&self.joined[..slash], &self.joined[slash + 1..]),
            None => (&b""[..], &self.joined[..]),
        };
        let name = CString::new(name).expect("a parsed path has no NUL");
        (!name.is_empty()).then_some((parent, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Result<String, NotBelow> {
        MemberPath::parse(path.as_bytes()).map(|p| String::from_utf8(p.joined).unwrap())
    }

    #[test]
    fn path_is_reduced_to_its_components() {
        for (path, expected) in [("/a//b/./c/", "a/b/c"), ("./", ""), ("/", ""), ("a...", "a...")] {
            assert_eq!(parse(path), Ok(expected.to_owned()), "{path}");
        }
    }

    #[test]
    fn path_that_climbs_is_refused() {
        for path in ["..", "../a", "a/..", "a/../b", "/..", "a\0b", "./.."] {
            assert_eq!(parse(path), Err(NotBelow), "{path:?}");
        }
    }

    #[test]
    fn path_splits_at_its_last_component() {
        let path = MemberPath::parse(b"a/b/c").unwrap();
        assert_eq!(path.split(), Some((&b"a/b"[..], c"c".to_owned())));
        assert_eq!(MemberPath::parse(b"/").unwrap().split(), None);
    }
}
