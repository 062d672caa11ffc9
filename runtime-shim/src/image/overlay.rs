//! The root file system of a container: layers and a writable directory, mounted with
//! overlayfs.
//!
//! The mount is made in a mount namespace of a thread that ends at once; what stays is a
//! detached copy that hangs on one file descriptor. No other process ever sees it, nothing has
//! to be unmounted, and it is gone when the last holder of the descriptor is, however that
//! ends. On the host it is mounted nodev, nosuid and noexec: programs and devices of an image
//! are for the guest's kernel.
//!
//! Everything that the mount refers to is named by descriptor number with `/proc/thread-self/fd`
//! as working directory: the option page of mount(2) holds 4096 bytes, which is 500 layers of
//! numbers and 50 of digests.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{self, MountFlags, MountPropagationFlags, OpenTreeFlags};
use rustix::process::{Gid, Uid, chdir};
use rustix::thread::UnshareFlags;
use thiserror::Error;

use super::digest::Sha256Digest;
use super::manifest::Image;
use super::store::Store;
use super::store::container::{Claim, UPPER, WORK};
use super::unpack::tree::OPAQUE_XATTR;
use crate::failure::{EXIT_LAUNCH, Explain};

/// Features of overlayfs by which one layer could point into another, or that change what a
/// container may do: off, whatever the kernel's defaults are.
const FEATURES: &str = "redirect_dir=nofollow,metacopy=off,index=off";

