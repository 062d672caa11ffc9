//! `bulkhead launch`: from an image and the flags of `docker run` to a sandbox.
//!
//! The image is hostile, the flags are the caller's. What an image may say about its container
//! is the list in [`spec`]; nothing else of it, labels above all, reaches the specification.

pub mod disks;
pub mod env;
pub mod network;
pub mod progress;
pub mod root;
pub mod settings;
pub mod spec;
pub mod streams;
pub mod user;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bulkhead_protocol::id::ContainerId;
use oci_spec::runtime::Spec;
use thiserror::Error;

use self::progress::StderrProgress;
use self::root::RootMode;
use self::settings::Settings;
use self::spec::{Accounts, Plan};
use crate::failure::{EXIT_FAILURE, EXIT_LAUNCH, Explain, Failure};
use crate::image::rootfs::Rootfs;
use crate::image::store::container::Claim;
use crate::image::{Image, Reference, Store, open, overlay};
use crate::request::{ConsoleMode, RootSource, SandboxOptions, SandboxRequest};
use crate::supervisor::{Leader, run_detached, run_foreground};
use crate::uplink;

/// Largest `/etc/passwd` or `/etc/group` of an image that is read.
const ACCOUNTS_MAX: u64 = 1 << 20;

/// What to launch.
#[derive(Debug)]
pub struct LaunchRequest {
    /// The IMAGE argument.
    pub image: String,
    /// What the flags say about the container.
    pub settings: Settings,
    /// Id of the container; chosen at random if none.
    pub id: Option<ContainerId>,
    /// Return as soon as the container runs.
    pub detach: bool,
    /// Connect standard input.
    pub interactive: bool,
    /// Remove the container when it has ended.
    pub remove: bool,
    /// The store.
    pub store: PathBuf,
    /// Most bytes of the image when unpacked.
    pub unpack_max: u64,
    /// Where the root file system is; where it can best be if not said.
    pub root_mode: Option<RootMode>,
    /// Directory of the containers' state.
    pub state_root: PathBuf,
    /// `--systemd-cgroup`: the cgroup is that of a scope of systemd.
    pub systemd_cgroup: bool,
    /// Show the guest's console when the sandbox fails.
    pub debug: bool,
}

