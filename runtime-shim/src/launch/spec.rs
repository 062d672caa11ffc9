//! From an image configuration and the caller's settings to an OCI runtime specification, as
//! `docker run` would make it.
//!
//! Of the image's configuration these count: Entrypoint, Cmd, Env, WorkingDir, User, Volumes
//! and StopSignal. ExposedPorts publish nothing by themselves, and labels are not taken: the
//! annotations of a container steer bulkhead, and an image must not.
//!
//! There is no seccomp filter in the guest. Docker's default profile keeps containers from
//! the kernel that they share with the host and with each other. Here the kernel is the
//! container's own, and what stands between it and the host is the filter of the VMM, which
//! no guest can lift; a second one would cost every system call and protect nobody else.
//! Capabilities and masked paths are Docker's, so that programs find what they expect.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bulkhead_protocol::id::ContainerId;
use oci_spec::OciSpecError;
use oci_spec::image::{Config, ImageConfiguration};
use oci_spec::runtime::{
    Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
    LinuxDeviceCgroupBuilder, LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceType,
    LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimitBuilder,
    PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
    get_default_namespaces,
};
use thiserror::Error;

use super::env;
use super::network::{self, NetworkChoice};
use super::settings::{CPU_PERIOD_US, Settings, Volume, clean};
use super::user::{Identity, UserError, resolve};
use crate::failure::{EXIT_LAUNCH, Explain};

/// Version of the specification that is written.
const OCI_VERSION: &str = "1.2.0";
/// How much of a random id is the host name, Docker's.
const HOSTNAME_LENGTH: usize = 12;
/// Annotation for the image's StopSignal (OCI image specification, "Conversion to OCI Runtime
/// Configuration").
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";
/// Open files: systemd's defaults, which current Docker has too.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// Docker's default set.
const CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Docker's defaults.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Docker's defaults.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Docker's defaults: destination, type, options.
const MOUNTS: [(&str, &str, &[&str]); 7] = [
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
    ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
];

/// Why image and settings make no container.
#[derive(Debug, Error)]
pub enum SpecError {
    /// Nothing to run; Docker's words.
    #[error("no command specified")]
    NoCommand,
    /// A relative working directory; Docker's words.
    #[error("the working directory {0:?} is invalid, it needs to be an absolute path")]
    Workdir(String),
    /// Two volumes at one place; Docker's words.
    #[error("duplicate mount point: {0}")]
    Twice(String),
    /// A volume of the image that is no absolute path.
    #[error("volume {0:?} of the image is not an absolute path")]
    ImageVolume(String),
    /// A user or group that is none.
    #[error(transparent)]
    User(#[from] UserError),
    /// A part that the builder refuses.
    #[error("building the specification")]
    Build(#[from] OciSpecError),
}

impl Explain for SpecError {
    fn phase(&self) -> &'static str {
        "planning the container"
    }

    fn fix(&self) -> String {
        match self {
            Self::NoCommand => "give one behind the image",
            Self::User(UserError::NoUser(_) | UserError::NoGroup(_)) => {
                "give one that the image has, or a number, with -u"
            }
            _ => "",
        }
        .to_owned()
    }

    fn code(&self) -> u8 {
        EXIT_LAUNCH
    }
}

/// The image's account files.
#[derive(Debug, Default)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: Vec<u8>,
    /// `/etc/group`.
    pub group: Vec<u8>,
}

/// Image and settings, merged; everything that can be known without the root file system has
/// been checked.
#[derive(Debug)]
pub struct Plan {
    args: Vec<String>,
    cwd: String,
    user: String,
    env: Vec<String>,
    stop_signal: Option<String>,
    /// The caller's, then the image's.
    volumes: Vec<Volume>,
    settings: Settings,
}

impl Plan {
    /// Merges as Docker does.
    pub fn new(image: &ImageConfiguration, settings: &Settings) -> Result<Self, SpecError> {
        let none = Config::default();
        let config = image.config().as_ref().unwrap_or(&none);
        let user = settings.user.clone().or_else(|| config.user().clone());
        Ok(Self {
            args: args(config, settings)?,
            cwd: cwd(config, settings)?,
            user: user.unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone().filter(|signal| !signal.is_empty()),
            volumes: volumes(config, settings)?,
            settings: settings.clone(),
        })
    }

    /// Host name of container `id`.
    pub fn hostname(&self, id: &ContainerId) -> String {
        if let Some(hostname) = &self.settings.hostname {
            return hostname.clone();
        }
        let letters = id.as_str().chars().filter(char::is_ascii_alphanumeric);
        let own: String = letters.take(HOSTNAME_LENGTH).collect();
        if own.is_empty() { "bulkhead".to_owned() } else { own }
    }