/// Programs and devices of an image are for the guest's kernel.
const HARMLESS: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID).union(MountFlags::NOEXEC);

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why the root file system cannot be mounted.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// No thread could be started.
    #[error("starting a thread")]
    Thread(#[source] io::Error),
    /// A step before the mount.
    #[error("{step}")]
    Step {
        /// What was done.
        step: &'static str,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A layer is not in the store any more.
    #[error("opening layer {0}")]
    Layer(Sha256Digest, #[source] io::Error),
    /// The store's path leads somewhere else than when it was opened.
    #[error("the store was replaced meanwhile")]
    Replaced,
    /// The mount itself.
    #[error("mounting the layers with overlayfs")]
    Mount(#[source] io::Error),
}

impl OverlayError {
    fn step(step: &'static str) -> impl Fn(Errno) -> Self {
        move |error| Self::Step { step, source: error.into() }
    }
}

impl Explain for OverlayError {
    fn phase(&self) -> &'static str {
        "mounting the container's root"
    }

    fn fix(&self) -> String {
        let (Self::Mount(source) | Self::Step { source, .. }) = self else { return String::new() };
        match Errno::from_io_error(source) {
            Some(Errno::PERM) => "run as root",
            Some(Errno::NODEV) => "load the kernel module `overlay`",
            Some(Errno::INVAL) => {
                "the store must be on a file system that overlayfs can write to, as ext4, xfs, \
                 btrfs or tmpfs; choose another place with --store"
            }
            _ => "",
        }
        .to_owned()
    }

    fn code(&self) -> u8 {
        EXIT_LAUNCH
    }
}

/// Mounts the layers of `image`, which are in `store`, with the directory of `claim` on top.
/// Returns an `O_PATH` descriptor of the root, which is the only holder of the mount.
pub fn mount_root(store: &Store, claim: &Claim, image: &Image) -> Result<OwnedFd, OverlayError> {
    let stack = stack(image);
    // The thread's mount namespace and working directory cannot be given back.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mount".to_owned());
        let thread = thread.spawn_scoped(scope, || mount_apart(store, claim, &stack));
        let thread = thread.map_err(OverlayError::Thread)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The layers to mount, topmost first. A layer that comes twice counts where it is uppermost:
/// there it says all that it would say below, and overlayfs takes no directory twice.
fn stack(image: &Image) -> Vec<Sha256Digest> {
    let mut seen = BTreeSet::new();
    let layers = image.layers.iter().rev().map(|layer| layer.diff_id);
    layers.filter(|diff_id| seen.insert(*diff_id)).collect()
}

/// Calls `work`, on a thread with a mount namespace of its own, with the path of a read-only view
/// of all layers of `image`. The directory `place` has empty directories `view` and `empty`.
pub fn with_view<T: Send>(
    store: &Store,
    image: &Image,
    place: &Path,
    work: impl FnOnce(&Path) -> T + Send,
) -> Result<T, OverlayError> {
    let stack = stack(image);
    let view = || -> Result<T, OverlayError> {
        enter_namespace()?;
        let root = reopen(store)?;
        let step = OverlayError::step("opening the image's directory");
        let mut lower = open_layers(&root, &stack)?;
        // overlayfs takes no single directory without a writable one.
        lower.push(fs::open(place.join("empty"), DIRECTORY, Mode::empty()).map_err(&step)?);
        let target = place.join("view");
        let options = CString::new(format!("{},{FEATURES}", lower_option(&lower)))
            .expect("numbers have no NUL");
        chdir(c"/proc/thread-self/fd")
            .map_err(OverlayError::step("opening /proc/thread-self/fd"))?;
        let flags = HARMLESS | MountFlags::RDONLY;
        mount::mount(c"overlay", &target, c"overlay", flags, options.as_c_str())
            .map_err(|error| OverlayError::Mount(error.into()))?;
        Ok(work(&target))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("view".to_owned());
        let thread = thread.spawn_scoped(scope, view).map_err(OverlayError::Thread)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Gives the calling thread, on which nothing else may run, a private mount namespace.
fn enter_namespace() -> Result<(), OverlayError> {
    // SAFETY: the file descriptor table stays shared; mount namespace, root and working
    // directory become this thread's own, and nothing else runs on it afterwards.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(OverlayError::step("making a mount namespace"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::mount_change(c"/", private)
        .map_err(OverlayError::step("making the mount namespace private"))
}

fn mount_apart(
    store: &Store,
    claim: &Claim,
    stack: &[Sha256Digest],
) -> Result<OwnedFd, OverlayError> {
    enter_namespace()?;
    // Descriptors from before belong to mounts of the other namespace, which overlayfs refuses.
    let root = reopen(store)?;
    let step = OverlayError::step("opening the container's directory");
    let open = |parent: &OwnedFd, name: &CStr| fs::openat(parent, name, DIRECTORY, Mode::empty());
    let containers = open(&root, c"containers").map_err(&step)?;
    let container = open(&containers, claim.name()).map_err(&step)?;
    let upper = open(&container, UPPER).map_err(&step)?;
    let work = open(&container, WORK).map_err(&step)?;
    let lower = open_layers(&root, stack)?;
    if let Some(top) = lower.first() {
        same_owner_and_mode(top, &upper).map_err(&step)?;
    }
    let options = options(&lower, &upper, &work);
    chdir(c"/proc/thread-self/fd").map_err(OverlayError::step("opening /proc/thread-self/fd"))?;
    let flags = HARMLESS;
    let target = container.as_raw_fd().to_string();
    mount::mount(c"overlay", target, c"overlay", flags, options.as_c_str())
        .map_err(|error| OverlayError::Mount(error.into()))?;
    // By name: the descriptor means the directory below the mount.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    mount::open_tree(&containers, claim.name(), flags)
        .map_err(OverlayError::step("detaching the mount"))
}

fn reopen(store: &Store) -> Result<OwnedFd, OverlayError> {
    let step = OverlayError::step("opening the store");
    let root = fs::open(store.path(), DIRECTORY, Mode::empty()).map_err(&step)?;
    let (found, known) = (fs::fstat(&root), fs::fstat(store.root()));
    let (found, known) = (found.map_err(&step)?, known.map_err(&step)?);
    if (found.st_dev, found.st_ino) != (known.st_dev, known.st_ino) {
        return Err(OverlayError::Replaced);
    }
    Ok(root)
}

/// Opens the layers of `stack` down to the first whose root hides all below it: overlayfs does
/// not look for that mark on roots.
fn open_layers(root: &OwnedFd, stack: &[Sha256Digest]) -> Result<Vec<OwnedFd>, OverlayError> {
    let mut open = Vec::with_capacity(stack.len());
    for diff_id in stack {
        let failed = |error: Errno| OverlayError::Layer(*diff_id, error.into());
        let name = format!("layers/sha256/{diff_id}");
        let layer = fs::openat(root, name, DIRECTORY, Mode::empty()).map_err(failed)?;
        let opaque = match fs::fgetxattr(&layer, OPAQUE_XATTR, &mut [0_u8; 1]) {
            Ok(_) => true,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
            Err(error) => return Err(failed(error)),
        };
        open.push(layer);
        if opaque {
            break;
        }
    }
    Ok(open)
}

/// The root directory of the whole has the attributes of the uppermost directory.
fn same_owner_and_mode(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let stat = fs::fstat(from)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fs::fchown(to.as_fd(), Some(uid), Some(gid))?;
    fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))
}

fn options(lower: &[OwnedFd], upper: &OwnedFd, work: &OwnedFd) -> CString {
    let (lower, upper, work) = (lower_option(lower), upper.as_raw_fd(), work.as_raw_fd());
    CString::new(format!("{lower},upperdir={upper},workdir={work},{FEATURES}"))
        .expect("numbers have no NUL")
}

fn lower_option(lower: &[OwnedFd]) -> String {
    let numbers: Vec<String> = lower.iter().map(|layer| layer.as_raw_fd().to_string()).collect();
    format!("lowerdir={}", numbers.join(":"))
}
