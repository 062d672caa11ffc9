//! Removes directory trees that a hostile guest or image filled.
//!
//! A tree may be nested deeper than any stack, path or descriptor limit allows to follow, so it
//! is never descended into: a directory below is renamed to the top of the tree, where its turn
//! comes. Nothing is resolved further than one plain name, so no link is followed, and at most
//! three descriptors are open. An interrupted removal is completed by the next one.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::{self, Errno};

/// Flags for a directory whose entries are read.
const LIST: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes what is at `path`, links on the way to it followed, itself not. Nothing there is no
/// error.
pub fn remove_path(path: &Path) -> std::io::Result<()> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let parent = match path.parent() {
        None => return Err(Errno::INVAL.into()),
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match fs::open(parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        parent => Ok(remove_tree(parent?.as_fd(), &name)?),
    }
}

/// Removes `name` below `parent`, whatever it is. Nothing there is no error, and several
/// processes may remove the same tree.
pub fn remove_tree(parent: BorrowedFd, name: &CStr) -> io::Result<()> {
    loop {
        if is_gone(fs::unlinkat(parent, name, AtFlags::empty()))?
            || is_gone(fs::unlinkat(parent, name, AtFlags::REMOVEDIR))?
        {
            return Ok(());
        }
        match fs::openat(parent, name, LIST, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            top => empty(top?.as_fd())?,
        }
    }
}

/// Removes all that the directory `top` holds, or moves it to `top`.
fn empty(top: BorrowedFd) -> io::Result<()> {
    for_each_entry(top, |name, _| {
        if is_gone(fs::unlinkat(top, name, AtFlags::empty()))?
            || is_gone(fs::unlinkat(top, name, AtFlags::REMOVEDIR))?
        {
            return Ok(());
        }
        let directory = match fs::openat(top, name, LIST, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            directory => directory?,
        };
        for_each_entry(directory.as_fd(), |name, kind| lift(directory.as_fd(), name, kind, top))?;
        is_gone(fs::unlinkat(top, name, AtFlags::REMOVEDIR)).map(drop)
    })
}

/// Removes the entry `name` of `directory`; if it is a directory with entries of its own, moves
/// it to `top` under a new name.
fn lift(directory: BorrowedFd, name: &CStr, kind: FileType, top: BorrowedFd) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let is_plain = kind != FileType::Directory;
    if is_plain && is_gone(fs::unlinkat(directory, name, AtFlags::empty()))?
        || is_gone(fs::unlinkat(directory, name, AtFlags::REMOVEDIR))?
    {
        return Ok(());
    }
    loop {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let target = format!(".{}-{count}", std::process::id());
        match fs::renameat_with(directory, name, top, target, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether an entry is gone after an attempt to remove it; it is not if it is a directory, or
/// one with entries.
fn is_gone(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Calls `each` with the name and type of every entry of `directory`.
pub fn for_each_entry(
    directory: BorrowedFd,
    mut each: impl FnMut(&CStr, FileType) -> io::Result<()>,
) -> io::Result<()> {
    // A description of its own: the position of `directory`'s must not matter.
    let mut entries = Dir::new(fs::openat(directory, c".", LIST, Mode::empty())?)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            each(name, entry.file_type())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes `depth` directories, each in the one before, deeper than a path can say.
    fn nest(path: &Path, depth: usize) {
        let mut directory = fs::open(path, LIST, Mode::empty()).unwrap();
        for _ in 0..depth {
            let name = c"a-name-of-some-length";
            fs::mkdirat(&directory, name, Mode::RWXU).unwrap();
            directory = fs::openat(&directory, name, LIST, Mode::empty()).unwrap();
            fs::mkdirat(&directory, c"sibling", Mode::RWXU).unwrap();
            fs::symlinkat(c"/", &directory, c"link").unwrap();
        }
    }

    #[test]
    fn tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep");
        std::fs::create_dir(&path).unwrap();
        nest(&path, 2000);
        remove_path(&path).unwrap();
        assert!(!path.exists());
        remove_path(&path).unwrap();
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(outside.join("kept")).unwrap();
        let path = dir.path().join("tree");
        std::fs::create_dir_all(path.join("a/b")).unwrap();
        std::os::unix::fs::symlink(&outside, path.join("a/b/link")).unwrap();
        std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
        remove_path(&path).unwrap();
        assert!(!path.exists() && outside.join("kept").exists());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        remove_path(&link).unwrap();
        assert!(link.symlink_metadata().is_err() && outside.join("kept").exists());
    }

    #[test]
    fn removal_goes_on_where_another_was_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        // What an earlier process with our number lifted has the names that we choose.
        for count in 0..64 {
            std::fs::create_dir_all(path.join(format!(".{}-{count}/x/y", std::process::id())))
                .unwrap();
        }
        remove_path(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn two_removals_of_one_tree_both_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        for at in 0..200 {
            std::fs::create_dir_all(path.join(format!("{}/{at}/x", at % 7))).unwrap();
        }
        std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(|| remove_path(&path)));
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
        assert!(!path.exists());
    }
}