    /// Directories that the root file system must have.
    pub fn directories(&self) -> Vec<String> {
        let own = self.volumes.iter().filter(|volume| volume.source.is_none());
        [self.cwd.clone()].into_iter().chain(own.map(|volume| volume.destination.clone())).collect()
    }

    /// Directories of the host to be made where nothing is, with the destination of those that
    /// are the container's own and lie in `scratch`.
    pub fn host_directories(&self, scratch: &Path) -> Vec<(PathBuf, Option<&str>)> {
        let own = |volume: &Volume| volume.source.is_none();
        self.binds(scratch)
            .map(|(volume, path)| (path, own(volume).then_some(volume.destination.as_str())))
            .collect()
    }

    /// The specification of container `id`.
    pub fn spec(
        &self,
        id: &ContainerId,
        accounts: &Accounts,
        scratch: &Path,
    ) -> Result<Spec, SpecError> {
        let identity = resolve(&self.user, &accounts.passwd, &accounts.group)?;
        let root = RootBuilder::default().path("rootfs").readonly(self.settings.read_only);
        let spec = SpecBuilder::default()
            .version(OCI_VERSION)
            .root(root.build()?)
            .mounts(self.mounts(scratch)?)
            .process(self.process(&identity, &self.hostname(id))?)
            .hostname(self.hostname(id))
            .annotations(self.annotations())
            .linux(self.linux()?);
        Ok(spec.build()?)
    }

    fn process(&self, identity: &Identity, hostname: &str) -> Result<Process, SpecError> {
        let user = UserBuilder::default()
            .uid(identity.uid)
            .gid(identity.gid)
            .additional_gids(identity.groups.clone());
        let open_files = PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .soft(OPEN_FILES.0)
            .hard(OPEN_FILES.1);
        Ok(ProcessBuilder::default()
            .terminal(self.settings.terminal)
            .user(user.build()?)
            .args(self.args.clone())
            .env(self.environment(identity, hostname))
            .cwd(&self.cwd)
            .capabilities(capabilities(identity.uid)?)
            .rlimits(vec![open_files.build()?])
            .no_new_privileges(false)
            .build()?)
    }

    fn environment(&self, identity: &Identity, hostname: &str) -> Vec<String> {
        let mut defaults = vec![env::PATH.to_owned(), format!("HOSTNAME={hostname}")];
        if self.settings.terminal {
            defaults.push("TERM=xterm".to_owned());
        }
        let mut merged = env::merge(&defaults, &self.env, &self.settings.env);
        // runc adds it to what Docker says, whatever Docker says.
        if !merged.iter().any(|variable| env::name(variable) == "HOME") {
            merged.push(format!("HOME={}", identity.home));
        }
        merged
    }

    fn annotations(&self) -> HashMap<String, String> {
        let labels = self.settings.labels.iter().filter_map(|label| label.split_once('='));
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let signal = self.stop_signal.iter().map(|s| (STOP_SIGNAL.to_owned(), s.clone()));
        signal.chain(labels).collect()
    }

    fn mounts(&self, scratch: &Path) -> Result<Vec<Mount>, SpecError> {
        let defaults = MOUNTS.iter().map(|(destination, kind, options)| {
            MountBuilder::default()
                .destination(*destination)
                .typ(*kind)
                .source(*kind)
                .options(strings(options))
                .build()
        });
        let binds = self.binds(scratch).map(|(volume, source)| {
            let access = if volume.read_only { "ro" } else { "rw" };
            MountBuilder::default()
                .destination(&volume.destination)
                .typ("bind")
                .source(source)
                .options(strings(&["rbind", "rprivate", access]))
                .build()
        });
        let files = self.files(scratch).map(|(destination, source)| {
            MountBuilder::default()
                .destination(destination)
                .typ("bind")
                .source(source)
                .options(strings(&["rbind", "rprivate", "rw"]))
                .build()
        });
        let mut binds = binds.chain(files).collect::<Result<Vec<_>, _>>()?;
        // A volume below another must come after it.
        binds.sort_by_key(|mount| mount.destination().components().count());
        Ok(defaults.collect::<Result<Vec<_>, _>>()?.into_iter().chain(binds).collect())
    }

