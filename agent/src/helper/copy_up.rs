//! `tmpcopyup`: a tmpfs that starts with what the container's root has in its place, as runc
//! makes it and Podman asks for.
//!
//! libcontainer does not know the option. So the helper makes such a tmpfs before, in a mount
//! namespace of its own that ends with it and of which the container's is a copy, and lets
//! libcontainer bind it.
//!
//! The memory that is filled is the container's: meanwhile the helper is in its cgroup. There the
//! limit does not hold yet, as it would end the helper without a word; so what is copied is counted
//! against it.
//!
//! The root is an image's, which may be hostile, but nothing runs in it yet. All that is resolved
//! in it is resolved with it as the root, and nothing of it is opened but directories and
//! regular files.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io::{self, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use libcontainer::oci_spec::runtime::{Mount, Spec};
use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, Timespec, Timestamps,
        XattrFlags,
    },
    io::Errno,
    mount::MountFlags,
    process::{Gid, Uid},
    thread::UnshareFlags,
};
use thiserror::Error;

use crate::cgroup;

/// The option.
const OPTION: &str = "tmpcopyup";
/// Options of tmpfs itself; all others are those of any mount.
const TMPFS_OPTIONS: [&str; 6] = ["size=", "mode=", "nr_inodes=", "nr_blocks=", "uid=", "gid="];
/// Deepest directory that is copied. Each level holds two descriptors, and the helper has no more
/// than its container.
const DEPTH_MAX: usize = 480;
const _: () = assert!(2 * DEPTH_MAX as u64 + 64 <= super::OPEN_FILES);
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Bytes of a directory's entries that are read at once.
const ENTRIES: usize = 4096;
/// Longest list of extended attributes, and longest value, that Linux has.
const XATTR_MAX: usize = 64 << 10;

