//! Opening disks: kind, access, lock, size, file system.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, fstat, major, minor, open};
use rustix::io::Errno;

use super::guest::GuestDisks;
use super::superblock::{self, Superblock};
use super::{BlockError, OpenDisk};
use crate::plan::{DiskPlan, DiskSource, DiskUse, FileSystem, SandboxPlan};

/// Most queues that a disk gets unless the specification says more.
const QUEUES_DEFAULT_MAX: u32 = 4;
/// Most bytes of a `uevent` file that are read.
const UEVENT_MAX: u64 = 4096;

/// How long what is in use may stay so. A VMM that was killed has ended before its io_uring lets go
/// of the file: the kernel takes that apart a moment later, and tells nobody.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const STEP: Duration = Duration::from_millis(20);

/// Opens every disk of `plan`, and says what the agent makes of them.
pub fn open_disks(plan: &SandboxPlan) -> Result<(Vec<OpenDisk>, GuestDisks), BlockError> {
    let mut disks = Vec::with_capacity(plan.disks.len());
    let mut guest = GuestDisks::default();
    for disk in &plan.disks {
        let opened = Opener { disk, patience: PATIENCE }.open()?;
        let fstype = opened.fstype;
        guest.add(disk, fstype);
        disks.push(OpenDisk {
            serial: disk.serial.clone(),
            file: opened.file,
            read_only: opened.read_only,
            queues: disk.queues.unwrap_or(plan.vcpus.min(QUEUES_DEFAULT_MAX)),
            rate: disk.rate,
        });
    }
    Ok((disks, guest))
}

/// What opening one disk gives.
struct Opened {
    file: File,
    read_only: bool,
    /// The file system, if the guest mounts it.
    fstype: Option<FileSystem>,
}

struct Opener<'a> {
    disk: &'a DiskPlan,
    /// How long another's use may last.
    patience: Duration,
}

impl Opener<'_> {
    fn open(&self) -> Result<Opened, BlockError> {
        let end = Instant::now() + self.patience;
        loop {
            match self.try_open() {
                Err(BlockError::InUse { .. }) if Instant::now() < end => std::thread::sleep(STEP),
                result => return result,
            }
        }
    }

    fn try_open(&self) -> Result<Opened, BlockError> {
        let (path, place) = self.find()?;
        let kind = self.kind(&path, &place)?;
        let wanted = match &self.disk.usage {
            DiskUse::Root { fstype, .. } | DiskUse::Mount { fstype, .. } => Some(*fstype),
            DiskUse::Node { .. } => None,
        };
        let mut read_only = self.disk.read_only;
        let mut fstype = None;
        if let Some(wanted) = wanted {
            // The superblock decides whether it can be written to at all.
            let file = self.reopen(&path, &place, kind, true)?;
            let found = self.file_system(&path, &file, wanted)?;
            read_only |= !found.is_writable();
            fstype = Some(found);
        }
        let file = self.reopen(&path, &place, kind, read_only)?;
        self.lock(&path, &file, read_only)?;
        self.size(&path, &file)?;
        Ok(Opened { file, read_only, fstype })
    }

    /// The path, and what is there, opened for nothing.
    fn find(&self) -> Result<(PathBuf, OwnedFd), BlockError> {
        match &self.disk.source {
            DiskSource::Path(path) => {
                let place = find_path(path).map_err(|errno| self.failed(path, errno.into()))?;
                Ok((path.clone(), place))
            }
            DiskSource::Number { path, major: wanted_major, minor: wanted_minor } => {
                let (wanted_major, wanted_minor) = (*wanted_major, *wanted_minor);
                let known = device_name(wanted_major, wanted_minor);
                for path in [Some(path.clone()), known].into_iter().flatten() {
                    let Ok(place) = find_path(&path) else { continue };
                    let Ok(stat) = fstat(&place) else { continue };
                    let numbers = (major(stat.st_rdev), minor(stat.st_rdev));
                    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
                        && numbers == (wanted_major, wanted_minor)
                    {
                        return Ok((path, place));
                    }
                }
                let (field, major, minor) = (self.field(), wanted_major, wanted_minor);
                Err(BlockError::Number { field, major, minor })
            }
        }
    }

    /// Regular file or block device: nothing else is opened, since opening may already do
    /// something.
    fn kind(&self, path: &Path, place: &OwnedFd) -> Result<FileType, BlockError> {
        let stat = fstat(place).map_err(|errno| self.failed(path, errno.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            kind @ (FileType::RegularFile | FileType::BlockDevice) => Ok(kind),
            _ => Err(BlockError::Kind { field: self.field(), path: path.to_owned() }),
        }
    }

    fn reopen(
        &self,
        path: &Path,
        place: &OwnedFd,
        kind: FileType,
        read_only: bool,
    ) -> Result<File, BlockError> {
        let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
        flags |= if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        if kind == FileType::BlockDevice && !read_only {
            // The kernel's own word that no file system of the host is mounted from it.
            flags |= OFlags::EXCL;
        }
        let link = format!("/proc/self/fd/{}", place.as_raw_fd());
        match open(link, flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(Errno::BUSY | Errno::TXTBSY) => Err(self.in_use(path, !read_only)),
            Err(errno) => Err(self.failed(path, errno.into())),
        }
    }

    fn lock(&self, path: &Path, file: &File, read_only: bool) -> Result<(), BlockError> {
        let operation = match read_only {
            true => FlockOperation::NonBlockingLockShared,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(file, operation) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(self.in_use(path, !read_only)),
            Err(errno) => Err(self.failed(path, errno.into())),
        }
    }

    /// Whole sectors, and at least one: what is left over would be lost to the guest.
    fn size(&self, path: &Path, mut file: &File) -> Result<u64, BlockError> {
        let bytes = file.seek(SeekFrom::End(0)).map_err(|source| self.failed(path, source))?;
        if bytes == 0 || bytes % 512 != 0 {
            return Err(BlockError::Sectors { field: self.field(), path: path.to_owned(), bytes });
        }
        Ok(bytes)
    }

    fn file_system(
        &self,
        path: &Path,
        file: &File,
        wanted: Option<FileSystem>,
    ) -> Result<FileSystem, BlockError> {
        let bytes = self.size(path, file)?;
        let (field, path) = (self.field(), path.to_owned());
        let found = superblock::read(file).map_err(|source| self.failed(&path, source))?;
        let Superblock { kind, bytes: own } = match found {
            Ok(superblock) => superblock,
            Err(other) => {
                let hint = other.map(|name| format!(", but {name}")).unwrap_or_default();
                return Err(BlockError::Unknown { field, path, hint });
            }
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != kind) {
            return Err(BlockError::Type { field, path, wanted, found: kind });
        }
        if own > bytes {
            return Err(BlockError::Truncated { field, path, wanted: own, bytes });
        }
        Ok(kind)
    }

    fn field(&self) -> String {
        self.disk.field.clone()
    }

    fn in_use(&self, path: &Path, writer: bool) -> BlockError {
        BlockError::InUse { field: self.field(), path: path.to_owned(), writer }
    }

    fn failed(&self, path: &Path, source: io::Error) -> BlockError {
        BlockError::Open { field: self.field(), path: path.to_owned(), source }
    }
}

/// As mount(2) would resolve a source: through symbolic links.
fn find_path(path: &Path) -> rustix::io::Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Where the kernel's own name of a block device leads.
fn device_name(major: u32, minor: u32) -> Option<PathBuf> {
    let file = File::open(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    let text = io::read_to_string(io::Read::take(file, UEVENT_MAX)).ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests;