    /// What is mounted from the host, and from where. A volume without a source lies in the
    /// container's own layer; only where that cannot be written to it is a directory beside it,
    /// which starts as a copy of the image's.
    fn binds<'a>(&'a self, scratch: &Path) -> impl Iterator<Item = (&'a Volume, PathBuf)> {
        self.volumes.iter().enumerate().filter_map(move |(at, volume)| match &volume.source {
            Some(source) => Some((volume, source.clone())),
            None if self.settings.read_only => {
                Some((volume, scratch.join("volumes").join(at.to_string())))
            }
            None => None,
        })
    }

    /// Files of the container's own that are mounted where the caller mounts nothing, and from
    /// where.
    fn files(&self, scratch: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let taken = |path: &str| self.volumes.iter().any(|volume| volume.destination == path);
        let files = network::FILES.into_iter().filter(move |(_, path)| !taken(path));
        files.map(|(name, path)| (path, network::source(scratch, name)))
    }

    fn namespaces(&self) -> Vec<LinuxNamespace> {
        let mut namespaces = get_default_namespaces();
        if let NetworkChoice::Path(path) = &self.settings.network {
            let network = |n: &&mut LinuxNamespace| n.typ() == LinuxNamespaceType::Network;
            namespaces.iter_mut().filter(network).for_each(|n| {
                n.set_path(Some(path.clone()));
            });
        }
        namespaces
    }

    fn linux(&self) -> Result<Linux, SpecError> {
        let sysctl = [
            ("net.ipv4.ping_group_range", "0 2147483647"),
            ("net.ipv4.ip_unprivileged_port_start", "0"),
        ];
        let sysctl = sysctl.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok(LinuxBuilder::default()
            .namespaces(self.namespaces())
            .resources(self.resources()?)
            .sysctl(HashMap::from(sysctl))
            .masked_paths(strings(&MASKED))
            .readonly_paths(strings(&READ_ONLY))
            .build()?)
    }

    fn resources(&self) -> Result<LinuxResources, SpecError> {
        let deny = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
        let mut resources = LinuxResourcesBuilder::default().devices(vec![deny]);
        if let Some(memory) = self.settings.memory {
            let limit = i64::try_from(memory).unwrap_or(i64::MAX);
            resources = resources.memory(LinuxMemoryBuilder::default().limit(limit).build()?);
        }
        if let Some(quota) = self.settings.cpu_quota_us {
            let cpu = LinuxCpuBuilder::default().quota(quota).period(CPU_PERIOD_US);
            resources = resources.cpu(cpu.build()?);
        }
        Ok(resources.build()?)
    }
}

/// Entry point and command. An entry point of the caller's takes the image's command away.
fn args(config: &Config, settings: &Settings) -> Result<Vec<String>, SpecError> {
    let image_entrypoint = config.entrypoint().clone().unwrap_or_default();
    let image_command = config.cmd().clone().unwrap_or_default();
    let (mut args, command) = match (&settings.entrypoint, settings.command.is_empty()) {
        (Some(entrypoint), _) => (vec![entrypoint.clone()], settings.command.clone()),
        (None, false) => (image_entrypoint, settings.command.clone()),
        (None, true) => (image_entrypoint, image_command),
    };
    if args == [""] {
        args.clear();
    }
    args.extend(command);
    match args.first() {
        Some(program) if !program.is_empty() => Ok(args),
        _ => Err(SpecError::NoCommand),
    }
}

fn cwd(config: &Config, settings: &Settings) -> Result<String, SpecError> {
    if let Some(workdir) = &settings.workdir {
        return clean(workdir).ok_or_else(|| SpecError::Workdir(workdir.clone()));
    }
    // An image's is below the root whether or not it says so.
    let workdir = config.working_dir().as_deref().unwrap_or_default();
    Ok(clean(&format!("/{workdir}")).unwrap_or_else(|| "/".to_owned()))
}

/// The caller's volumes, and those of the image where the caller has none.
fn volumes(config: &Config, settings: &Settings) -> Result<Vec<Volume>, SpecError> {
    let mut volumes: Vec<Volume> = Vec::new();
    for volume in &settings.volumes {
        if volumes.iter().any(|known| known.destination == volume.destination) {
            return Err(SpecError::Twice(volume.destination.clone()));
        }
        volumes.push(volume.clone());
    }
    let mut image = config.volumes().clone().unwrap_or_default();
    image.sort_unstable();
    for path in image {
        let bad = || SpecError::ImageVolume(path.clone());
        let destination = clean(&path).filter(|path| path != "/").ok_or_else(bad)?;
        if !volumes.iter().any(|known| known.destination == destination) {
            volumes.push(Volume { source: None, destination, read_only: false });
        }
    }
    Ok(volumes)
}

/// Root has the set at once; others may get it by a set-id program, as after execve(2).
fn capabilities(uid: u32) -> Result<LinuxCapabilities, SpecError> {
    let set = || CAPABILITIES.into_iter().collect::<std::collections::HashSet<_>>();
    let none = std::collections::HashSet::new;
    let now = if uid == 0 { set() } else { none() };
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(set())
        .effective(now.clone())
        .permitted(now)
        .inheritable(none())
        .ambient(none())
        .build()?)
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}