/// Why a tmpfs does not start with its content.
#[derive(Debug, Error)]
pub enum CopyUpError {
    /// No mount namespace.
    #[error("tmpcopyup: make a mount namespace: {0}")]
    Namespace(#[source] Errno),
    /// A directory of the agent's.
    #[error("tmpcopyup: make {0}: {1}")]
    Directory(PathBuf, #[source] io::Error),
    /// The tmpfs.
    #[error("tmpcopyup: mount tmpfs for {0}: {1}")]
    Mount(PathBuf, #[source] Errno),
    /// The content.
    #[error("tmpcopyup: copy {0}: {1}")]
    Copy(PathBuf, #[source] Errno),
    /// More levels of it than can be copied.
    #[error("tmpcopyup: copy {0}: its directories are more than {DEPTH_MAX} levels deep")]
    Deep(PathBuf),
    /// More of it than the container may have.
    #[error(
        "tmpcopyup: copy {0}: the content is larger than the container's memory limit; raise \
         linux.resources.memory.limit or leave tmpcopyup out"
    )]
    Large(PathBuf),
    /// The cgroup of the container.
    #[error("tmpcopyup: charge the container: {0}: {1}")]
    Cgroup(PathBuf, #[source] io::Error),
}

/// Why the content of a directory is not copied.
#[derive(Debug)]
enum Stopped {
    /// More than [`DEPTH_MAX`] levels.
    Deep,
    /// More bytes than there is room for.
    Large,
    /// A step.
    Step(Errno),
}

impl From<Errno> for Stopped {
    fn from(errno: Errno) -> Self {
        Self::Step(errno)
    }
}

/// Makes every tmpfs of `spec` that is to start with content below `bundle`, and lets it be
/// bound instead. The content is memory of `cgroup`, a path in the guest's hierarchy.
pub fn prepare(spec: &mut Spec, bundle: &Path, cgroup: &Path) -> Result<(), CopyUpError> {
    let mut room = memory_limit(spec);
    let Some(root) = spec.root().as_ref().map(|root| root.path().clone()) else { return Ok(()) };
    let Some(mounts) = spec.mounts_mut() else { return Ok(()) };
    let mut home = None;
    for at in 0..mounts.len() {
        let wanted = |options: &Vec<String>| options.iter().any(|option| option == OPTION);
        let options = mounts[at].options().clone().filter(wanted);
        let (Some("tmpfs"), Some(options)) = (mounts[at].typ().as_deref(), options) else {
            continue;
        };
        let rest: Vec<String> = options.into_iter().filter(|o| o != OPTION).collect();
        let place = mounts[at].destination().clone();
        // What an earlier mount puts there is not in the root, and as a rule is empty.
        let covered = mounts[..at].iter().any(|other| place.starts_with(other.destination()));
        let content = if covered { None } else { open_content(&root, &place)? };
        let Some(content) = content else {
            mounts[at].set_options(Some(rest));
            continue;
        };
        if home.is_none() {
            // SAFETY: the helper has one thread; only its view of mounts becomes its own.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
                .map_err(CopyUpError::Namespace)?;
            home = Some(charge(cgroup)?);
        }
        let made = bundle.join(format!("tmpfs-{at}"));
        fill(&made, &place, &content, &rest, &mut room)?;
        bind(&mut mounts[at], made, &rest);
    }
    home.map_or(Ok(()), |home| enter(&home))
}

/// Bytes that the container may have.
fn memory_limit(spec: &Spec) -> u64 {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    let limit = memory.and_then(|memory| memory.limit()).unwrap_or(-1);
    u64::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(u64::MAX)
}

/// Makes the container's cgroup, with its memory counted, and enters it; the one that was left.
fn charge(cgroup: &Path) -> Result<PathBuf, CopyUpError> {
    let failed = |path: &Path, error| CopyUpError::Cgroup(path.to_owned(), error);
    let own = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(own).map_err(|error| failed(own, error))?;
    let home = text.lines().find_map(|line| line.strip_prefix("0::"));
    let home = home.ok_or_else(|| failed(own, io::ErrorKind::NotFound.into()))?;
    let mut at = PathBuf::from(cgroup::ROOT);
    let known = at.join("cgroup.controllers");
    let known = fs::read_to_string(&known).map_err(|error| failed(&known, error))?;
    // The guest's kernel has the controller; a machine on which the agent is tested may not.
    let counted = known.split_whitespace().any(|controller| controller == "memory");
    for name in cgroup.iter().skip(1) {
        let control = at.join("cgroup.subtree_control");
        if counted {
            fs::write(&control, "+memory").map_err(|error| failed(&control, error))?;
        }
        at.push(name);
        fs::create_dir_all(&at).map_err(|error| failed(&at, error))?;
    }
    enter(&at)?;
    Ok(cgroup::directory(Path::new(home)))
}

/// Moves the helper.
fn enter(cgroup: &Path) -> Result<(), CopyUpError> {
    let processes = cgroup.join("cgroup.procs");
    fs::write(&processes, "0").map_err(|error| CopyUpError::Cgroup(processes, error))
}

/// The directory `place` of the root; `None` if there is none, or another thing.
fn open_content(root: &Path, place: &Path) -> Result<Option<OwnedFd>, CopyUpError> {
    let failed = |errno| CopyUpError::Copy(place.to_owned(), errno);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat2(&root, place, flags, Mode::empty(), inside) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(failed(errno)),
    }
}

/// Mounts a tmpfs at `made` and copies `content` into it.
fn fill(
    made: &Path,
    place: &Path,
    content: &OwnedFd,
    options: &[String],
    room: &mut u64,
) -> Result<(), CopyUpError> {
    fs::create_dir_all(made).map_err(|error| CopyUpError::Directory(made.to_owned(), error))?;
    let own = |option: &&String| TMPFS_OPTIONS.iter().any(|name| option.starts_with(name));
    let own: Vec<&str> = options.iter().filter(own).map(String::as_str).collect();
    let mount_failed = |errno| CopyUpError::Mount(place.to_owned(), errno);
    let data = CString::new(own.join(",")).map_err(|_| mount_failed(Errno::INVAL))?;
    rustix::mount::mount(c"tmpfs", made, c"tmpfs", MountFlags::empty(), data.as_c_str())
        .map_err(mount_failed)?;
    let copy_failed = |errno| CopyUpError::Copy(place.to_owned(), errno);
    let target = open_directory(rustix::fs::CWD, made).map_err(copy_failed)?;
    let found = rustix::fs::fstat(content).map_err(copy_failed)?;
    copy_entries(content, &target, DEPTH_MAX, room).map_err(|stopped| match stopped {
        Stopped::Deep => CopyUpError::Deep(place.to_owned()),
        Stopped::Large => CopyUpError::Large(place.to_owned()),
        Stopped::Step(errno) => copy_failed(errno),
    })?;
    // Like the directory that it covers, unless the options say otherwise.
    let given = |name| own.iter().any(|option| option.starts_with(name));
    let uid = (!given("uid=")).then(|| Uid::from_raw(found.st_uid));
    let gid = (!given("gid=")).then(|| Gid::from_raw(found.st_gid));
    rustix::fs::fchown(&target, uid, gid).map_err(copy_failed)?;
    if !given("mode=") {
        let mode = Mode::from_raw_mode(found.st_mode & 0o7777);
        rustix::fs::fchmod(&target, mode).map_err(copy_failed)?;
    }
    Ok(())
}

/// Turns `mount` into a bind of `made`.
fn bind(mount: &mut Mount, made: PathBuf, options: &[String]) {
    let own = |option: &String| TMPFS_OPTIONS.iter().any(|name| option.starts_with(name));
    let kept = options.iter().filter(|option| !own(option)).cloned();
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(made));
    mount.set_options(Some(std::iter::once("bind".to_owned()).chain(kept).collect()));
}

fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Reads and copies by turns: how many entries a directory has is the image's choice.
fn copy_entries(from: &OwnedFd, to: &OwnedFd, depth: usize, room: &mut u64) -> Result<(), Stopped> {
    let depth = depth.checked_sub(1).ok_or(Stopped::Deep)?;
    // On the heap: one for each level would fill the stack.
    let mut space = vec![MaybeUninit::uninit(); ENTRIES];
    let mut entries = RawDir::new(from, &mut space);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            copy_entry(from, to, entry.file_name(), depth, room)?;
        }
    }
    Ok(())
}

