//! What the host sees of a container's file system: a mount namespace with the root directory and
//! the bind mounts of its specification, in which the supervisor's first thread is.
//!
//! Whoever has the pid of a container expects the container behind `/proc/PID/ns/mnt` and
//! `/proc/PID/root`; Podman's `cp` enters the one to read and write files. What is mounted here
//! are the directories that the guest is served, so what is written appears there. What the guest
//! makes by itself (`/proc`, tmpfs, disks) is not the host's to show: an empty directory that
//! nothing can be written to hides what lies below it, which the container does not see either.
//!
//! The attack: a tree of the tenant's, whose links lead anywhere, is the root directory of host
//! processes. The namespace has nothing else: no mount of the host's is left in it, so that every
//! path ends in what is the container's. No device opens and, above all, no program runs: one of
//! the tenant's would run on the host's kernel, outside of the microVM.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use bulkhead_jail::apart::{ApartError, set_apart};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};
use rustix::thread::UnshareFlags;

use super::mount_points;

/// What a namespace of the container's is to show. By default nothing: where the root directory
/// is of the guest's making, the host has none.
#[derive(Debug, Default)]
pub struct View {
    root: Option<OwnedFd>,
    mounts: Vec<(PathBuf, Shown)>,
}

/// What is seen at a mount point.
#[derive(Debug)]
pub(super) enum Shown {
    /// A mount of the host without a place, which the guest is served too.
    Share { fd: OwnedFd, is_file: bool },
    /// A directory that the guest makes.
    Directory,
    /// A file that the guest makes.
    File,
}

/// A file system that hides what lies below: an empty directory and an empty file.
struct Cover {
    root: OwnedFd,
}

const DIRECTORY: &str = "directory";
const FILE: &str = "file";

impl View {
    /// `root`, a mount without a place, with nothing mounted in it.
    pub(super) fn of(root: OwnedFd) -> Self {
        Self { root: Some(root), mounts: vec![] }
    }

    /// Mounts `shown` at `point`, a path in the root directory.
    pub(super) fn add(&mut self, point: PathBuf, shown: Shown) {
        self.mounts.push((point, shown));
    }

    /// Moves the calling thread into a new mount namespace that shows this. Its root and working
    /// directory are there from now on.
    pub fn enter(self) -> io::Result<()> {
        // SAFETY: the descriptor table stays shared; mount namespace, root and working directory
        // become this thread's own.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", private)?;
        let cover = Cover::mount()?;
        let (root, mounts) = match self.root {
            Some(root) => (root, self.mounts),
            None => (cover.copy(DIRECTORY)?, vec![]),
        };
        let mounts = mounts.into_iter().map(|(point, shown)| Ok((point, shown.mount(&cover)?)));
        let mounts: Vec<_> = mounts.collect::<io::Result<_>>()?;
        cover.unmount()?;
        attach(&root, CWD, "/")?;
        for (point, (mount, is_file)) in mounts {
            place(&root, &point, &mount, is_file)?;
        }
        become_root(&root)
    }
}

impl Shown {
    /// A mount without a place, and whether it is of a file.
    fn mount(self, cover: &Cover) -> io::Result<(OwnedFd, bool)> {
        Ok(match self {
            Self::Share { fd, is_file } => (fd, is_file),
            Self::Directory => (cover.copy(DIRECTORY)?, false),
            Self::File => (cover.copy(FILE)?, true),
        })
    }
}

/// Gives `mount` its place at `point` of `root`. What cannot be mounted there cannot be in the
/// guest: it lies below something that the guest makes, or the guest will say what is wrong.
fn place(root: &OwnedFd, point: &Path, mount: &OwnedFd, is_file: bool) -> io::Result<()> {
    if mount_points::make(root, point, is_file).is_err() {
        return Ok(());
    }
    let place = mount_points::open_in(root, point)?;
    let is_directory = FileType::from_raw_mode(fstat(&place)?.st_mode) == FileType::Directory;
    if is_directory == is_file {
        return Ok(());
    }
    attach(mount, &place, "")
}

/// Gives `mount` the place `path` from `at`.
fn attach(mount: &OwnedFd, at: impl AsFd, path: &str) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", at, path, flags)?)
}

