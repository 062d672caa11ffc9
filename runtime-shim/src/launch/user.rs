//! `-u` and the image's `User`: names and numbers resolved by the image's own account files,
//! with Docker's rules. The files are hostile: they are lists of numbers to the container's
//! kernel, and nothing of the host is looked up by them.

use std::str::from_utf8;

use thiserror::Error;

/// Largest user or group id, Docker's limit.
const ID_MAX: u32 = i32::MAX as u32;
/// Most additional groups (Linux `NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// Whom the process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Additional groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Why a user is none; Docker's words.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UserError {
    /// A name that the image does not know.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// A name that the image does not know.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// A number that the kernel does not take.
    #[error("uids and gids must be in range 0-{ID_MAX}, not {0}")]
    Range(String),
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `user`, which is empty or `USER[:GROUP]`, each a name or a number.
pub fn resolve(user: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, UserError> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, group),
        None => (user, ""),
    };
    let uid = number(user)?;
    // A number is always an id, also if a user has it as name.
    let entry = lines(passwd).filter_map(passwd_entry).find(|entry| match (user, uid) {
        ("", _) => entry.uid == 0,
        (_, Some(uid)) => entry.uid == uid,
        (name, None) => entry.name == name,
    });
    let (uid, gid, home, name) = match (&entry, user, uid) {
        (Some(entry), ..) => (entry.uid, entry.gid, entry.home, Some(entry.name)),
        (None, "", _) => (0, 0, "/", None),
        (None, _, Some(uid)) => (uid, 0, "/", None),
        (None, name, None) => return Err(UserError::NoUser(name.to_owned())),
    };
    let (gid, groups) = match wanted_group {
        "" => (gid, groups_of(name, group)),
        wanted => (group_id(wanted, group)?, Vec::new()),
    };
    let home = if home.starts_with('/') { home } else { "/" };
    Ok(Identity { uid, gid, groups: with_primary(gid, groups), home: home.to_owned() })
}

/// The additional groups of a user; Docker takes them only where no group is asked for.
fn groups_of(name: Option<&str>, group: &[u8]) -> Vec<u32> {
    let Some(name) = name else { return Vec::new() };
    let is_member = |group: &Group| group.members.split(',').any(|member| member == name);
    let groups = lines(group).filter_map(group_entry).filter(is_member);
    groups.map(|group| group.gid).take(GROUPS_MAX - 1).collect()
}

/// The primary group is one of the additional ones: without it a file that its members may not
/// read could be read by leaving it (CVE-2022-36109).
fn with_primary(gid: u32, mut groups: Vec<u32>) -> Vec<u32> {
    groups.retain(|group| *group != gid);
    groups.insert(0, gid);
    groups
}

fn group_id(wanted: &str, group: &[u8]) -> Result<u32, UserError> {
    match number(wanted)? {
        Some(gid) => Ok(gid),
        None => lines(group)
            .filter_map(group_entry)
            .find(|entry| entry.name == wanted)
            .map(|entry| entry.gid)
            .ok_or_else(|| UserError::NoGroup(wanted.to_owned())),
    }
}

/// An id if `text` is a number; one out of range is an error.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    id(text).map(Some).ok_or_else(|| UserError::Range(text.to_owned()))
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= ID_MAX)
}

/// Lines that are text and no comments. A line with other bytes is skipped as a whole.
fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    let text = file.split(|&b| b == b'\n').filter_map(|line| from_utf8(line).ok());
    text.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn passwd_entry(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
    let (_comment, home) = (fields.next(), fields.next().unwrap_or("/"));
    Some(Passwd { name, uid, gid, home })
}

fn group_entry(line: &str) -> Option<Group<'_>> {
    let mut fields = line.split(':');
    let (name, _password, gid) = (fields.next()?, fields.next()?, id(fields.next()?)?);
    Some(Group { name, gid, members: fields.next().unwrap_or("") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"# comment\nroot:x:0:0:root:/root:/bin/sh\n\
        web:x:33:33::/srv/web:/bin/sh\nbad:x:y:z\nworse\n1000:x:7:7::/seven:\n\xff:x:1:1::/:\n\
        huge:x:4294967295:0::/:\nrel:x:5:5::tmp:\n";
    const GROUP: &[u8] = b"root:x:0:\nweb:x:33:\nlog:x:4:other,web\nssl:x:110:web\n4:x:99:\n";

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<Identity, UserError> {
        Ok(Identity { uid, gid, groups: groups.to_vec(), home: home.to_owned() })
    }

    #[test]
    fn users_are_resolved_as_docker_does() {
        let cases = [
            ("", identity(0, 0, &[0], "/root")),
            ("root", identity(0, 0, &[0], "/root")),
            ("web", identity(33, 33, &[33, 4, 110], "/srv/web")),
            ("33", identity(33, 33, &[33, 4, 110], "/srv/web")),
            ("web:root", identity(33, 0, &[0], "/srv/web")),
            ("web:4", identity(33, 4, &[4], "/srv/web")),
            ("1000", identity(1000, 0, &[0], "/")),
            ("1000:50", identity(1000, 50, &[50], "/")),
            ("web:", identity(33, 33, &[33, 4, 110], "/srv/web")),
            (":4", identity(0, 4, &[4], "/root")),
            ("rel", identity(5, 5, &[5], "/")),
            ("nobody", Err(UserError::NoUser("nobody".into()))),
            ("bad", Err(UserError::NoUser("bad".into()))),
            ("huge", Err(UserError::NoUser("huge".into()))),
            ("web:nogroup", Err(UserError::NoGroup("nogroup".into()))),
            ("2147483648", Err(UserError::Range("2147483648".into()))),
            ("0:99999999999", Err(UserError::Range("99999999999".into()))),
            ("-1", Err(UserError::NoUser("-1".into()))),
        ];
        for (user, expected) in cases {
            assert_eq!(resolve(user, PASSWD, GROUP), expected, "{user:?}");
        }
    }

    #[test]
    fn image_without_account_files_has_numbers_only() {
        assert_eq!(resolve("", b"", b""), identity(0, 0, &[0], "/"));
        assert_eq!(resolve("5:6", b"", b""), identity(5, 6, &[6], "/"));
        assert_eq!(resolve("root", b"", b""), Err(UserError::NoUser("root".into())));
    }

    proptest! {
        #[test]
        fn arbitrary_account_files_give_an_identity_in_range_or_an_error(
            user in "[a-z0-9:]{0,6}",
            passwd in proptest::collection::vec(any::<u8>(), 0..256),
            group in "([a-z0-9]{1,3}:x:[0-9]{1,12}:[a-z0-9,]{0,8}\n){0,8}",
        ) {
            if let Ok(identity) = resolve(&user, &passwd, group.as_bytes()) {
                prop_assert!(identity.uid <= ID_MAX && identity.gid <= ID_MAX);
                prop_assert_eq!(identity.groups[0], identity.gid);
            }
        }
    }
}