fn copy_entry(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &CStr,
    depth: usize,
    room: &mut u64,
) -> Result<(), Stopped> {
    let found = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let size = cost(&found);
    *room = room.checked_sub(size).ok_or(Stopped::Large)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let (old, new) = (open_directory(from, name)?, open_directory(to, name)?);
            copy_entries(&old, &new, depth, room)?;
            copy_owner(to, name, &found)?;
            copy_xattrs(&old, &new)?;
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let old = rustix::fs::openat(from, name, flags, Mode::empty())?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let new = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
            let (old, mut new) = (File::from(old), File::from(new));
            // No more than was counted.
            io::copy(&mut (&old).take(found.st_size.cast_unsigned()), &mut new)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            copy_owner(to, name, &found)?;
            copy_xattrs(old.as_fd(), new.as_fd())?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, vec![])?;
            rustix::fs::symlinkat(target, to, name)?;
            copy_owner(to, name, &found)?;
        }
        kind => {
            let mode = Mode::from_raw_mode(found.st_mode & 0o7777);
            rustix::fs::mknodat(to, name, kind, mode, found.st_rdev)?;
            copy_owner(to, name, &found)?;
        }
    }
    Ok(copy_times(to, name, &found)?)
}

/// Memory that a file takes in a tmpfs: whole pages, and about a page for its inode and name.
fn cost(found: &Stat) -> u64 {
    let length = match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => found.st_size.cast_unsigned(),
        _ => 0,
    };
    // A length that no file has is the image's word.
    length.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX).saturating_add(PAGE)
}

/// Owner and mode, in this order: a change of owner clears bits of the mode. It takes a file's
/// capabilities, too, so extended attributes come later.
fn copy_owner(to: &OwnedFd, name: &CStr, found: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(found.st_mode & 0o7777);
        rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
    }
    Ok(())
}

fn copy_times(to: &OwnedFd, name: &CStr, found: &Stat) -> Result<(), Errno> {
    let time = |tv_sec, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec as i64 };
    let times = Timestamps {
        last_access: time(found.st_atime, found.st_atime_nsec),
        last_modification: time(found.st_mtime, found.st_mtime_nsec),
    };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Those that tmpfs takes.
fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let mut list = vec![0_u8; XATTR_MAX];
    let len = match rustix::fs::flistxattr(&from, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        listed => listed?,
    };
    let mut value = vec![];
    for name in list[..len].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        value.resize(XATTR_MAX, 0);
        let len = rustix::fs::fgetxattr(&from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(&to, name, &value[..len], XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => {}
            set => set?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use serde_json::json;

    use super::*;

    fn spec(root: &Path, mounts: serde_json::Value) -> Spec {
        let spec = json!({"ociVersion": "1.0.2", "root": {"path": root}, "mounts": mounts});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn tree_is_copied_with_what_it_is_made_of() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |path: &str| from.path().join(path);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/f"), "content").unwrap();
        fs::set_permissions(at("d/f"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(at("d"), fs::Permissions::from_mode(0o1711)).unwrap();
        symlink("/outside", at("l")).unwrap();
        let target = to.path();
        copy(from.path(), target).unwrap();
        assert_eq!(fs::read_link(target.join("l")).unwrap(), Path::new("/outside"));
        assert_eq!(fs::read(target.join("d/f")).unwrap(), b"content");
        for path in ["d", "d/f"] {
            let (old, new) = (at(path).metadata().unwrap(), target.join(path).metadata().unwrap());
            assert_eq!((old.mode(), old.mtime()), (new.mode(), new.mtime()), "{path}");
        }
    }

    fn copy(from: &Path, to: &Path) -> Result<(), Stopped> {
        let open = |path: &Path| open_directory(rustix::fs::CWD, path).unwrap();
        copy_entries(&open(from), &open(to), DEPTH_MAX, &mut u64::MAX.clone())
    }

    #[test]
    fn content_that_is_larger_than_the_room_is_refused_by_that_reason() {
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("f"), vec![1; 5000]).unwrap();
        let open = |path: &Path| open_directory(rustix::fs::CWD, path).unwrap();
        for (mut room, fits) in [(3 * PAGE, true), (3 * PAGE - 1, false)] {
            let to = tempfile::tempdir().unwrap();
            let copied = copy_entries(&open(from.path()), &open(to.path()), DEPTH_MAX, &mut room);
            assert_eq!(copied.is_ok(), fits, "{copied:?}");
            assert!(fits || matches!(copied, Err(Stopped::Large)), "{copied:?}");
        }
    }

    #[test]
    fn length_that_no_file_has_costs_more_than_there_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "x").unwrap();
        let mut found = rustix::fs::stat(dir.path().join("f")).unwrap();
        assert_eq!(cost(&found), 2 * PAGE);
        found.st_size = -1;
        assert_eq!(cost(&found), u64::MAX);
    }

    #[test]
    fn limit_of_memory_is_the_specifications_if_it_has_one() {
        for (resources, expected) in [
            (json!({"memory": {"limit": 4096}}), 4096),
            (json!({"memory": {"limit": -1}}), u64::MAX),
            (json!({"memory": {"limit": 0}}), u64::MAX),
            (json!({}), u64::MAX),
        ] {
            let spec = json!({"ociVersion": "1.0.2", "linux": {"resources": resources}});
            let spec: Spec = serde_json::from_value(spec).unwrap();
            assert_eq!(memory_limit(&spec), expected);
        }
    }

    #[test]
    fn capabilities_of_a_file_are_copied_with_it() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("f"), "").unwrap();
        // VFS_CAP_REVISION_2 with CAP_CHOWN permitted (linux/capability.h).
        let capabilities: Vec<u8> =
            [0x0200_0000_u32, 1, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
        let name = "security.capability";
        let file = from.path().join("f");
        match rustix::fs::setxattr(&file, name, &capabilities, XattrFlags::empty()) {
            Err(errno @ (Errno::PERM | Errno::OPNOTSUPP)) => {
                println!("skipped: capabilities of files: {errno}");
                return;
            }
            set => set.unwrap(),
        }
        copy(from.path(), to.path()).unwrap();
        let mut found = [0_u8; 64];
        let length = rustix::fs::getxattr(to.path().join("f"), name, &mut found[..]).unwrap();
        assert_eq!(found[..length], capabilities[..]);
    }

    #[test]
    fn directories_nested_too_deep_are_refused_by_that_reason() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deepest = |levels: usize| from.path().join("d/".repeat(levels));
        fs::create_dir_all(deepest(DEPTH_MAX - 1)).unwrap();
        copy(from.path(), to.path()).unwrap();
        fs::create_dir(deepest(DEPTH_MAX)).unwrap();
        let to = tempfile::tempdir().unwrap();
        assert!(matches!(copy(from.path(), to.path()), Err(Stopped::Deep)));
    }

    #[test]
    fn option_goes_where_the_root_has_nothing_to_copy() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("run")).unwrap();
        let tmpfs = |place: &str, options: &[&str]| json!({"destination": place, "type": "tmpfs", "source": "tmpfs", "options": options});
        let mounts = json!([
            tmpfs("/none", &["tmpcopyup", "nosuid"]),
            tmpfs("/run", &["nosuid"]),
            tmpfs("/run/lock", &["size=1m", "tmpcopyup"]),
        ]);
        let mut spec = spec(root.path(), mounts);
        prepare(&mut spec, root.path(), Path::new("/none")).unwrap();
        let mounts = spec.mounts().as_ref().unwrap();
        let options: Vec<_> = mounts.iter().map(|m| m.options().clone().unwrap()).collect();
        assert_eq!(options, [vec!["nosuid"], vec!["nosuid"], vec!["size=1m"]]);
        assert!(mounts.iter().all(|mount| mount.typ().as_deref() == Some("tmpfs")));
    }
}