/// Makes `root`, which is mounted over the root directory, all that there is.
fn become_root(root: &OwnedFd) -> io::Result<()> {
    let old = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    fchdir(root)?;
    match pivot_root(".", ".") {
        // The old root now lies over the new one.
        Ok(()) => unmount_stack(&old)?,
        // The root of a host that runs from its initramfs cannot be moved, only hidden.
        Err(Errno::INVAL) => chroot(".")?,
        Err(e) => return Err(e.into()),
    }
    Ok(chdir("/")?)
}

/// Unmounts what lies over `top`, the root of a mount, and that mount itself, which is last.
fn unmount_stack(top: &OwnedFd) -> io::Result<()> {
    fchdir(top)?;
    loop {
        // The topmost of the stack that begins at the working directory (pivot_root(2)).
        match rustix::mount::unmount(".", UnmountFlags::DETACH) {
            Ok(()) => {}
            // It is in no namespace any more.
            Err(Errno::INVAL) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

impl Cover {
    /// Mounts it over the root directory: of a mount without a place no part can be copied.
    fn mount() -> io::Result<Self> {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&context)?;
        let (flags, attributes) = (FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
        let root = rustix::mount::fsmount(&context, flags, attributes)?;
        mkdirat(&root, DIRECTORY, Mode::from_raw_mode(0o555))?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&root, FILE, flags, Mode::from_raw_mode(0o444))?;
        attach(&root, CWD, "/")?;
        Ok(Self { root })
    }

    /// Takes it from the root directory; its copies stay.
    fn unmount(self) -> io::Result<()> {
        Ok(rustix::mount::unmount("/", UnmountFlags::DETACH)?)
    }

    /// A mount of its part `name`, which nothing can be written to.
    fn copy(&self, name: &str) -> io::Result<OwnedFd> {
        let part = openat(&self.root, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        set_apart(part, true).map_err(|ApartError { source, .. }| source)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::privilege::is_root;

    /// `directories` under a new one, unless this user makes no mount namespaces.
    fn tree(directories: &[&str]) -> Option<TempDir> {
        let dir = is_root().then(|| tempfile::tempdir().unwrap())?;
        for name in directories {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        Some(dir)
    }

    fn writable(path: &Path) -> Shown {
        Shown::Share { fd: share(path, false), is_file: path.is_file() }
    }

    fn share(path: &Path, read_only: bool) -> OwnedFd {
        let source = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        set_apart(source, read_only).unwrap()
    }

    /// What `look` finds in a thread that is in `view`.
    fn within<T: Send>(view: View, look: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                view.enter().unwrap();
                look()
            });
            thread.join().unwrap()
        })
    }

    fn kind<T>(result: io::Result<T>) -> Option<Errno> {
        result.err().and_then(|e| e.raw_os_error()).map(Errno::from_raw_os_error)
    }

    #[test]
    fn shares_are_seen_and_written_where_the_container_has_them() {
        let Some(dir) = tree(&["root/etc", "data/sub"]) else { return };
        let at = |name: &str| dir.path().join(name);
        fs::write(at("root/etc/hosts"), "of the image").unwrap();
        fs::write(at("hosts"), "of the host").unwrap();
        let mut view = View::of(share(&at("root"), false));
        let constant = Shown::Share { fd: share(&at("data"), true), is_file: false };
        view.add("/var/data".into(), writable(&at("data")));
        view.add("/const".into(), constant);
        view.add("/etc/hosts".into(), writable(&at("hosts")));
        within(view, || {
            assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), "of the host");
            fs::write("/new", "1").unwrap();
            fs::write("/var/data/sub/new", "2").unwrap();
            assert_eq!(kind(fs::write("/const/x", "")), Some(Errno::ROFS));
            assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
        });
        assert_eq!(fs::read_to_string(at("root/new")).unwrap(), "1");
        assert_eq!(fs::read_to_string(at("data/sub/new")).unwrap(), "2");
        assert!(at("root/var/data").is_dir() && at("root/const").is_dir());
    }

    #[test]
    fn what_the_guest_makes_is_hidden_and_takes_nothing() {
        let Some(dir) = tree(&["root/tmp", "data"]) else { return };
        let at = |name: &str| dir.path().join(name);
        fs::write(at("root/tmp/below"), "").unwrap();
        fs::write(at("root/secret"), "hidden").unwrap();
        let mut view = View::of(share(&at("root"), false));
        view.add("/tmp".into(), Shown::Directory);
        view.add("/secret".into(), Shown::File);
        // In the guest it is in the tmpfs.
        view.add("/tmp/data".into(), writable(&at("data")));
        within(view, || {
            assert_eq!(fs::read_dir("/tmp").unwrap().count(), 0);
            assert_eq!(kind(fs::write("/tmp/x", "")), Some(Errno::ROFS));
            assert_eq!(fs::read_to_string("/secret").unwrap(), "");
            assert_eq!(kind(fs::write("/secret", "x")), Some(Errno::ROFS));
        });
        let names: Vec<_> = fs::read_dir(at("root/tmp")).unwrap().map(|e| e.unwrap()).collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn nothing_of_the_host_is_left_and_links_stay_inside() {
        let Some(dir) = tree(&["root", "outside", "data"]) else { return };
        let at = |name: &str| dir.path().join(name);
        symlink(at("outside"), at("root/link")).unwrap();
        symlink("../../../../..", at("root/up")).unwrap();
        let mut view = View::of(share(&at("root"), false));
        for point in ["/link/in", "/up/proc"] {
            view.add(point.into(), writable(&at("data")));
        }
        let mut names: Vec<_> = within(view, || {
            assert!(!fs::exists("/up/etc").unwrap() && !fs::exists("/proc/self").unwrap());
            fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name()).collect()
        });
        names.sort();
        // Both links, and the mount point behind the second.
        assert_eq!(names, ["link", "proc", "up"]);
        assert_eq!(fs::read_dir(at("outside")).unwrap().count(), 0);
    }

    #[test]
    fn no_program_of_the_container_runs_on_the_host() {
        let Some(dir) = tree(&[]) else { return };
        let program = dir.path().join("program");
        crate::script::write(&program, "exit 0");
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o111, 0o111);
        let view = View::of(share(dir.path(), false));
        let refused = within(view, || kind(std::process::Command::new("/program").status()));
        assert_eq!(refused, Some(Errno::ACCESS));
    }

    #[test]
    fn mount_over_the_hosts_root_does_not_keep_it() {
        let Some(dir) = tree(&["root", "over"]) else { return };
        fs::write(dir.path().join("root/own"), "").unwrap();
        let [root, over] = ["root", "over"].map(|name| share(&dir.path().join(name), false));
        let (entered, namespace) = std::sync::mpsc::channel();
        let (done, end) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // SAFETY: only this thread's mount namespace, root and directory change.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change(c"/", private).unwrap();
                attach(&over, CWD, "/").unwrap();
                View::of(root).enter().unwrap();
                entered.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
                // The namespace lasts until it has been looked at.
                let _ = end.recv();
            });
            let tid = namespace.recv().unwrap();
            let namespace = fs::File::open(format!("/proc/self/task/{tid}/ns/mnt")).unwrap();
            let look = scope.spawn(move || {
                // SAFETY: this thread's root and directory become its own, and nothing else.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.unwrap();
                let enter = || {
                    let kind = Some(rustix::thread::LinkNameSpaceType::Mount);
                    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
                };
                enter().unwrap();
                assert!(fs::exists("/own").unwrap() && !fs::exists("/etc").unwrap());
                // What is below, if anything is, shows when the topmost mount is gone.
                rustix::mount::unmount("/", UnmountFlags::DETACH).unwrap();
                enter().is_ok() && fs::exists("/etc").unwrap()
            });
            let host_is_below = look.join().unwrap();
            drop(done);
            assert!(!host_is_below);
        });
    }

    #[test]
    fn root_of_the_guests_making_is_an_empty_directory() {
        if !is_root() {
            return;
        }
        within(View::default(), || {
            assert_eq!(fs::read_dir("/").unwrap().count(), 0);
            assert_eq!(kind(fs::write("/x", "")), Some(Errno::ROFS));
        });
    }
}
