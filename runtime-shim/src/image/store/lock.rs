//! Locks between processes: flock(2) on files of the store. A lock dies with its holder.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::{self, Errno};

const LOCK_FILE: OFlags =
    OFlags::RDWR.union(OFlags::CREATE).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A held lock, with its file open.
pub struct Lock(OwnedFd);

/// Waits for the lock `name`, whose file stays.
pub fn acquire(directory: BorrowedFd, name: &CStr) -> io::Result<Lock> {
    let file = fs::openat(directory, name, LOCK_FILE, Mode::RUSR | Mode::WUSR)?;
    rustix::io::retry_on_intr(|| fs::flock(&file, FlockOperation::LockExclusive))?;
    Ok(Lock(file))
}

/// Waits for the lock `name`, whose file is removed by its last holder ([`release`]).
pub fn acquire_transient(directory: BorrowedFd, name: &CStr) -> io::Result<Lock> {
    loop {
        let lock = acquire(directory, name)?;
        if is_current(&lock, directory, name)? {
            return Ok(lock);
        }
    }
}

/// Takes the transient lock `name` if nobody holds it.
pub fn try_transient(directory: BorrowedFd, name: &CStr) -> io::Result<Option<Lock>> {
    let flags = LOCK_FILE.difference(OFlags::CREATE);
    let file = match fs::openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        result => result?,
    };
    match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        result => result?,
    }
    let lock = Lock(file);
    Ok(is_current(&lock, directory, name)?.then_some(lock))
}

/// Removes the file of a held transient lock, and lets go.
pub fn release(lock: Lock, directory: BorrowedFd, name: &CStr) -> io::Result<()> {
    fs::unlinkat(directory, name, AtFlags::empty())?;
    drop(lock);
    Ok(())
}

/// Whether `name` is still the file that is locked: the holder before may have removed it
/// while this process waited.
fn is_current(lock: &Lock, directory: BorrowedFd, name: &CStr) -> io::Result<bool> {
    let held = fs::fstat(&lock.0)?;
    match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