/// Why a container cannot be launched, where the image and the store are not to blame.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A terminal needs somebody who sits at it.
    #[error("a terminal needs a caller that stays: -t does not go with -d")]
    DetachedTerminal,
    /// `-it` with standard input that is no terminal; Docker's words.
    #[error("the input device is not a TTY")]
    NoTerminal,
    /// No random numbers.
    #[error("reading /dev/urandom")]
    Random(#[source] io::Error),
    /// Standard streams cannot be redirected.
    #[error("redirecting the standard streams")]
    Streams(#[source] io::Error),
    /// The account files of the image.
    #[error("reading {path} of the image")]
    Accounts {
        /// The file.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A directory that must be there in the container.
    #[error("making {0} in the container")]
    Directory(String, #[source] io::Error),
    /// `hosts`, `hostname` and `resolv.conf`.
    #[error("writing the container's files of /etc")]
    NetworkFiles(#[source] io::Error),
    /// The directory on the host of a volume.
    #[error("making {0}")]
    Volume(PathBuf, #[source] io::Error),
}

impl Explain for LaunchError {
    fn phase(&self) -> &'static str {
        "launching the container"
    }

    fn fix(&self) -> String {
        match self {
            Self::DetachedTerminal => "leave out one of them",
            Self::NoTerminal => "leave out -t",
            _ => "",
        }
        .to_owned()
    }

    fn code(&self) -> u8 {
        EXIT_LAUNCH
    }
}

/// Launches a container and gives the exit code: the workload's, or 0 when detached. The calling
/// process, whose first thread is `leader`, is its supervisor unless detached.
pub fn launch(request: LaunchRequest, leader: &Leader) -> Result<u8, Failure> {
    let failed = |failure: Failure| match failure.code {
        EXIT_FAILURE => failure.with_code(EXIT_LAUNCH),
        _ => failure,
    };
    prepare_and_run(request, leader).map_err(failed)
}

fn prepare_and_run(request: LaunchRequest, leader: &Leader) -> Result<u8, Failure> {
    check_terminal(&request)?;
    let reference = Reference::parse(&request.image).map_err(reference_failure)?;
    let store = Store::open(&request.store)?;
    let image = open(&reference, &store.scratch(), request.unpack_max)?;
    let plan = Plan::new(&image.config, &request.settings)?;
    unpack(&store, &image, request.unpack_max)?;
    let id = match &request.id {
        Some(id) => id.clone(),
        None => random_id()?,
    };
    let state = request.state_root.join(id.as_str());
    let claim = store.claim_container(&id, &state)?;
    let root = overlay::mount_root(&store, &claim, &image)?;
    let mut spec = prepare_root(&Rootfs::new(&root), &plan, &id, &claim)?;
    disks::apply(&mut spec, &request.settings)?;
    let root = match root::image(&store, &image, &request, &spec)? {
        Some(image) => {
            disks::set_root(&mut spec, &image)?;
            // Over an image lies what was just prepared, without the layers below.
            claim.own_layer()?
        }
        None => root,
    };
    let uplink = prepare_network(&request, &claim, &plan.hostname(&id))?;
    let sandbox = SandboxRequest {
        options: SandboxOptions {
            id: id.clone(),
            state_root: request.state_root.clone(),
            bundle: claim.path().to_owned(),
            spec,
            console: ConsoleMode::Inherit,
            start: true,
            keep: !request.remove,
            scratch: Some(claim.path().to_owned()),
            uplink,
            announcement: Default::default(),
            systemd_cgroup: request.systemd_cgroup,
            debug: request.debug,
        },
        root: RootSource::Fd(root),
        preserved: vec![],
    };
    let result = run(sandbox, &request, leader);
    // The container's directory stays exactly as long as there is state that names it.
    if state.symlink_metadata().is_ok() {
        claim.hand_over();
    }
    result
}

fn run(sandbox: SandboxRequest, request: &LaunchRequest, leader: &Leader) -> Result<u8, Failure> {
    let id = sandbox.options.id.clone();
    if !request.detach {
        if !request.interactive && !request.settings.terminal {
            streams::close_input().map_err(LaunchError::Streams)?;
        }
        return run_foreground(sandbox, leader);
    }
    streams::with_null(|| run_detached(sandbox)).map_err(LaunchError::Streams)??;
    let printed = writeln!(io::stdout(), "{id}");
    printed.map(|()| 0).map_err(|e| Failure::new("writing the output", e.to_string(), ""))
}

fn check_terminal(request: &LaunchRequest) -> Result<(), LaunchError> {
    if !request.settings.terminal {
        return Ok(());
    }
    if request.detach {
        return Err(LaunchError::DetachedTerminal);
    }
    if request.interactive && !rustix::termios::isatty(io::stdin()) {
        return Err(LaunchError::NoTerminal);
    }
    Ok(())
}

fn unpack(store: &Store, image: &Image, unpack_max: u64) -> Result<(), Failure> {
    let progress = StderrProgress::new("unpacking the image");
    let result = store.unpack_image(image, unpack_max, &progress);
    progress.finish();
    Ok(result?)
}

/// Makes what the container needs in its root and on the host, and its specification.
fn prepare_root(
    root: &Rootfs,
    plan: &Plan,
    id: &ContainerId,
    claim: &Claim,
) -> Result<Spec, Failure> {
    let read = |path| {
        let content = root.read(path, ACCOUNTS_MAX);
        content
            .map(Option::unwrap_or_default)
            .map_err(|source| LaunchError::Accounts { path, source })
    };
    let accounts = Accounts { passwd: read("/etc/passwd")?, group: read("/etc/group")? };
    let spec = plan.spec(id, &accounts, claim.path())?;
    for directory in plan.directories() {
        let failed = |error| LaunchError::Directory(directory.clone(), error);
        root.make_directory(&directory).map_err(failed)?;
    }
    for (path, own) in plan.host_directories(claim.path()) {
        let failed = |error| LaunchError::Volume(path.clone(), error);
        make_volume(root, &path, own).map_err(failed)?;
    }
    Ok(spec)
}

/// What connects the container, and the files that tell it of its network.
fn prepare_network(
    request: &LaunchRequest,
    claim: &Claim,
    hostname: &str,
) -> Result<Option<uplink::Request>, Failure> {
    let settings = &request.settings;
    let uplink = network::uplink(settings, claim.path(), hostname)?;
    let backend = uplink.as_ref().map(|uplink| uplink.backend);
    let told = network::write_files(settings, backend, claim.path(), hostname)
        .map_err(LaunchError::NetworkFiles)?;
    if !told {
        eprintln!("bulkhead: no nameserver of the host can be reached; --dns gives one");
    }
    if let (true, Some(backend)) = (request.debug, backend) {
        eprintln!("bulkhead: the network of the container is {backend}");
    }
    Ok(uplink)
}

/// Makes a directory of the host that is mounted into the container, as Docker does; one of the
/// container's own starts as the directory of the image that it replaces.
fn make_volume(root: &Rootfs, path: &Path, own: Option<&str>) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(path)?;
    match own {
        Some(destination) => root.copy_directory(destination, &File::open(path)?.into()),
        None => Ok(()),
    }
}

/// 64 hexadecimal digits, as Docker's ids.
fn random_id() -> Result<ContainerId, LaunchError> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(LaunchError::Random)?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(text.try_into().expect("hexadecimal digits are an id"))
}

fn reference_failure(error: crate::image::reference::ReferenceError) -> Failure {
    let fix = "IMAGE is a layout directory, an OCI archive or a Docker archive; \
               `skopeo copy docker://NAME oci-archive:FILE` fetches one";
    Failure::new("reading the image", error.to_string(), fix)
}

#[cfg(test)]
mod tests;
