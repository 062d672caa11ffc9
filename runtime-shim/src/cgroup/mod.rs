//! The cgroup of the host that a sandbox runs in: VMM, file server and supervisor, so that an
//! engine's limits and accounting see all that a container costs. cgroup v2 only
//! (Documentation/admin-guide/cgroup-v2.rst).
//!
//! [`Place`] says where (runc's rules for `linux.cgroupsPath`), [`settings`] which limits. A
//! [`Planned`] cgroup is recorded before [`Planned::make`] makes it, and again without what turns
//! out to be another's; [`remove`] needs the record alone. The processes are cloned into it, and
//! the supervisor [joins](HostCgroup::join) while the guest boots. With `--systemd-cgroup` it is
//! that of a scope ([`systemd`]), in which the supervisor is from its start.
//!
//! Trust: the hierarchy is the host's. The path comes from the bundle, as with runc; the guest
//! reaches none of this.

mod hierarchy;
mod place;
mod remove;
pub mod settings;
mod stats;
mod systemd;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use bulkhead_protocol::id::ContainerId;
use rustix::fs::{Access, AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::failure::Explain;
use crate::process::ProcessId;

pub use hierarchy::available;
pub use place::Place;
pub use remove::remove;
use settings::Setting;
pub use stats::HostUsage;
use systemd::Scope;
pub use systemd::{Property, SystemdError, UnitRecord, Value, parse_value};

/// Why the sandbox has no cgroup, or not these limits.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The host has no cgroup v2.
    #[error("{0} needs cgroup v2 at /sys/fs/cgroup, which this host does not have")]
    Version(&'static str),
    /// Scopes are systemd's to make.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// The root of the hierarchy.
    #[error("linux.cgroupsPath: a container cannot have the root of the hierarchy")]
    Root,
    /// Which cgroup this process is in.
    #[error("reading /proc/self/cgroup")]
    Own(#[source] io::Error),
    /// A directory of the hierarchy.
    #[error("making cgroup {0}")]
    Make(PathBuf, #[source] io::Error),
    /// Opening it.
    #[error("opening cgroup {0}")]
    Open(PathBuf, #[source] io::Error),
    /// It has processes; runc's words.
    #[error("container's cgroup is not empty: {0} process(es) found")]
    NotEmpty(usize),
    /// It is frozen; runc's words.
    #[error("container's cgroup unexpectedly frozen")]
    Frozen,
    /// A limit.
    #[error("{field}: writing {value:?} to {path}")]
    Limit {
        /// What asks for it.
        field: &'static str,
        /// What was written.
        value: String,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Moving the supervisor.
    #[error("moving this process to cgroup {0}")]
    Move(PathBuf, #[source] io::Error),
    /// Processes that do not go.
    #[error("cgroup {0} has processes that do not end")]
    Populated(PathBuf),
    /// Removing it.
    #[error("removing cgroup {0}")]
    Remove(PathBuf, #[source] io::Error),
}

impl Explain for CgroupError {
    fn phase(&self) -> &'static str {
        match self {
            Self::Limit { .. } => "limiting the sandbox",
            Self::Populated(_) | Self::Remove(..) => "removing the sandbox's cgroup",
            _ => "making the sandbox's cgroup",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Version(_) => "boot with systemd.unified_cgroup_hierarchy=1".into(),
            Self::Systemd(e) => e.fix(),
            Self::NotEmpty(_) | Self::Root => "name another cgroup in linux.cgroupsPath".into(),
            Self::Limit { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "this controller is not enabled for the cgroup; see cgroup.controllers".into()
            }
            Self::Limit { .. } => "give a value that the kernel of the host takes".into(),
            Self::Make(_, e) | Self::Open(_, e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
                ) =>
            {
                "mount /sys/fs/cgroup so that root can write to it".into()
            }
            _ => String::new(),
        }
    }
}

/// The cgroup of a sandbox as its state records it, before it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupRecord {
    /// Its directory.
    pub path: PathBuf,
    /// Directories that were missing, outermost first: they go with the sandbox.
    pub missing: Vec<PathBuf>,
    /// The scope whose cgroup it is, if systemd makes it.
    #[serde(default)]
    pub unit: Option<UnitRecord>,
}

/// A cgroup that has been found out, but not made.
#[derive(Debug)]
pub struct Planned {
    record: CgroupRecord,
    home: PathBuf,
    scope: Option<Scope>,
    /// Properties of the scope besides its limits.
    asked: Vec<Property>,
}

impl Planned {
    /// Where the cgroup of the sandbox `id` will be, and the properties that are `asked` for if it
    /// is a scope's. `None` on a host without cgroup v2, if nothing that was asked for `needs` it.
    pub fn new(
        place: Place,
        id: &ContainerId,
        asked: Vec<Property>,
        needs: Option<&'static str>,
    ) -> Result<Option<Self>, CgroupError> {
        match (hierarchy::available(), needs) {
            (true, _) => {}
            (false, None) => return Ok(None),
            (false, Some(field)) => return Err(CgroupError::Version(field)),
        }
        let home = hierarchy::own().map_err(CgroupError::Own)?;
        let path = place.directory(&home);
        if path == hierarchy::root() {
            return Err(CgroupError::Root);
        }
        let scope = match place {
            Place::Scope(scope) => scope,
            Place::Absolute(_) | Place::Relative(_) => {
                let missing = hierarchy::missing(&path);
                let record = CgroupRecord { path, missing, unit: None };
                return Ok(Some(Self { record, home, scope: None, asked }));
            }
        };
        let ProcessId { pid, started } = ProcessId::own().map_err(CgroupError::Own)?;
        let description = format!("bulkhead container {id}, supervisor {pid} of {started}");
        let unit = UnitRecord { name: scope.unit.clone(), description };
        let record = CgroupRecord { path, missing: vec![], unit: Some(unit) };
        Ok(Some(Self { record, home, scope: Some(scope), asked }))
    }

    /// What to record before [`Self::make`].
    pub fn record(&self) -> &CgroupRecord {
        &self.record
    }

    /// Makes the cgroup, with its parents. What somebody else has made meanwhile is in the record
    /// no more: it does not go with the sandbox.
    pub fn make(&mut self) -> Result<(), CgroupError> {
        let (Some(scope), Some(unit)) = (&self.scope, &self.record.unit) else {
            return hierarchy::make(&self.record.path, &mut self.record.missing);
        };
        let started =
            systemd::start(scope, unit, &self.asked).and_then(|()| match hierarchy::own() {
                Ok(own) if own == self.record.path => Ok(()),
                _ => Err(SystemdError::Elsewhere(unit.name.clone())),
            });
        Ok(started.inspect_err(|_| self.go_back())?)
    }

    /// Opens the cgroup, which nobody else may use.
    pub fn open(self) -> Result<HostCgroup, CgroupError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&self.record.path, flags, Mode::empty()).map_err(|e| {
            self.go_back();
            CgroupError::Open(self.record.path.clone(), e.into())
        })?;
        let Self { record: CgroupRecord { path, unit, .. }, home, .. } = self;
        let (joined, unit) = (unit.is_some(), unit.map(|unit| unit.name));
        let mut cgroup = HostCgroup { path, unit, home, dir, joined, oom_kills_before: 0 };
        if !joined {
            cgroup.check_unused()?;
        }
        cgroup.oom_kills_before = cgroup.oom_kills();
        Ok(cgroup)
    }

    /// Takes this process out of a scope that is of no use: it cannot end with it in it.
    fn go_back(&self) {
        if self.scope.is_some() {
            // The failure to tell is the one that leads here.
            let _ = move_to(&self.home);
        }
    }
}

/// Moves this process to the cgroup `home`, or to the root if that has gone.
fn move_to(home: &Path) -> io::Result<()> {
    let moved = std::fs::write(home.join("cgroup.procs"), "0");
    moved.or_else(|_| std::fs::write(hierarchy::root().join("cgroup.procs"), "0"))
}

/// Files of a cgroup and what they held, in the order in which they were changed.
#[derive(Debug, Default)]
pub struct Undo(Vec<(String, String)>);

/// The cgroup of a sandbox.
#[derive(Debug)]
pub struct HostCgroup {
    path: PathBuf,
    /// Name of the scope whose cgroup it is, if it is one's.
    unit: Option<String>,
    /// Where this process was before it joined.
    home: PathBuf,
    dir: OwnedFd,
    joined: bool,
    oom_kills_before: u64,
}

impl HostCgroup {
    /// As runc: neither processes nor a freeze that somebody else has left.
    fn check_unused(&self) -> Result<(), CgroupError> {
        let processes = self.read("cgroup.procs").lines().count();
        if processes > 0 {
            return Err(CgroupError::NotEmpty(processes));
        }
        match self.read("cgroup.freeze").trim() {
            "1" => Err(CgroupError::Frozen),
            _ => Ok(()),
        }
    }

    /// Sets limits; gives what undoes that. If one cannot be set, those before it get their old
    /// values back.
    pub fn apply(&self, settings: &[Setting]) -> Result<Undo, CgroupError> {
        let kept: Vec<Setting>;
        let settings = match &self.unit {
            Some(_) => {
                kept = settings.iter().map(systemd::as_kept).collect();
                &kept[..]
            }
            None => settings,
        };
        // Before systemd writes them, and all of them, since it is told of all.
        let present = settings.iter().filter(|setting| self.has(&setting.file));
        let undo = Undo(present.map(|s| (s.file.clone(), s.before(&self.read(&s.file)))).collect());
        self.tell(settings.iter().map(|s| (s.file.as_str(), s.value.as_str())))?;
        for setting in settings {
            match self.write(&setting.file, &setting.value) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound && setting.optional => {}
                Err(source) => {
                    self.undo(undo);
                    return Err(CgroupError::Limit {
                        field: setting.field,
                        value: setting.value.clone(),
                        path: self.path.join(&setting.file),
                        source,
                    });
                }
            }
        }
        Ok(undo)
    }

    /// Sets what was before.
    pub fn undo(&self, undo: Undo) {
        let last_first =
            || undo.0.iter().rev().map(|(file, value)| (file.as_str(), value.as_str()));
        // It was in force a moment ago; the failure to tell is the one that leads here.
        let _ = self.tell(last_first());
        for (file, value) in last_first() {
            let _ = self.write(file, value);
        }
    }

    /// Tells systemd what files are going to hold, if it is the one who keeps them.
    fn tell<'a>(
        &self,
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), SystemdError> {
        match &self.unit {
            Some(unit) => systemd::set(unit, &systemd::of_settings(files)),
            None => Ok(()),
        }
    }

    /// Whether it has the file `name`: not every controller has every file.
    pub fn has(&self, name: &str) -> bool {
        rustix::fs::accessat(&self.dir, name, Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Moves this process, all of its threads, into the cgroup.
    pub fn join(&mut self) -> Result<(), CgroupError> {
        let moved = self.write("cgroup.procs", "0");
        moved.map_err(|e| CgroupError::Move(self.path.clone(), e))?;
        self.joined = true;
        Ok(())
    }

    /// Moves this process back, or to the root if its own cgroup has gone, so that the sandbox's
    /// can be removed.
    pub fn leave(&mut self) -> Result<(), CgroupError> {
        if !self.joined {
            return Ok(());
        }
        move_to(&self.home).map_err(|e| CgroupError::Move(self.home.clone(), e))?;
        self.joined = false;
        Ok(())
    }

    /// Whether the kernel has killed a process of the sandbox for want of memory, and the limit
    /// in bytes, if it has one of its own.
    pub fn ran_out_of_memory(&self) -> Option<Option<u64>> {
        let killed = self.oom_kills() > self.oom_kills_before;
        killed.then(|| self.read("memory.max").trim().parse().ok())
    }

    /// What the sandbox uses of the host.
    pub fn usage(&self) -> HostUsage {
        HostUsage::read(|file| self.read(file))
    }

    fn oom_kills(&self) -> u64 {
        stats::keyed(&self.read("memory.events"), "oom_kill")
    }

    /// A file's text; empty where there is none.
    fn read(&self, file: &str) -> String {
        hierarchy::read_at(&self.dir, file).unwrap_or_default()
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        hierarchy::write_at(&self.dir, file, value)
    }
}

impl AsFd for HostCgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}
